"""Best-of-N, the optimum and intervals from plain arrays: the same estimates as a frontier's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from imdb_rlhf.errors import ConfigError
from imdb_rlhf.evaluation import best_of_n as estimates
from imdb_rlhf.evaluation import stats
from imdb_rlhf.frontier import bounds

GRID = 120  # points of an optimum's curves
SEED, RESAMPLES, CONFIDENCE = 0, 2000, 0.95


def best_of_n(
    rewards: ArrayLike,
    selector: ArrayLike | None = None,
    *,
    n: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> pd.DataFrame:
    """What the best of N samples of the reference earns, for every N, from M samples per prompt.

    Args:
        rewards: (prompts, M) of samples of the reference.
        selector: (prompts, M) the score that picks the best; None is the reward itself.
        n: which N; None is 1 to M.
        confidence: of the intervals.
        resamples: of the prompts.
        seed: of the resamples.

    Returns:
        A row per N: `n`, `reward` (unbiased), `reward_low`, `reward_high`, `kl` (the upper bound log N - (N-1)/N,
        nats) and `kl_atom` (an estimate: samples tied with the best are one atom).

    Raises:
        ConfigError: the arrays cannot be used, or an N is outside 1..M.
    """
    values = _table(rewards, "rewards")
    picks = values if selector is None else _table(selector, "selector")
    _alike(values, picks, "rewards", "selector")
    ns = list(range(1, values.shape[1] + 1)) if n is None else [int(each) for each in n]
    if not ns or min(ns) < 1 or max(ns) > values.shape[1]:
        raise ConfigError(f"n={ns} is outside of 1 to {values.shape[1]}, the samples per prompt; give numbers within")
    means = estimates.curve(picks, values, ns)  # (N, prompts)
    low, high = stats.percentile(_weights(len(values), confidence, resamples, seed) @ means.T, confidence)
    mass = estimates.top_mass(picks)
    atom = np.where(mass > 1 / values.shape[1], mass, 0.0)  # a single best sample is no tie
    return pd.DataFrame(
        {
            "n": ns,
            "reward": means.mean(1),
            "reward_low": low,
            "reward_high": high,
            "kl": [estimates.kl_bound(each) for each in ns],
            "kl_atom": [float(np.mean(estimates.kl_bound_atom(each, atom))) for each in ns],
        }
    )


@dataclass(frozen=True)
class Optimum:
    """The most reward that any policy can have at each KL, between two bounds.

    Attributes:
        curves: columns `kl` (nats), `lower`, `lower_low`, `lower_high`, `upper`, `upper_low`, `upper_high`.
        trusted_kl: nats up to which there are enough samples for tight bounds.
    """

    curves: pd.DataFrame
    trusted_kl: float

    def to_frame(self) -> pd.DataFrame:
        """The curves."""
        return self.curves.copy()


def optimum(
    rewards: ArrayLike,
    kl: ArrayLike | None = None,
    *,
    largest: float = float("inf"),
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Optimum:
    """Bound the optimum of reward against KL from M samples of the reference per prompt.

    The lower curve is that of policies that can be run, the upper one is weak duality: docs/frontier.md.

    Args:
        rewards: (prompts, M) of samples of the reference.
        kl: nats, ascending from 0; None is a grid up to 1.5 log M.
        largest: the supremum of the reward, such as 1 for a probability.
        confidence: of the intervals.
        resamples: of the prompts.
        seed: of the resamples.

    Raises:
        ConfigError: the arrays cannot be used, or a reward is above the largest.
    """
    values = _table(rewards, "rewards")
    if kl is None:
        grid = np.concatenate([[0.0], np.geomspace(0.01, max(1.5 * np.log(values.shape[1]), 1.0), GRID)])
    else:
        grid = np.asarray(kl, dtype=np.float64)
        if grid.ndim != 1 or len(grid) < 2 or not np.isfinite(grid).all():
            raise ConfigError("kl is no list of at least two finite numbers; give a grid that ascends from 0")
    try:
        found = bounds.optimum_bounds(values, grid, _weights(len(values), confidence, resamples, seed), float(largest))
    except ValueError as error:
        raise ConfigError(f"{error}; mend rewards, kl or largest") from error
    columns: dict[str, Any] = {"kl": found.kl}
    for name in ("lower", "upper"):
        columns[name] = getattr(found, name)
        columns[f"{name}_low"], columns[f"{name}_high"] = stats.percentile(getattr(found, f"{name}_draws"), confidence)
    return Optimum(pd.DataFrame(columns), found.trusted_kl)


def interval(
    values: ArrayLike, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The interval of a mean over prompts: a percentile bootstrap that draws prompts.

    Args:
        values: (prompts,), or (prompts, samples), whose mean over samples is taken first.
        confidence: its coverage.
        resamples: of the prompts.
        seed: equal seeds draw equal prompts, so that intervals of two models are comparable.

    Raises:
        ConfigError: the array cannot be used.
    """
    _check_interval(confidence, resamples)
    return stats.bootstrap_mean(_prompts(values, "values"), resamples, confidence, seed)


