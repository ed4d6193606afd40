"""Statistics of evaluations; the prompt is the unit of resampling, then the training seed."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit

from imdb_rlhf.seeds import generator

LEAST_SEEDS = 3  # of fewer nothing is said of seeds
MANY_SEEDS = 10  # from here on seeds are resampled too


def prompt_means(frame: pd.DataFrame, column: str) -> np.ndarray:
    """(prompts,) the mean over the samples of each prompt, in the order of the prompts' ids."""
    return frame.groupby("prompt_id", sort=True)[column].mean().to_numpy(dtype=np.float64)


def bootstrap_mean(values: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (prompts,) one number a prompt.
        resamples: how often the prompts are drawn anew, with replacement.
        confidence: coverage, e.g. 0.95.
        seed: equal seeds draw equal prompts, so intervals of two policies are comparable.

    Returns:
        The interval's ends.
    """
    means = np.concatenate([values[drawn].mean(1) for drawn in _drawn(len(values), resamples, seed)])
    low, high = np.quantile(means, _ends(confidence))
    return float(low), float(high)


def _drawn(prompts: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """The drawn prompts, (count, prompts), in blocks that fit into memory."""
    random = generator(seed, "bootstrap")
    for at in range(0, count, 200):
        yield random.integers(0, prompts, size=(min(200, count - at), prompts))


def _ends(confidence: float) -> list[float]:
    tail = (1 - confidence) / 2
    return [tail, 1 - tail]


def resamples(prompts: int, count: int, seed: int) -> np.ndarray:
    """(count, prompts) the share of each prompt in each resample; rows sum to 1.

    They are the draws of `bootstrap_mean` with that seed: `resamples(...) @ values` are its means. Used for several
    policies, or for several columns of one, they make differences paired.
    """
    shares = np.zeros((count, prompts))
    at = 0
    for drawn in _drawn(prompts, count, seed):
        for row in drawn:
            shares[at] = np.bincount(row, minlength=prompts) / prompts
            at += 1
    return shares


def percentile(draws: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """The interval that holds the middle of the draws.

    Args:
        draws: (count,) or (count, n), one row a resample.
        confidence: e.g. 0.95.

    Returns:
        Its ends: two numbers, or (n,) each.
    """
    low, high = np.quantile(draws, _ends(confidence), axis=0)
    return (float(low), float(high)) if draws.ndim == 1 else (low, high)


# --- training seeds


def over_seeds(
    estimates: np.ndarray, draws: np.ndarray, confidence: float, prompts: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean over training seeds, whose policies were evaluated on the same prompts.

    Fewer than 3 seeds: percentiles over prompts alone; what another seed would do is not in it. 3 to 9: a t-interval,
    its variance that of the seeds and of the prompts together, its degrees of freedom by Satterthwaite (1946). From 10
    on: a hierarchical bootstrap, which draws prompts and then seeds. A bootstrap of few seeds is too narrow (where
    seeds matter most, that of 3 covers 75 % instead of 95 %, that of 10 still 90 %), so its draws are widened to the
    t-interval's width (as Hesterberg 2015, arXiv 1411.5279, expands percentiles).

    Args:
        estimates: (seeds,).
        draws: (seeds, count) the estimate of each seed on resamples of the prompts, the same ones for all seeds.
        confidence: coverage, e.g. 0.95.
        prompts: how many.
        seed: of the draws of training seeds.

    Returns:
        The interval's ends.

    Raises:
        ValueError: no seed, or another number of draws' rows.
    """
    _check_seeds(estimates, draws)
    of_mean = draws.mean(0)
    variance, freedom = _variance([(estimates, draws)], of_mean, prompts)
    if len(estimates) < LEAST_SEEDS:
        return percentile(of_mean, confidence)
    mean, quantile = float(estimates.mean()), float(stdtrit(freedom, (1 + confidence) / 2))
    if len(estimates) < MANY_SEEDS:
        reach = quantile * float(np.sqrt(variance))
        return mean - reach, mean + reach
    drawn = generator(seed, "bootstrap_seeds").integers(0, len(estimates), size=(len(of_mean), len(estimates)))
    # The mean of drawn seeds has their variance over their number: brought to what seeds add to the prompts' variance.
    added, spread = variance - of_mean.var(ddof=1), estimates.var() / len(estimates)
    scale = np.sqrt(added / spread) if spread > 0 else 0.0
    away = of_mean - of_mean.mean() + scale * (estimates[drawn].mean(1) - mean)
    return percentile(mean + quantile / float(ndtri((1 + confidence) / 2)) * away, confidence)


def two_sided_p(
    first: np.ndarray, first_draws: np.ndarray, second: np.ndarray, second_draws: np.ndarray, prompts: int
) -> float:
    """The p-value of two methods' difference being 0: a t-test with the variance of `over_seeds`.

    It is paired over prompts, as all draws are of the same resamples; the training seeds of the two are independent.
    Of a side with fewer than 3 seeds the seeds' variance is left out.

    Args:
        first: (seeds,) estimates of a method.
        first_draws: (seeds, count) on resamples of the prompts.
        second: (other seeds,) of the other method.
        second_draws: (other seeds, count) on the same resamples.
        prompts: how many.

    Returns:
        p; 1 where there is no difference, 0 where there is one without any spread.

    Raises:
        ValueError: no seed on a side, or another number of draws' rows.
    """
    difference, error, freedom = _difference(first, first_draws, second, second_draws, prompts)
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(difference) / error))


