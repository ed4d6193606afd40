"""Preferences in TRL's formats, out and in: groups as `prompt`, `chosen`, `rejected`, and such data as groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from imdb_rlhf.data import hub
from imdb_rlhf.data.containers import Rows, content_of, content_once, format_of, read_splits
from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.prompts import Encode, beginning
from imdb_rlhf.errors import RunError, first_line

KEY = "data.preferences"
PROMPT, PAIR = "prompt", ("chosen", "rejected")
TEXTS = [PROMPT, *PAIR]


def to_trl(groups: pd.DataFrame) -> pd.DataFrame:
    """The same groups as a preference table that TRL's trainers read.

    Columns `prompt`, `chosen`, `rejected` (texts without EOS, leading space kept), `score_chosen`, `score_rejected`
    (log-odds). Every pair with different rewards and different texts, the higher reward chosen.
    """
    ordered = groups.sort_values("prompt_id", kind="stable", ignore_index=True)
    starts = np.flatnonzero(np.diff(ordered["prompt_id"].to_numpy(), prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    # the pairs of a group, first of the first row, then of the second ...
    pairs = [start + np.stack(np.triu_indices(size, 1), 1) for start, size in zip(starts, sizes, strict=True)]
    first, second = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs]).T
    logits, texts = ordered["reward_logit"].to_numpy(), ordered["completion"].to_numpy()
    distinct = (logits[first] != logits[second]) & (texts[first] != texts[second])
    first, second = first[distinct], second[distinct]
    best = np.where(logits[second] > logits[first], second, first)
    worst = first + second - best
    columns = {
        "prompt": ordered["prompt"].to_numpy()[best],
        "chosen": texts[best],
        "rejected": texts[worst],
        "score_chosen": logits[best],
        "score_rejected": logits[worst],
    }
    return pd.DataFrame(columns, columns=[*TEXTS, "score_chosen", "score_rejected"])


def card(pairs: int, reward: str, source: str) -> str:
    """A dataset card for the Hub, for the folder of an exported table.

    Args:
        pairs: number of rows.
        reward: name of the true reward that chose.
        source: the groups' folder.
    """
    return f"""---
pretty_name: Preferences of imdb_rlhf
language: en
tags:
  - trl
  - preference
configs:
  - config_name: default
    data_files: preferences.parquet
---

# {pairs:,} preference pairs

Completions of one reference policy, in pairs of the same prompt; `reward={reward}` has chosen. They are from {source}.

| column | holds |
| --- | --- |
| `prompt` | the beginning of a film review |
| `chosen`, `rejected` | two completions with their leading space, without the end of text |
| `score_chosen`, `score_rejected` | their scores on the ranking scale (log-odds for rewards that have them) |

TRL's `DPOTrainer` and `RewardTrainer` read it as it is. `groups.parquet` holds the groups whole, with token ids.
"""


class Chat(Protocol):
    """How a tokenizer renders conversations, and reads what it has rendered."""

    def render(self, messages: Sequence[Mapping[str, str]], *, whole: bool) -> str:
        """Render by its template: a conversation that is whole, or a prompt that an answer will follow."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of rendered texts, the template's control tokens included."""
        ...

    def names_in(self, text: str) -> list[str]:
        """The names of control tokens in a text."""
        ...


