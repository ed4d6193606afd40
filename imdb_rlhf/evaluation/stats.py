"""Statistics of evaluations: intervals and tests over prompts and over training seeds, win rates, distinct n-grams."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

from imdb_rlhf.seeds import generator

LEAST_SEEDS = 3  # intervals of fewer seeds are over prompts alone
LEAST_TAIL = 1e-50  # a p-value below twice this is 0
MANY_SEEDS = 10  # from this number on seeds are resampled too


def prompt_means(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(prompts,) the mean over the samples of each prompt, in the order of prompt ids."""
    return frame.groupby("prompt_id", sort=True)[column].mean().to_numpy(dtype=np.float64)


def bootstrap_mean(values: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (prompts,) one number per prompt.
        resamples: the number of resamples of the prompts, drawn with replacement.
        confidence: coverage, e.g. 0.95.
        seed: equal seeds draw equal prompts, so that intervals of two policies are comparable.

    Returns:
        The interval's ends.
    """
    means = np.concatenate([values[drawn].mean(1) for drawn in _drawn(len(values), resamples, seed)])
    low, high = np.quantile(means, _ends(confidence))
    return float(low), float(high)


def _drawn(prompts: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the drawn prompts, (count, prompts), in blocks that fit into memory."""
    random = generator(seed, "bootstrap")
    for at in range(0, count, 200):
        yield random.integers(0, prompts, size=(min(200, count - at), prompts))


def _ends(confidence: float) -> list[float]:
    tail = (1 - confidence) / 2
    return [tail, 1 - tail]


def resamples(prompts: int, count: int, seed: int) -> np.ndarray:
    """(count, prompts) the share of each prompt in each resample; rows sum to 1.

    These are the draws of `bootstrap_mean` with the same seed: `resamples(...) @ values` are its means. If several
    policies, or several columns of one, share them, differences are paired.
    """
    shares = np.zeros((count, prompts))
    at = 0
    for drawn in _drawn(prompts, count, seed):
        for row in drawn:
            shares[at] = np.bincount(row, minlength=prompts) / prompts
            at += 1
    return shares


def percentile(draws: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """The central interval of the draws.

    Args:
        draws: (count,) or (count, n), one row per resample.
        confidence: the share of the draws that it holds, e.g. 0.95.

    Returns:
        The interval's ends: two numbers, or (n,) each.
    """
    low, high = np.quantile(draws, _ends(confidence), axis=0)
    return (float(low), float(high)) if draws.ndim == 1 else (low, high)


# --- training seeds


def over_seeds(
    estimates: np.ndarray, draws: np.ndarray, confidence: float, prompts: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean over training seeds, whose policies were evaluated on the same prompts.

    - Fewer than 3 seeds: percentiles over prompts alone; the interval does not cover other seeds.
    - 3 to 9: a t-interval with the variance of seeds and prompts together; its quantile: see `_Spread.quantile`.
    - 10 and more: a hierarchical bootstrap, which draws prompts and then seeds. A bootstrap of few seeds is too narrow
      (where seeds matter most, that of 3 covers 75 % instead of 95 %, that of 10 still 90 %), so its draws are widened
      to the t-interval's width (as Hesterberg 2015, arXiv 1411.5279, expands percentiles).

    Args:
        estimates: (seeds,) one number per training seed.
        draws: (seeds, count) the estimates on resamples of the prompts, which all seeds share.
        confidence: coverage, e.g. 0.95.
        prompts: the number of prompts.
        seed: of the random numbers that draw training seeds.

    Returns:
        The interval's ends.

    Raises:
        ValueError: there is no seed, or `draws` has another number of rows than seeds.
    """
    _check_seeds(estimates, draws)
    of_mean = draws.mean(0)
    spread_of_mean = _spread([(estimates, draws)], of_mean, prompts)
    if len(estimates) < LEAST_SEEDS:
        return percentile(of_mean, confidence)
    variance, quantile = spread_of_mean.variance, spread_of_mean.quantile((1 - confidence) / 2)
    mean = float(estimates.mean())
    if len(estimates) < MANY_SEEDS:
        reach = quantile * float(np.sqrt(variance))
        return mean - reach, mean + reach
    drawn = generator(seed, "bootstrap_seeds").integers(0, len(estimates), size=(len(of_mean), len(estimates)))
    # the mean of drawn seeds varies by `spread`; it is scaled to `added`, the variance that seeds add to the prompts'
    added, spread = variance - of_mean.var(ddof=1), estimates.var() / len(estimates)
    scale = np.sqrt(added / spread) if spread > 0 else 0.0
    away = of_mean - of_mean.mean() + scale * (estimates[drawn].mean(1) - mean)
    return percentile(mean + quantile / float(ndtri((1 + confidence) / 2)) * away, confidence)


def two_sided_p(
    first: np.ndarray, first_draws: np.ndarray, second: np.ndarray, second_draws: np.ndarray, prompts: int
) -> float:
    """The p-value of two methods having the same mean: a t-test with the variance of `over_seeds`.

    The test is paired over prompts, since all draws are of the same resamples; training seeds are independent. Seeds
    add no variance on a side that has fewer than 3.

    Args:
        first: (seeds,) estimates of one method.
        first_draws: (seeds, count) its estimates on resamples of the prompts.
        second: (other seeds,) estimates of the other method.
        second_draws: (other seeds, count) its estimates on the same resamples.
        prompts: the number of prompts.

    Returns:
        The p-value. If there is no spread at all it is 1 for equal means and 0 for others.

    Raises:
        ValueError: a side has no seed, or its draws have another number of rows than seeds.
    """
    difference, spread = _difference(first, first_draws, second, second_draws, prompts)
    if spread.variance == 0:
        return 1.0 if difference == 0 else 0.0
    away = abs(difference) / float(np.sqrt(spread.variance))
    if away >= spread.quantile(LEAST_TAIL):
        return 0.0
    # the tail on each side at which the interval just touches 0
    tail = brentq(lambda log_tail: spread.quantile(float(np.exp(log_tail))) - away, np.log(LEAST_TAIL), np.log(0.5))
    return float(min(2 * np.exp(tail), 1.0))


def difference_interval(
    first: np.ndarray,
    first_draws: np.ndarray,
    second: np.ndarray,
    second_draws: np.ndarray,
    confidence: float,
    prompts: int,
) -> tuple[float, float]:
    """The t-interval of the first mean minus the second; 0 is outside exactly if `two_sided_p` < 1 - confidence.

    Args:
        first: as in `two_sided_p`.
        first_draws: as in `two_sided_p`.
        second: as in `two_sided_p`.
        second_draws: as in `two_sided_p`.
        confidence: coverage, e.g. 0.95.
        prompts: the number of prompts.

    Returns:
        The interval's ends.
    """
    difference, spread = _difference(first, first_draws, second, second_draws, prompts)
    reach = float(np.sqrt(spread.variance)) * spread.quantile((1 - confidence) / 2)
    return difference - reach, difference + reach


def _difference(
    first: np.ndarray, first_draws: np.ndarray, second: np.ndarray, second_draws: np.ndarray, prompts: int
) -> tuple[float, "_Spread"]:
    """Difference of the means over seeds, and its spread."""
    _check_seeds(first, first_draws)
    _check_seeds(second, second_draws)
    draws = first_draws.mean(0) - second_draws.mean(0)
    spread = _spread([(first, first_draws), (second, second_draws)], draws, prompts)
    return float(first.mean() - second.mean()), spread


def _check_seeds(estimates: np.ndarray, draws: np.ndarray) -> None:
    if not len(estimates) or len(estimates) != len(draws):
        raise ValueError(f"{len(estimates)} seeds' estimates with {len(draws)} rows of draws")


class _Spread(NamedTuple):
    """The variance of a mean over training seeds, or of a difference of two.

    Attributes:
        variance: in all.
        seeds: the part of the training seeds, and its degrees of freedom.
        rest: the part of the prompts, and its degrees of freedom.
    """

    variance: float
    seeds: tuple[float, float]
    rest: tuple[float, float]

    def quantile(self, tail: float) -> float:
        """Standard errors above which the share `tail` of the estimates is.

        The mean of two approximations. With three seeds that vary 2 to 50 times as much as prompts let a mean vary,
        Satterthwaite's (1946) degrees of freedom are too many: 92 to 93 % instead of 95 %. Cochran's (1964) mean of the
        parts' own quantiles is too large, up to 97 %, where the two vary alike.
        """
        (of_seeds, seeds), (of_rest, rest) = self.seeds, self.rest
        total = of_seeds + of_rest
        if total == 0 or of_seeds == 0:
            return -float(stdtrit(rest, tail))
        satterthwaite = stdtrit(total**2 / (of_seeds**2 / seeds + of_rest**2 / rest), tail)
        cochran = (of_seeds * stdtrit(seeds, tail) + of_rest * stdtrit(rest, tail)) / total
        return -float(satterthwaite + cochran) / 2


def _spread(sides: list[tuple[np.ndarray, np.ndarray]], draws: np.ndarray, prompts: int) -> _Spread:
    """Variance from training seeds and prompts together; the seeds of two sides add up as in Welch's (1947) test.

    The estimates of a side differ by their seeds, and by how each seed's policy does on these prompts in particular.
    The second part is in the prompts' variance too, and is subtracted there as the draws estimate it. If it counted
    twice, intervals would be up to 40 % too wide where seeds hardly matter.

    Args:
        sides: (seeds,) estimates and (seeds, count) draws of one method, or of each of the two that are compared.
        draws: (count,) of the mean or the difference.
        prompts: the number of prompts.
    """
    seeds, freedoms, twice = [], [], 0.0
    for estimates, seed_draws in sides:
        if len(estimates) < LEAST_SEEDS:
            continue
        seeds.append(estimates.var(ddof=1) / len(estimates))
        freedoms.append(len(estimates) - 1)
        twice += (seed_draws - seed_draws.mean(0)).var(1, ddof=1).sum() / (len(estimates) - 1) / len(estimates)
    over_prompts = float(draws.var(ddof=1))
    parts, rest = np.array(seeds), max(over_prompts - twice, 0.0)
    of_seeds, freedom = float(parts.sum()), 1.0
    if of_seeds > 0:
        freedom = of_seeds**2 / float((parts**2 / freedoms).sum())
    variance = max(of_seeds + rest, over_prompts)
    return _Spread(variance, (of_seeds, freedom), (rest, float(max(prompts - 1, 1))))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979): the chance that any false one falls below a is at most a.

    Args:
        p: (tests,) p-values.

    Returns:
        (tests,) in the same order, at most 1.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def win_rates(policy: pd.DataFrame, other: pd.DataFrame, column: str = "reward_logit") -> np.ndarray:
    """(prompts,) share of the pairs of samples in which the policy's value is above the other's; ties count half.

    Args:
        policy: rows with `prompt_id` and `column`.
        other: rows of the same prompts.
        column: of the values that are compared.

    Raises:
        ValueError: the two have different prompts.
    """
    values, other_values = (
        {prompt: group.to_numpy() for prompt, group in frame.groupby("prompt_id", sort=True)[column]}
        for frame in (policy, other)
    )
    if values.keys() != other_values.keys():
        raise ValueError("win rates need the same prompts on both sides")
    gaps = [values[prompt][:, None] - other_values[prompt][None, :] for prompt in values]
    return np.array([np.mean(np.where(gap == 0, 0.5, gap > 0)) for gap in gaps])


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Distinct word n-grams per word n-gram of the texts (Li et al. 2016, arXiv 1510.03055); 0 if there are none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return len(counts) / total if total else 0.0
