"""A method's curve of reward over KL: which checkpoints are its corners, and the reward that it reaches at a budget.

A curve begins at the reference (KL 0) and joins checkpoints by straight lines. A point between two policies is their
mixture, which draws one of the two for each completion: its reward is the mean of theirs, and its KL is at most the
mean of theirs, since KL is convex. Past the last checkpoint the curve is flat: a budget need not be spent.

The checkpoints are chosen on validation prompts, as the corners of the upper concave hull there, and reported on test
prompts. If they were chosen and reported on the same prompts, a curve would profit from its own noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """A method's curve from the runs of one training seed.

    Attributes:
        kl: (corners,) nats, the reference first.
        reward: (corners,).
        kl_draws: (count, corners) the same on each resample of the prompts.
        reward_draws: (count, corners).
    """

    kl: np.ndarray
    reward: np.ndarray
    kl_draws: np.ndarray
    reward_draws: np.ndarray

    def at(self, budgets: np.ndarray) -> np.ndarray:
        """(budgets,) the reward at each budget of KL."""
        return _along(budgets, self.kl, self.reward)

    def draws_at(self, budgets: np.ndarray) -> np.ndarray:
        """(count, budgets) the same on each resample."""
        return np.array([_along(budgets, *pair) for pair in zip(self.kl_draws, self.reward_draws, strict=True)])


def corners(kl: Sequence[float], reward: Sequence[float], start: float) -> list[int]:
    """Find the corners of the upper concave hull of all points and the reference, in the order of KL.

    Args:
        kl: of each point, nats.
        reward: of each point.
        start: the reference's reward, at KL 0.

    Returns:
        Indices of points, up to the one with the highest reward; none if no point is above the reference.
    """
    order = sorted(range(len(kl)), key=lambda i: (kl[i], -reward[i]))
    hull: list[tuple[float, float, int]] = [(0.0, start, -1)]
    for i in order:
        if reward[i] <= max(point[1] for point in hull) or kl[i] <= 0:
            continue  # more KL for no more reward
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], (kl[i], reward[i], i)):
            hull.pop()
        hull.append((kl[i], reward[i], i))
    return [i for _, _, i in hull[1:]]


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else np.inf


def _along(budgets: np.ndarray, kl: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Linear between corners, flat past the last; on a resample two corners may have changed order."""
    return np.interp(budgets, np.maximum.accumulate(kl), reward)


def area(budgets: np.ndarray, reward: np.ndarray, start: float | np.ndarray) -> np.ndarray:
    """Mean reward above the reference's over a range of budgets: the area over [0, K], divided by K.

    Args:
        budgets: (G,) ascending, from 0 to K.
        reward: (..., G).
        start: (...) or a number, the reference's reward.
    """
    above = reward - np.asarray(start)[..., None]
    return np.trapezoid(above, budgets, axis=-1) / (budgets[-1] - budgets[0])
