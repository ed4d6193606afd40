"""Optimizers and the learning rate's schedule."""

from dataclasses import dataclass
from enum import StrEnum

from imdb_rlhf.config.ranges import number


class Schedule(StrEnum):
    """The learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class OptimConfig:
    """What every optimizer has."""

    name: str
    lr: float
    warmup_steps: int
    schedule: Schedule
    max_grad_norm: float | None

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        number(self, "lr", at, 0, above=True)
        number(self, "warmup_steps", at, 0)
        number(self, "max_grad_norm", at, 0, above=True)


@dataclass
class AdamWConfig(OptimConfig):
    """torch.optim.AdamW."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        number(self, "beta1", at, 0, 0.999999)
        number(self, "beta2", at, 0, 0.999999)
        number(self, "eps", at, 0, above=True)
        number(self, "weight_decay", at, 0)


@dataclass
class RMSpropConfig(OptimConfig):
    """torch.optim.RMSprop without momentum."""

    alpha: float
    eps: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        number(self, "alpha", at, 0, 0.999999)
        number(self, "eps", at, 0, above=True)


# Where conf/ names these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "optim/adamw": AdamWConfig,
    "optim/rmsprop": RMSpropConfig,
}
