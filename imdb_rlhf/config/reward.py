"""Rewards: the kinds of true reward, and the reward model that is trained to stand in for it."""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Annotated, ClassVar

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.places import Place, Places
from imdb_rlhf.config.ranges import BatchSize, Epochs, Range, Seed
from imdb_rlhf.errors import ConfigError


class RewardSource(StrEnum):
    """Which reward a method optimises or selects by: the reward model's or the true one."""

    learned = "learned"
    ground_truth = "ground_truth"


class Init(StrEnum):
    """Which weights the training of a reward starts from: the reference policy's, or the model's own."""

    sft = "sft"
    base = "base"


# --- the true reward --------------------------------------------------------------------------------------------------


@dataclass
class RewardConfig:
    """What every true reward has; `kind` is the module of `imdb_rlhf.rewards` that computes it."""

    kind: ClassVar[str]
    name: str

    @property
    def starts_from(self) -> Init | None:
        """Which weights its training starts from; None for a reward that no stage trains."""
        return None

    @property
    def training_batch_size(self) -> int | None:
        """Reviews per step of its training; None for a reward that no stage trains."""
        return None


@dataclass
class LexiconReward(RewardConfig):
    """The log-odds of the generated world."""

    kind = "lexicon"


class Ranking(StrEnum):
    """Which number of a two-label classifier is the ranking scale."""

    log_odds = "log_odds"
    positive_logit = "positive_logit"


@dataclass
class ClassifierReward(RewardConfig):
    """A Hugging Face sequence classifier by Hub id or folder."""

    kind = "classifier"
    path: Place
    revision: Place | None
    positive_label: str | None
    ranking: Ranking
    batch_size: BatchSize


class Crop(StrEnum):
    """Where in a review the crops start that a two-label reward is trained on."""

    opening = "opening"
    anywhere = "anywhere"
    mixed = "mixed"


class Positions(StrEnum):
    """At which tokens of a crop a two-label reward is trained to predict the label."""

    last = "last"
    second_half = "second_half"


@dataclass
class TwoLabelReward(RewardConfig):
    """A two-label head that a stage fine-tunes on labelled reviews."""

    kind = "two_label"
    seed: Seed
    init: Init
    epochs: Epochs
    batch_size: BatchSize
    crop: Crop
    positions: Positions
    dropout: Annotated[float, Range(0, 0.9)]
    lm_weight: Annotated[float, Range(0, 1000)]
    held_out: Annotated[int, Range(2, 10**8)]
    score_batch_size: BatchSize
    optim: OptimConfig

    @property
    def starts_from(self) -> Init | None:
        """As configured."""
        return self.init

    @property
    def training_batch_size(self) -> int | None:
        """As configured."""
        return self.batch_size


@dataclass
class OwnReward(RewardConfig):
    """A user's own function."""

    kind = "own"
    function: Place
    files: Places
    range: list[float]

    def check(self, at: str) -> None:
        """Refuse what does not name a function in a file, and a range without a smaller and a larger end."""
        if self.range and not (
            len(self.range) == 2 and self.range[0] < self.range[1] and all(map(isfinite, self.range))
        ):
            raise ConfigError(f"{at}range={self.range} is no range; give two numbers, the smaller one first: [0,1]")
        file, _, name = self.function.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ConfigError(f"{at}function={self.function} is not of the form file.py:name")


# --- the reward model -------------------------------------------------------------------------------------------------


class Objective(StrEnum):
    """The examples that a reward model is trained on."""

    pairs = "pairs"
    best_of_k = "best_of_k"


@dataclass
class RewardModelConfig:
    """The reward model: a scalar head that learns from groups which completion is better."""

    seed: Seed
    init: Init
    objective: Objective
    epochs: Epochs
    batch_size: BatchSize
    validation: Annotated[float, Range(0, 0.5, above=True)]
    evaluations: Annotated[int, Range(1, 10_000)]
    optim: OptimConfig


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "reward/lexicon": LexiconReward,
    "reward/classifier": ClassifierReward,
    "reward/two_label": TwoLabelReward,
    "reward/own": OwnReward,
}
