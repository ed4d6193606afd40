"""Rewards: texts to scores. Nothing in this room trains anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Scores of n texts on both scales, which are never mixed.

    Attributes:
        reward: (n,) float64, the reporting scale: p(positive) in [0, 1] for every built-in reward.
        logit: (n,) float64, log-odds of positive: the ranking scale, which does not saturate.
    """

    reward: np.ndarray
    logit: np.ndarray


class Reward(Protocol):
    """Anything that scores decoded prompt + completion."""

    def score(self, texts: Sequence[str]) -> Scores:
        """Score each text; deterministic, and independent of the other texts up to rounding."""
        ...


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """p(positive) of log-odds, (n,) float64, without overflow."""
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1 / (1 + small), small / (1 + small))