def difference_interval(
    first: np.ndarray,
    first_draws: np.ndarray,
    second: np.ndarray,
    second_draws: np.ndarray,
    confidence: float,
    prompts: int,
) -> tuple[float, float]:
    """The t-interval of the first's mean less the second's: 0 lies outside where `two_sided_p` < 1 - confidence.

    Args:
        first: as all others, what `two_sided_p` takes.
        first_draws: likewise.
        second: likewise.
        second_draws: likewise.
        confidence: coverage, e.g. 0.95.
        prompts: how many.

    Returns:
        The interval's ends.
    """
    difference, error, freedom = _difference(first, first_draws, second, second_draws, prompts)
    reach = error * float(stdtrit(freedom, (1 + confidence) / 2))
    return difference - reach, difference + reach


def _difference(
    first: np.ndarray, first_draws: np.ndarray, second: np.ndarray, second_draws: np.ndarray, prompts: int
) -> tuple[float, float, float]:
    """Difference of the means over seeds, its standard error and degrees of freedom."""
    _check_seeds(first, first_draws)
    _check_seeds(second, second_draws)
    draws = first_draws.mean(0) - second_draws.mean(0)
    variance, freedom = _variance([(first, first_draws), (second, second_draws)], draws, prompts)
    return float(first.mean() - second.mean()), float(np.sqrt(variance)), freedom


def _check_seeds(estimates: np.ndarray, draws: np.ndarray) -> None:
    if not len(estimates) or len(estimates) != len(draws):
        raise ValueError(f"{len(estimates)} seeds' estimates with {len(draws)} rows of draws")


def _variance(sides: list[tuple[np.ndarray, np.ndarray]], draws: np.ndarray, prompts: int) -> tuple[float, float]:
    """Variance from training seeds and prompts together, and Satterthwaite's degrees of freedom.

    The estimates of a side differ by their seeds and by what each seed's policy does on just these prompts. The second
    is in the prompts' variance too and is taken off there, as far as the draws tell it: counted twice, it makes
    intervals up to 40 % too wide where seeds hardly matter.

    Args:
        sides: (seeds,) estimates and (seeds, count) draws of what is compared.
        draws: (count,) of their mean or difference.
        prompts: how many.
    """
    seeds, freedoms, twice = [], [], 0.0
    for estimates, each in sides:
        if len(estimates) < LEAST_SEEDS:
            continue
        seeds.append(estimates.var(ddof=1) / len(estimates))
        freedoms.append(len(estimates) - 1)
        twice += (each - each.mean(0)).var(1, ddof=1).sum() / (len(estimates) - 1) / len(estimates)
    over_prompts = float(draws.var(ddof=1))
    parts = np.array([*seeds, max(over_prompts - twice, 0.0)])
    total = float(parts.sum())
    if total == 0:
        return over_prompts, float(max(prompts - 1, 1))
    freedom = total**2 / (parts**2 / [*freedoms, max(prompts - 1, 1)]).sum()
    return max(total, over_prompts), float(freedom)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for how many they are (Holm 1979): the chance of any false one below a is at most a.

    Args:
        p: (tests,).

    Returns:
        (tests,) in the same order, at most 1.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def win_rates(policy: pd.DataFrame, other: pd.DataFrame, column: str = "reward_logit") -> np.ndarray:
    """(prompts,) how often a sample of the policy beats one of the other, over all pairs of samples; ties count half.

    Args:
        policy: rows with `prompt_id` and `column`.
        other: rows of the same prompts.
        column: what is compared.

    Raises:
        ValueError: different prompts.
    """
    mine, theirs = (
        {prompt: group.to_numpy() for prompt, group in frame.groupby("prompt_id", sort=True)[column]}
        for frame in (policy, other)
    )
    if mine.keys() != theirs.keys():
        raise ValueError("win rates need the same prompts on both sides")
    gaps = [mine[prompt][:, None] - theirs[prompt][None, :] for prompt in mine]
    return np.array([np.mean(np.where(gap == 0, 0.5, gap > 0)) for gap in gaps])


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Distinct word n-grams over all word n-grams of the texts (Li et al. 2016, arXiv 1510.03055); 0 without any."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return len(counts) / total if total else 0.0
