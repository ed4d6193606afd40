"""Optimizers and the schedule of the learning rate."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from imdb_rlhf.config.ranges import Decay, Range


class Schedule(StrEnum):
    """The learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class OptimConfig:
    """What every optimizer has; `moments` is how many numbers it keeps of each weight."""

    moments: ClassVar[int]
    name: str
    lr: Annotated[float, Range(0, 1000, above=True)]
    warmup_steps: Annotated[int, Range(0, 10**9)]
    schedule: Schedule
    max_grad_norm: Annotated[float | None, Range(0, 10**6, above=True)]


@dataclass
class AdamWConfig(OptimConfig):
    """torch.optim.AdamW."""

    moments = 2
    beta1: Decay
    beta2: Decay
    eps: Annotated[float, Range(0, 1, above=True)]
    weight_decay: Annotated[float, Range(0, 100)]


@dataclass
class RMSpropConfig(OptimConfig):
    """torch.optim.RMSprop without momentum."""

    moments = 1
    alpha: Decay
    eps: Annotated[float, Range(0, 1, above=True)]


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "optim/adamw": AdamWConfig,
    "optim/rmsprop": RMSpropConfig,
}