@dataclass(frozen=True)
class Example:
    """A pair as text: a completion follows its prompt without anything in between."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Examples:
    """The pairs of a file.

    Attributes:
        pairs: in the order of the file.
        conversations: whether they were rendered from messages, with the template's own ends of turns.
        repeated: in how many rows both completions begin with the prompt, which is then read twice.
    """

    pairs: list[Example]
    conversations: bool
    repeated: int


class PreferenceData:
    """Preferences in one of TRL's formats, in whatever they are stored.

    Args:
        path: a file, a folder, or an id on the Hub.
        revision: the Hub's commit, branch or tag.
        split: of a folder or a Hub's dataset.
    """

    def __init__(self, path: str, revision: str | None, split: str) -> None:
        self.path, self.revision, self.split = path, revision, split

    @property
    def is_local(self) -> bool:
        """Whether nothing is to be downloaded."""
        return hub.is_folder(self.path) or Path(self.path).expanduser().is_file()

    @cached_property
    def place(self) -> Path:
        """The file or folder on this machine, downloaded if need be."""
        place = Path(self.path).expanduser()
        if place.is_file():
            return place
        if format_of(place) is not None and not place.exists():
            raise RunError(f"{KEY}={self.path}: no such file; give one that holds {' and '.join(PAIR)}")
        return hub.fetch(self.path, self.revision, KEY, "dataset")

    @cached_property
    def files(self) -> list[Rows]:
        """The rows, with columns chosen and rejected, and prompt where there is one; read once.

        Raises:
            RunError: naming the file, and the row or the column.
        """
        files = read_splits(self.place, [self.split], PAIR, KEY, optional=[PROMPT])[self.split]
        for rows in files:
            for row, values in enumerate(_values(rows)):
                _check_row(values, f"{rows.place} row {row}")
        return files

    def content(self) -> str:
        """A hash of the rows, whatever they are stored in; or the Hub's id and commit."""
        if not self.is_local:
            return hub.identity(self.path, self.revision, KEY)
        return content_once(self.place, [KEY, self.split], self._content)

    def _content(self) -> str:
        return content_of([list(values.values()) for rows in self.files for values in _values(rows)])

    def examples(self, chat: Chat | None) -> Examples:
        """The pairs as text, by TRL's rules: a prompt that is not given is what both begin with.

        Args:
            chat: renders conversations; None where the tokenizer has no template.

        Raises:
            RunError: naming the file and the row.
        """
        pairs, repeated, conversations = [], 0, 0
        for rows in self.files:
            for row, values in enumerate(_values(rows)):
                where = f"{rows.place} row {row}"
                if PROMPT in values:
                    again = [_begins(values[side], values[PROMPT]) for side in PAIR]
                    repeated += bool(len(values[PROMPT])) and all(again)
                else:
                    values = _with_shared_prompt(values)
                conversation = not isinstance(values["chosen"], str)
                conversations += conversation
                pairs.append(_rendered(values, chat, where) if conversation else Example(**values))
        if conversations not in (0, len(pairs)):
            raise RunError(f"{KEY}={self.path} holds texts and conversations; give one kind")
        return Examples(pairs, conversations > 0, repeated)


