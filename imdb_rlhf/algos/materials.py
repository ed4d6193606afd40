"""What an algorithm is made from: models, data and a score, put together by the pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime

# (prompts, completions) as token rows -> (n,) float rewards
Score = Callable[[list[list[int]], list[list[int]]], np.ndarray]


@dataclass(frozen=True)
class Materials:
    """What every algorithm may take from; each uses what it needs.

    Attributes:
        policy: a fresh copy of the reference, to be trained.
        reference: frozen.
        runtime: device, precision and processes.
        groups: the artifact of groups, where the algorithm learns from one.
        prompts: training prompts as token rows, for an algorithm that samples its own completions.
        score: what such an algorithm optimises.
        kl_coefficient: reward a nat; what it begins with.
    """

    policy: Policy
    reference: PreTrainedModel
    runtime: Runtime
    groups: Path | None
    prompts: list[list[int]]
    score: Score | None
    kl_coefficient: float | None
