"""Preferences in TRL's formats: texts or conversations, with a prompt or without."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from imdb_rlhf.data import hub
from imdb_rlhf.data.containers import Rows, content_of, content_once, read_splits
from imdb_rlhf.data.split_files import format_of
from imdb_rlhf.errors import RunError, first_line

KEY = "data.preferences"
PROMPT, PAIR = "prompt", ("chosen", "rejected")


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
            return hub.identity(self.path, self.revision, KEY, "dataset")
        return content_once(self.place, [KEY, self.split], self._content)

    def _content(self) -> str:
        return content_of([[*values, *values.values()] for rows in self.files for values in _values(rows)])

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
                if _tells_prompt_again(values):
                    values = {side: values[side] for side in PAIR}
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
    if len(kinds) > 1 and not _tells_prompt_again(values):
        raise RunError(f"{where} holds a text and a conversation; mend the file")


def _tells_prompt_again(values: Mapping[str, Any]) -> bool:
    """Whether the prompt is a text that both conversations hold in their beginning: TRL then reads it there."""
    prompt, chosen, rejected = (values.get(name) for name in (PROMPT, *PAIR))
    if not isinstance(prompt, str) or not isinstance(chosen, list) or not isinstance(rejected, list):
        return False
    return any(message["content"] == prompt for message in chosen[: common(chosen, rejected)])


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


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many entries from the first on are the same in both."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
