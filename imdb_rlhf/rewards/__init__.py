"""Rewards: texts to scores. Nothing in this room trains anything.

A kind of reward is a module of this room whose name is the `kind` of its configuration class (`config/reward.py`); it
has a class `Kind`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np
import torch

from imdb_rlhf.config.reward import RewardConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.kinds import load_kind


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


C = TypeVar("C", bound=RewardConfig)


class RewardKind(ABC, Generic[C]):
    """What the rest of the package knows of a kind of true reward.

    Attributes:
        trained: whether a stage trains it from labelled reviews.
        compared: whether texts of a reused artifact are scored again and compared, because scores may depend on what
            `identity` cannot know.
        range: infimum and supremum of the reporting scale; infinite where nothing is known.
        config: its configuration.
    """

    trained: ClassVar[bool] = False
    compared: ClassVar[bool] = False
    range: tuple[float, float] = (0.0, 1.0)

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def range_place(self) -> str:
        """Where `range` is stated, for messages."""
        return f"`range` in {type(self).__module__}"

    @property
    def held_out(self) -> int:
        """Labelled reviews that a trained reward is measured on."""
        return 0

    def check(self) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse a reward that cannot be found or read, before any work.

        Raises:
            RunError: naming the key and the way out.
        """

    @abstractmethod
    def identity(self, key: str | None) -> Any:
        """Return everything that scores depend on: what the keys of scored artifacts hash.

        Args:
            key: of the artifact that holds a trained reward; None for one that no stage trains.
        """

    @abstractmethod
    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Return the reward, ready to score.

        Args:
            device: where its model goes.
            artifact: the folder of a trained reward; None for one that no stage trains.

        Raises:
            RunError: it cannot be loaded.
        """


# Larger scores overflow where they are squared and summed.
LARGEST = 1e100


class CheckedReward:
    """A reward whose scores are checked: one per text, finite, and within the range that its kind says."""

    def __init__(self, reward: Any, kind: RewardKind[Any]) -> None:
        """Take a reward as `RewardKind.open` returns it.

        Raises:
            RunError: it cannot score.
        """
        self.kind, self.name = kind, f"reward={kind.config.name}"
        if not callable(getattr(reward, "score", None)):
            raise RunError(f"{type(kind).__module__}.Kind.open returns {reward!r}, which has no method score")
        self.reward: Reward = reward

    def score(self, texts: Sequence[str]) -> Scores:
        """Score each text.

        Raises:
            RunError: another count of scores, or one that is not finite or out of range.
        """
        scores = self.reward.score(texts)
        if not isinstance(scores, Scores):
            raise RunError(f"{self.name} gave {type(scores).__name__} instead of Scores; return both scales")
        scores = Scores(np.asarray(scores.reward, np.float64), np.asarray(scores.logit, np.float64))
        for scale in (scores.reward, scores.logit):
            if np.shape(scale) != (len(texts),):
                raise RunError(f"{self.name} gave shape {np.shape(scale)} for {len(texts)} texts; return one per text")
            self._refuse(texts, scale, ~np.isfinite(scale), "return finite numbers")
            self._refuse(texts, scale, np.abs(scale) > LARGEST, f"return numbers between -{LARGEST:g} and {LARGEST:g}")
        low, high = self.kind.range
        outside = (scores.reward < low) | (scores.reward > high)
        way_out = f"its range is {low:g} to {high:g}: mend {self.kind.range_place}, or the reward"
        self._refuse(texts, scores.reward, outside, way_out)
        return scores

    def _refuse(self, texts: Sequence[str], scale: np.ndarray, bad: np.ndarray, way_out: str) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise RunError(f"{self.name} gave {scale[at]:g} for the text {texts[at][:60]!r}; {way_out}")


def kind_of(config: RewardConfig) -> RewardKind[Any]:
    """Return the kind of reward that a configuration is of.

    Raises:
        RunError: its module is missing or cannot be used.
    """
    kind = cast(RewardKind[Any], load_kind("imdb_rlhf.rewards", config, RewardKind))
    ends: Any = kind.range
    numbers = isinstance(ends, tuple) and all(isinstance(end, int | float) for end in ends)
    if not (numbers and len(ends) == 2 and ends[0] < ends[1]):
        raise RunError(
            f"{type(kind).__module__}.Kind has range {ends}; give two numbers, the smaller one first, math.inf for none"
        )
    return kind


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """p(positive) of log-odds, (n,) float64, without overflow."""
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1 / (1 + small), small / (1 + small))
