"""How well a learned reward agrees with the true one: pair accuracy, calibration, correlation."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.config.stages import EvaluationConfig
from imdb_rlhf.evaluation.stats import bootstrap_mean
from imdb_rlhf.rewards import sigmoid

BINS = 10


def true_pairs(frame: pd.DataFrame) -> np.ndarray:
    """All pairs of different completions of one prompt whose true rewards differ.

    Args:
        frame: rows with `prompt_id`, `completion_ids`, `reward_logit`.

    Returns:
        (pairs, 2) int64 row numbers, the higher log-odds first, ordered by prompt.
    """
    logits = frame["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in frame["completion_ids"]]
    pairs = [
        (a, b) if logits[a] > logits[b] else (b, a)
        for _, members in sorted(frame.groupby("prompt_id", sort=True).indices.items())
        for a, b in combinations([int(row) for row in members], 2)
        # a completion that was sampled twice is not a pair, even if rounding gave it two scores
        if logits[a] != logits[b] and completions[a] != completions[b]
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def pair_accuracy(gaps: np.ndarray) -> np.ndarray:
    """(pairs,) 1 for each pair that is ordered correctly, 0 for others, 0.5 for equal scores.

    Args:
        gaps: (pairs,) score of the better completion minus that of the other.
    """
    return np.where(gaps == 0, 0.5, gaps > 0)


def reliability(gaps: np.ndarray) -> list[dict[str, Any]]:
    """Predicted win probabilities sigmoid(r_i - r_j) against the share of wins, in 10 bins of equal width.

    Every pair counts in both orders, so that the table does not depend on the order: it is symmetric about 1/2, and its
    counts sum to twice the number of pairs.

    Args:
        gaps: (pairs,) score of the better completion minus that of the other, on the Bradley-Terry scale.

    Returns:
        A dict per bin: `lower`, `upper`, `count`, `predicted` (mean probability) and `observed` (share of wins); the
        last two are None for an empty bin.
    """
    predicted = sigmoid(np.concatenate([gaps, -gaps]))
    won = np.concatenate([np.ones(len(gaps)), np.zeros(len(gaps))])
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)  # 1 belongs to the last bin
    bins = []
    for number in range(BINS):
        inside = places == number
        count = int(inside.sum())
        bins.append(
            {
                "lower": number / BINS,
                "upper": (number + 1) / BINS,
                "count": count,
                "predicted": float(predicted[inside].mean()) if count else None,
                "observed": float(won[inside].mean()) if count else None,
            }
        )
    return bins


def calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """Expected calibration error: |predicted - observed| averaged over the bins by count (arXiv 1706.04599, eq. 3)."""
    total = sum(cell["count"] for cell in bins)
    if not total:
        return None
    return float(sum(c["count"] * abs(c["predicted"] - c["observed"]) for c in bins if c["count"]) / total)


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of two (n,) arrays; None where one of them does not vary."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(*(pd.Series(values).rank().to_numpy() for values in (first, second)))


def account(frame: pd.DataFrame, raw: np.ndarray, config: EvaluationConfig) -> dict[str, Any]:
    """How well a learned reward agrees with the true one on samples of the reference policy.

    Args:
        frame: rows with `prompt_id`, `completion_ids`, `reward`, `reward_logit` and the normalised `score`.
        raw: (rows,) the same scores on the Bradley-Terry scale.
        config: of the bootstrap.

    Returns:
        Keys of `report.json`; a value that is undefined, e.g. without any pair, is None. `accuracy` is the mean over
        prompts of the share of correctly ordered pairs, and its interval is over prompts.
    """
    pairs = true_pairs(frame)
    gaps = raw[pairs[:, 0]] - raw[pairs[:, 1]]
    owners = frame["prompt_id"].to_numpy()[pairs[:, 0]]
    accuracies = pd.Series(pair_accuracy(gaps)).groupby(owners).mean().to_numpy(dtype=np.float64)
    bins = reliability(gaps)
    score = frame["score"].to_numpy()
    some = len(pairs) > 0
    interval = bootstrap_mean(accuracies, config.bootstrap, config.confidence, config.seed) if some else None
    return {
        "accuracy": float(accuracies.mean()) if some else None,
        "accuracy_ci": None if interval is None else list(interval),
        "test_pairs": len(pairs),
        "reliability": bins,
        "calibration_error": calibration_error(bins),
        "pearson": pearson(score, frame["reward_logit"].to_numpy()),
        "spearman": spearman(score, frame["reward_logit"].to_numpy()),
        "pearson_reward": pearson(score, frame["reward"].to_numpy()),
        "score_mean": float(score.mean()),
        "score_std": float(score.std()),
    }