def seed_interval(
    values: ArrayLike, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The interval of a mean over prompts and training seeds, whose models were evaluated on the same prompts.

    With fewer than 3 seeds it covers prompts alone; the method is `evaluation.stats.over_seeds`.

    Args:
        values: (seeds, prompts) mean over samples.
        confidence: its coverage.
        resamples: of the prompts.
        seed: of the resamples.

    Raises:
        ConfigError: the array cannot be used.
    """
    table = _table(values, "values")
    draws = table @ _weights(table.shape[1], confidence, resamples, seed).T
    return stats.over_seeds(table.mean(1), draws, confidence, table.shape[1], seed)


@dataclass(frozen=True)
class Difference:
    """The first mean minus the second.

    Attributes:
        estimate: the difference.
        ci: [low, high].
        p: two-sided, of no difference.
    """

    estimate: float
    ci: tuple[float, float]
    p: float


def difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Compare two methods that were evaluated on the same prompts; the test is paired over prompts.

    Args:
        first: (prompts,) or (seeds, prompts), mean over samples.
        second: likewise; its seeds may be others.
        confidence: of the interval.
        resamples: of the prompts.
        seed: of the resamples.

    Raises:
        ConfigError: the arrays cannot be used, or have other prompts.
    """
    one, other = (
        _table(np.atleast_2d(np.asarray(values)), name) for values, name in ((first, "first"), (second, "second"))
    )
    if one.shape[1] != other.shape[1]:
        raise ConfigError(
            f"first has {one.shape[1]} prompts and second {other.shape[1]}; give values of the same prompts"
        )
    weights = _weights(one.shape[1], confidence, resamples, seed).T
    sides = one.mean(1), one @ weights, other.mean(1), other @ weights
    ends = stats.difference_interval(*sides, confidence, one.shape[1])
    return Difference(float(one.mean() - other.mean()), ends, stats.two_sided_p(*sides, one.shape[1]))


# --- arrays, checked ----------------------------------------------------------------------------------------------


def _table(values: ArrayLike, name: str) -> np.ndarray:
    """A table of finite numbers, float64."""
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is no table of numbers; give rows of one length") from error
    if table.ndim != 2 or not table.size:
        raise ConfigError(f"{name} has shape {table.shape}; give a table with at least one row and one column")
    if not np.isfinite(table).all():
        raise ConfigError(f"{name} holds a number that is nan or infinite; leave no gap")
    return table


def _prompts(values: ArrayLike, name: str) -> np.ndarray:
    """(prompts,) a number per prompt."""
    array = np.asarray(values, dtype=np.float64)
    return _table(array[:, None] if array.ndim == 1 else array, name).mean(1)


def _alike(one: np.ndarray, other: np.ndarray, name: str, other_name: str) -> None:
    if one.shape != other.shape:
        raise ConfigError(
            f"{name} has shape {one.shape} and {other_name} {other.shape}; give scores of the same samples"
        )


def _weights(prompts: int, confidence: float, resamples: int, seed: int) -> np.ndarray:
    _check_interval(confidence, resamples)
    return stats.resamples(prompts, resamples, seed)


def _check_interval(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} is no share; give one above 0 and below 1, such as 0.95")
    if resamples < 100:
        raise ConfigError(f"resamples={resamples} is too few for an interval; give at least 100")
