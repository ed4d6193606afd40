"""What the stages on the way to a policy take: sampling, SFT, groups, pairs, the reward model, evaluation."""

from dataclasses import dataclass
from enum import StrEnum

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ranges import number
from imdb_rlhf.errors import ConfigError


class Labels(StrEnum):
    """How the winner of a pair is drawn from the true rewards."""

    deterministic = "deterministic"
    bradley_terry = "bradley_terry"
    noisy = "noisy"


class Order(StrEnum):
    """Whether the pairs of a prefix stay together in training."""

    prefix = "prefix"
    shuffled = "shuffled"


class Ties(StrEnum):
    """What becomes of a pair with equal rewards."""

    drop = "drop"
    random = "random"


class Eos(StrEnum):
    """Whether a completion that was cut at the length limit is trained with an EOS that was never sampled."""

    sampled = "sampled"
    appended = "appended"


class Init(StrEnum):
    """Which weights a reward starts from."""

    sft = "sft"
    base = "base"


class Objective(StrEnum):
    """What a reward model is trained on."""

    pairs = "pairs"
    best_of_k = "best_of_k"


@dataclass
class GenerationConfig:
    """How completions are sampled, everywhere."""

    max_new_tokens: int
    shortest_limit: int | None
    temperature: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "max_new_tokens", at, 1)
        number(self, "shortest_limit", at, 1, self.max_new_tokens)
        number(self, "temperature", at, 0, above=True)


@dataclass
class SFTConfig:
    """The reference policy."""

    path: str | None
    revision: str | None
    seed: int
    epochs: float
    batch_size: int
    max_tokens: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "epochs", at, 0, above=True)
        number(self, "batch_size", at, 1)
        number(self, "max_tokens", at, 2)


@dataclass
class GroupsConfig:
    """K reference completions for each training prompt."""

    seed: int
    k: int
    eos: Eos
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "k", at, 2)
        number(self, "batch_size", at, 1)


@dataclass
class PairsConfig:
    """Which pairs are drawn from the groups, and who wins them."""

    labels: Labels
    tau: float | None
    noise: float | None
    min_margin: float
    ties: Ties
    order: Order

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "tau", at, 0, above=True)
        number(self, "noise", at, 0, 0.5)
        number(self, "min_margin", at, 0)
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

    epochs: float
    steps: int | None
    batch_size: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "epochs", at, 0, above=True)
        number(self, "steps", at, 1)
        number(self, "batch_size", at, 1)


@dataclass
class EvaluationConfig:
    """Reward and KL on the validation and test prompts."""

    seed: int
    samples: int
    every: int
    batch_size: int
    bootstrap: int
    confidence: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "samples", at, 1)
        number(self, "every", at, 1)
        number(self, "batch_size", at, 1)
        number(self, "bootstrap", at, 100)
        number(self, "confidence", at, 0.5, 0.9999)


@dataclass
class RewardModelConfig:
    """The learned reward."""

    seed: int
    init: Init
    objective: Objective
    epochs: float
    batch_size: int
    validation: float
    evaluations: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "epochs", at, 0, above=True)
        number(self, "batch_size", at, 1)
        number(self, "validation", at, 0, 0.5, above=True)
        number(self, "evaluations", at, 1)


@dataclass
class ReservoirConfig:
    """M reference samples of each evaluation prompt."""

    seed: int
    samples: int
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "samples", at, 2)
        number(self, "batch_size", at, 1)
