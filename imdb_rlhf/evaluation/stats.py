"""Statistics of evaluations; the prompt is the unit of resampling."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from imdb_rlhf.seeds import generator


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
    random = generator(seed, "bootstrap")
    # the drawn prompts, (resamples, prompts), in blocks that fit into memory
    means = []
    for at in range(0, resamples, 200):
        size = (min(200, resamples - at), len(values))
        means.append(values[random.integers(0, len(values), size=size)].mean(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


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
