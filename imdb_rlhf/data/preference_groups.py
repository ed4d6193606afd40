"""Preferences as groups, and groups as preferences: tables of `prompt`, `chosen`, `rejected` in and out."""

import numpy as np
import pandas as pd

from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.preferences import PAIR, PROMPT, Example, Examples, common
from imdb_rlhf.data.prompts import Encode, beginning
from imdb_rlhf.errors import RunError

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
