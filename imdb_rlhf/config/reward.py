"""Kinds of true reward."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ranges import number
from imdb_rlhf.config.stages import Init


class Ranking(StrEnum):
    """Which number of a two-label classifier is its ranking scale."""

    log_odds = "log_odds"
    positive_logit = "positive_logit"


class Crop(StrEnum):
    """Where the crops that a two-label reward is trained on start."""

    opening = "opening"
    anywhere = "anywhere"
    mixed = "mixed"


class Positions(StrEnum):
    """Where in a crop a two-label reward is trained to predict the label."""

    last = "last"
    second_half = "second_half"


@dataclass
class RewardConfig:
    """What every true reward has; `kind` is the module of `imdb_rlhf.rewards` that computes it."""

    kind: ClassVar[str]
    name: str


@dataclass
class LexiconReward(RewardConfig):
    """The log-odds of the generated world."""

    kind = "lexicon"


@dataclass
class ClassifierReward(RewardConfig):
    """A Hugging Face sequence classifier by Hub id or folder."""

    kind = "classifier"
    path: str
    revision: str | None
    positive_label: str | None
    ranking: Ranking
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "batch_size", at, 1)


@dataclass
class TwoLabelReward(RewardConfig):
    """A two-label head that a stage fine-tunes on labelled reviews."""

    kind = "two_label"
    seed: int
    init: Init
    epochs: float
    batch_size: int
    crop: Crop
    positions: Positions
    dropout: float
    lm_weight: float
    held_out: int
    score_batch_size: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "epochs", at, 0, above=True)
        number(self, "batch_size", at, 1)
        number(self, "score_batch_size", at, 1)
        number(self, "held_out", at, 2)
        number(self, "dropout", at, 0, 0.9)
        number(self, "lm_weight", at, 0)


@dataclass
class OwnReward(RewardConfig):
    """A user's own function."""

    kind = "own"
    function: str


# Where conf/ names these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "reward/lexicon": LexiconReward,
    "reward/classifier": ClassifierReward,
    "reward/two_label": TwoLabelReward,
    "reward/own": OwnReward,
}
