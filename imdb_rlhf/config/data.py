"""Datasets: which reviews, and how many prompts of each kind."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from imdb_rlhf.config.places import LATER, Place
from imdb_rlhf.config.ranges import Prompts, Range, Seed, Tokens
from imdb_rlhf.errors import ConfigError


class Bos(StrEnum):
    """Whether rows of tokens begin with BOS; auto is as tokenizer and model were trained."""

    auto = "auto"
    always = "always"
    never = "never"


class Br(StrEnum):
    """What becomes of `<br />` in real reviews."""

    keep = "keep"
    newline = "newline"


@dataclass
class PromptsConfig:
    """How many prompts of each kind, and how long (in tokens)."""

    train: Prompts
    validation: Prompts
    test: Prompts
    min_tokens: Tokens
    max_tokens: Tokens

    def check(self, at: str) -> None:
        """Refuse a shortest prompt that is longer than the longest."""
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"{at}min_tokens={self.min_tokens} is above {at}max_tokens={self.max_tokens}; "
                "lower the one or raise the other"
            )


@dataclass
class DataConfig:
    """What every dataset has; `kind` is the module of `imdb_rlhf.data` that reads it.

    `generates` says what it generates, for cards on the Hub; None where it reads texts that exist.
    """

    kind: ClassVar[str]
    generates: ClassVar[str | None] = None
    name: str
    seed: Seed
    sft_reviews: Annotated[int, Range(1, 10**7)]
    prompts: PromptsConfig
    bos: Bos
    preferences: Place | None
    preferences_revision: Place | None
    preferences_split: Place
    preferences_eos: bool


@dataclass
class EmbeddedData(DataConfig):
    """Generated film-review openings."""

    kind = "embedded"
    generates = "openings of film reviews, in English"
    sft_reviews: Annotated[int, Range(1, 10**6)]  # half a minute's work
    labelled_reviews: Annotated[int, Range(2, 10**6)]


@dataclass
class ImdbData(DataConfig):
    """The Large Movie Review Dataset, or other reviews with labels."""

    kind = "imdb"
    hub_id: Place
    revision: Place
    path: Place | None
    text_column: Place
    label_column: Place
    br: Br
    min_characters: Annotated[int | None, Range(1, 10**6), LATER]
    prompt_splits: list[str]
    test_splits: list[str]
    sft_splits: list[str]
    labelled_splits: list[str]

    def check(self, at: str) -> None:
        """Refuse a list of splits that is empty."""
        for key in ("sft_splits", "prompt_splits", "test_splits", "labelled_splits"):
            if not getattr(self, key):
                raise ConfigError(f"{at}{key}=[] names no split; give some of train, test, unsupervised")


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "data/embedded": EmbeddedData,
    "data/imdb": ImdbData,
}