def _values(rows: Rows) -> Iterator[dict[str, Any]]:
    names = [name for name in (PROMPT, *PAIR) if name in rows.columns]
    for values in zip(*(rows.columns[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _check_row(values: Mapping[str, Any], where: str) -> None:
    """Refuse a row that is neither of texts nor of messages."""
    kinds = set()
    for name, value in values.items():
        if isinstance(value, str):
            kinds.add("texts")
        elif isinstance(value, list):
            kinds.add("conversations")
            for message in value:
                known = isinstance(message, Mapping) and isinstance(message.get("role"), str)
                if not known or not isinstance(message.get("content"), str):
                    raise RunError(f"{where}: {name} is not a list of messages with role and content; mend the file")
        else:
            raise RunError(f"{where}: {name} is not a string; mend the file")
    if len(kinds) > 1:
        raise RunError(f"{where} holds a text and a conversation; mend the file")


def _begins(completion: Any, prompt: Any) -> bool:
    return bool(completion[: len(prompt)] == prompt)


def _with_shared_prompt(values: Mapping[str, Any]) -> dict[str, Any]:
    """Chosen and rejected after what they begin with in common; a blank before the difference belongs to them."""
    chosen, rejected = values["chosen"], values["rejected"]
    shorter = min(len(chosen), len(rejected))
    at = next((place for place in range(shorter) if chosen[place] != rejected[place]), None)
    if at is None:
        at = max(0, shorter - 1)
    elif at and chosen[at - 1] == " ":
        at -= 1
    return {PROMPT: chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}


def _rendered(values: Mapping[str, Any], chat: Chat | None, where: str) -> Example:
    """A pair of conversations as text, by the tokenizer's template."""
    if chat is None:
        raise RunError(
            f"{where} is a conversation, and the tokenizer has no chat template; give texts, or another model"
        )
    messages = {name: [dict(message) for message in value] for name, value in values.items()}
    for message in (message for value in messages.values() for message in value):
        names = chat.names_in(message["content"])
        if names:
            raise RunError(f"{where}: a message holds {names[0]!r}, with which the template ends turns; mend the file")
    try:
        prompt = chat.render(messages[PROMPT], whole=False) if messages[PROMPT] else ""
        sides = [chat.render(messages[PROMPT] + messages[side], whole=True) for side in PAIR]
    except Exception as error:
        raise RunError(f"{where}: the chat template cannot render it: {first_line(error)}") from error
    # a template may write otherwise what an answer follows
    shared = min(common(prompt, side) for side in sides)
    return Example(prompt[:shared], *(side[shared:] for side in sides))


def from_preferences(
    examples: Examples, encode: Encode, eos_id: int, bos_id: int | None, *, append_eos: bool, context: int, where: str
) -> tuple[pd.DataFrame, Pairs, int]:
    """Pairs as a group table without rewards of its own.

    Prompt and completion are encoded as one text, as a reader would meet them, and cut where the prompt ends. Where
    that is inside a token, the token belongs to the completions.

    Args:
        examples: the pairs as text.
        encode: texts to tokens; for conversations `Chat.encode`, else the tokenizer's without special tokens.
        eos_id: the token that ends a completion.
        bos_id: the token that rows begin with, if any; a template's own is not doubled.
        append_eos: whether completions of texts end in EOS; those of conversations end as the template ends them.
        context: pairs longer than this many tokens are skipped and counted.
        where: key and file, for messages.

    Returns:
        The table (reward 1 for a completion that was chosen more often than rejected, else 0; `ref_logprob` is nan
        until it is scored), the pairs in the order of the file, those of a prompt together, and in how many rows of the
        file the prompt ends inside a token.

    Raises:
        RunError: no pair is left.
    """
    pairs = examples.pairs
    tokens = [
        [ids[1:] if bos_id is not None and ids[:1] == [bos_id] else ids for ids in encode(texts)]
        for texts in (
            [pair.prompt for pair in pairs],
            [pair.prompt + pair.chosen for pair in pairs],
            [pair.prompt + pair.rejected for pair in pairs],
        )
    ]
    ends = [eos_id] if append_eos and not examples.conversations else []
    table = _Table(finished=append_eos or examples.conversations)
    dropped = {"same completion": 0, "empty": 0, "longer than the context": 0}
    inside = 0
    for pair, prompt, *sides in zip(pairs, *tokens, strict=True):
        shared = min(common(prompt, side) for side in sides)
        inside += shared < len(prompt)
        prompt_ids = [*beginning(bos_id), *prompt[:shared]]
        completions = [[*side[shared:], *ends] for side in sides]
        if completions[0] == completions[1]:
            dropped["same completion"] += 1
        elif not shared or not all(completions):
            dropped["empty"] += 1
        elif len(prompt_ids) + max(map(len, completions)) > context:
            dropped["longer than the context"] += 1
        else:
            table.add(pair, prompt_ids, completions)
    if not table.pairs:
        raise RunError(
            f"{where}: no pair is left of {len(pairs)} ({', '.join(f'{n} {reason}' for reason, n in dropped.items())})"
        )
    return table.frame(), table.ordered_pairs(dropped), inside


class _Table:
    """A group table in the making: each completion of a prompt once."""

    def __init__(self, *, finished: bool) -> None:
        self.finished = finished
        self.rows: list[dict[str, object]] = []
        self.pairs: list[tuple[int, int]] = []
        self.prompts: list[int] = []
        self.wins: list[int] = []  # how much more often each row was chosen than rejected
        self.owners: dict[str, int] = {}
        self.by_tokens: dict[tuple[object, ...], int] = {}

    def add(self, pair: Example, prompt_ids: list[int], completions: list[list[int]]) -> None:
        """Add a pair, as text and as tokens: winner, loser."""
        owner = self.owners.setdefault(pair.prompt, len(self.owners))
        winner, loser = (
            self._row(owner, pair.prompt, text, prompt_ids, ids)
            for text, ids in zip((pair.chosen, pair.rejected), completions, strict=True)
        )
        self.wins[winner] += 1
        self.wins[loser] -= 1
        self.pairs.append((winner, loser))
        self.prompts.append(owner)

    def _row(self, owner: int, prompt: str, text: str, prompt_ids: list[int], ids: list[int]) -> int:
        name = (owner, *prompt_ids, None, *ids)
        if name not in self.by_tokens:
            self.by_tokens[name] = len(self.rows)
            self.wins.append(0)
            self.rows.append(
                {"prompt_id": owner, "prompt_ids": prompt_ids, "completion_ids": ids, "prompt": prompt}
                | {"completion": text, "finished": self.finished}
            )
        return self.by_tokens[name]

    def frame(self) -> pd.DataFrame:
        """The rows."""
        table = pd.DataFrame(self.rows)
        table["sample_id"] = table.groupby("prompt_id").cumcount()
        table["reward"] = [float(net > 0) for net in self.wins]
        table["reward_logit"] = table["reward"]
        table["ref_logprob"] = np.nan
        return table[COLUMNS]

    def ordered_pairs(self, dropped: dict[str, int]) -> Pairs:
        """The pairs, those of a prompt together."""
        order = np.argsort(np.array(self.prompts), kind="stable")
        return Pairs(np.array(self.pairs)[order], np.array(self.prompts)[order], dropped)


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many entries from the first on are the same in both."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
