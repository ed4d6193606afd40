"""Which reviews, and how many prompts of each kind."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from imdb_rlhf.config.ranges import number
from imdb_rlhf.errors import ConfigError


class Br(StrEnum):
    """What becomes of `<br />` in real reviews."""

    keep = "keep"
    newline = "newline"


@dataclass
class PromptsConfig:
    """How many prompts of each kind, and how long."""

    train: int
    validation: int
    test: int
    min_tokens: int
    max_tokens: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("train", "validation", "test", "min_tokens"):
            number(self, key, at, 1)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"data.prompts.min_tokens={self.min_tokens} is above data.prompts.max_tokens={self.max_tokens}; "
                "lower the one or raise the other"
            )


@dataclass
class DataConfig:
    """What every dataset has; `kind` is the module of `imdb_rlhf.data` that reads it."""

    kind: ClassVar[str]
    name: str
    seed: int
    sft_reviews: int
    prompts: PromptsConfig
    preferences: str | None
    preferences_eos: bool

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "sft_reviews", at, 1)


@dataclass
class EmbeddedData(DataConfig):
    """Generated film-review openings."""

    kind = "embedded"
    labelled_reviews: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        number(self, "labelled_reviews", at, 2)


@dataclass
class ImdbData(DataConfig):
    """The Large Movie Review Dataset in the Hub's parquet layout."""

    kind = "imdb"
    hub_id: str
    revision: str
    path: str | None
    br: Br
    prompt_splits: list[str]
    test_splits: list[str]
    sft_splits: list[str]
    labelled_splits: list[str]

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        for key in ("sft_splits", "prompt_splits", "test_splits", "labelled_splits"):
            if not getattr(self, key):
                raise ConfigError(f"{at}{key}=[] names no split; give some of train, test, unsupervised")


# Where conf/ names these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "data/embedded": EmbeddedData,
    "data/imdb": ImdbData,
}
