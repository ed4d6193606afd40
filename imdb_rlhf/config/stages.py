"""The stages on the way to a policy: sampling, SFT, groups, pairs, the policy's training, evaluation, the reservoir."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.places import LATER, Place
from imdb_rlhf.config.ranges import BatchSize, Epochs, Range, Seed, Steps, Tokens, out_of_range
from imdb_rlhf.errors import ConfigError


@dataclass
class GenerationConfig:
    """How completions are sampled, everywhere."""

    max_new_tokens: Tokens
    shortest_limit: Tokens | None
    temperature: Annotated[float, Range(0.001, 100)]

    def check(self, at: str) -> None:
        """Refuse a shortest limit above the longest."""
        if self.shortest_limit is not None and self.shortest_limit > self.max_new_tokens:
            raise out_of_range(f"{at}shortest_limit", self.shortest_limit, Range(1, self.max_new_tokens))


@dataclass
class SFTConfig:
    """The reference policy."""

    path: Place | None
    revision: Place | None
    seed: Seed
    epochs: Epochs
    batch_size: BatchSize
    max_tokens: Annotated[int, Range(2, 10**6)]
    optim: OptimConfig


class Eos(StrEnum):
    """Whether a completion that was cut at the length limit is trained with an EOS that was never sampled."""

    sampled = "sampled"
    appended = "appended"


@dataclass
class GroupsConfig:
    """Groups: K completions of the reference for each training prompt."""

    seed: Seed
    k: Annotated[int, Range(2, 10_000)]
    eos: Eos
    batch_size: BatchSize


class Labels(StrEnum):
    """How the winner of a pair is drawn from the true rewards."""

    deterministic = "deterministic"
    bradley_terry = "bradley_terry"
    noisy = "noisy"


class Ties(StrEnum):
    """What becomes of a pair with equal rewards."""

    drop = "drop"
    random = "random"


class Order(StrEnum):
    """Whether the pairs of a prefix stay together in training."""

    prefix = "prefix"
    shuffled = "shuffled"


@dataclass
class PairsConfig:
    """Which pairs are drawn from the groups, and who wins them."""

    prompts: Annotated[int | None, Range(1, 10**9)]
    labels: Labels
    tau: Annotated[float | None, Range(0, 1000, above=True)]
    noise: Annotated[float | None, Range(0, 0.5)]
    min_margin: Annotated[float, Range(0, 1000)]
    ties: Ties
    order: Order

    def check(self, at: str) -> None:
        """Refuse a key that has no effect beside the others, or one that they need."""
        if self.ties == Ties.random and self.min_margin > 0:
            raise ConfigError(
                f"{at}ties=random has no effect: {at}min_margin={self.min_margin} drops every tie; set it to 0"
            )
        if self.tau is not None and self.labels != Labels.bradley_terry:
            raise ConfigError(
                f"{at}tau={self.tau} is used by {at}labels=bradley_terry alone; drop it or set the labels"
            )
        if self.noise is not None and self.labels != Labels.noisy:
            raise ConfigError(f"{at}noise={self.noise} is used by {at}labels=noisy alone; drop it or set the labels")
        if self.noise is None and self.labels == Labels.noisy:
            raise ConfigError(
                f"{at}labels=noisy needs {at}noise, the share of flipped labels; for example {at}noise=0.1"
            )


@dataclass
class PolicyConfig:
    """The training of the policy."""

    epochs: Epochs
    steps: Steps | None
    batch_size: BatchSize
    precision: Annotated[PolicyPrecision | None, LATER]
    optim: OptimConfig


@dataclass
class EvaluationConfig:
    """Reward and KL on the validation and test prompts."""

    seed: Seed
    samples: Annotated[int, Range(1, 100_000)]
    every: Steps
    batch_size: BatchSize
    bootstrap: Annotated[int, Range(100, 10**6)]
    confidence: Annotated[float, Range(0.5, 0.9999)]


@dataclass
class ReservoirConfig:
    """The reservoir: M reference samples per prompt, for the validation and test prompts."""

    seed: Seed
    samples: Annotated[int, Range(2, 10**6)]
    batch_size: BatchSize
