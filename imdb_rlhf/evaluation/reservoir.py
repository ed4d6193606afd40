"""Best-of-N from a reservoir (M reference samples per prompt): its estimates for every N, win rates, and actual draws.

A reservoir is a table with a row per sample: `split`, `prompt_id`, `sample_id`, `reward`, `reward_logit`,
`ref_logprob`, `learned` (if there is a reward model), and its texts and tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import EvaluationConfig
from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS
from imdb_rlhf.evaluation.stats import bootstrap_mean

SELECTORS = {RewardSource.learned: "learned", RewardSource.ground_truth: "reward_logit"}


def table(rows: pd.DataFrame, split: str, column: str) -> np.ndarray:
    """(prompts, M) a column of one split, ordered by prompt and sample."""
    part = rows[rows["split"] == split].sort_values(["prompt_id", "sample_id"])
    return part[column].to_numpy(dtype=np.float64).reshape(part["prompt_id"].nunique(), -1)


def curve(rows: pd.DataFrame, source: RewardSource) -> pd.DataFrame:
    """Best-of-N for every N up to M, with a row per N and test prompt.

    The columns are `n`, `prompt_id`, `reward` and `reward_logit` (unbiased estimates), `kl` (the upper bound
    log N - (N-1)/N) and `kl_atom` (an estimate: the bound with the share of samples tied with the best as an atom).
    """
    selector, reward, logit = (table(rows, "test", name) for name in (SELECTORS[source], "reward", "reward_logit"))
    ns = list(range(1, selector.shape[1] + 1))
    rewards, logits = best_of_n.curve(selector, reward, ns), best_of_n.curve(selector, logit, ns)
    mass = best_of_n.top_mass(selector)
    # a single best sample is not an atom: only ties are
    atom = np.where(mass > 1 / selector.shape[1], mass, 0.0)
    parts = [
        pd.DataFrame(
            {
                "n": n,
                "prompt_id": np.arange(len(selector)),
                "reward": rewards[at],
                "reward_logit": logits[at],
                "kl": best_of_n.kl_bound(n),
                "kl_atom": best_of_n.kl_bound_atom(n, atom),
            }
        )
        for at, n in enumerate(ns)
    ]
    return pd.concat(parts, ignore_index=True)


def draws(rows: pd.DataFrame, source: RewardSource, n: int, count: int) -> pd.DataFrame:
    """Actual samples of best-of-N as evaluation rows: the best of up to `count` disjoint blocks per prompt.

    `kl` is the upper bound log N - (N-1)/N; `kl_k1` is nan, since the log-ratio of a single sample is unknown.
    """
    column, parts = SELECTORS[source], []
    ordered = rows.sort_values(["split", "prompt_id", "sample_id"])
    for _, group in ordered.groupby(["split", "prompt_id"], sort=True):
        best = group.iloc[best_of_n.blocks(group[column].to_numpy(), n, count)]
        parts.append(best.assign(sample_id=np.arange(len(best))))
    drawn = pd.concat(parts, ignore_index=True)
    drawn["length"] = drawn["completion_ids"].map(len)
    drawn = drawn.assign(step=0, kl=best_of_n.kl_bound(n), kl_k1=np.nan)
    return drawn[COLUMNS + TEXTS]


def summary(
    rows: pd.DataFrame,
    source: RewardSource,
    n: int,
    others: Mapping[str, pd.DataFrame],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The keys of best-of-N's `summary.json` that are estimated from the whole reservoir instead of from single draws.

    Args:
        rows: the reservoir.
        source: the reward that selects.
        n: the number of samples to select from.
        others: key of a win rate -> evaluation rows of the policy that best-of-N is compared with.
        config: of the intervals.
    """
    selector, reward, logit = (table(rows, "test", name) for name in (SELECTORS[source], "reward", "reward_logit"))
    points = curve(rows, source)
    at_n = points[points["n"] == n]

    def interval(values: np.ndarray) -> list[float]:
        return list(bootstrap_mean(values, config.bootstrap, config.confidence, config.seed))

    result: dict[str, Any] = {
        "reward": float(at_n["reward"].mean()),
        "reward_ci": interval(at_n["reward"].to_numpy()),
        "reward_logit": float(best_of_n.expected(selector, logit, n).mean()),
        "kl": float(at_n["kl"].mean()),
        "kl_ci": [float(at_n["kl"].mean())] * 2,
        "kl_is": "upper bound",
        "kl_atom": float(at_n["kl_atom"].mean()),
        "kl_k1": None,
        "kl_k1_ci": None,
        "kl_per_token": None,
        "reservoir": selector.shape[1],
        "samples_per_prompt": min(config.samples, selector.shape[1] // n),  # draws, for texts, lengths and distinct-2
        "selector": str(source),
        "curve": {
            str(m): {"reward": float(part["reward"].mean()), "kl": float(part["kl"].mean())}
            for m, part in ((int(str(m)), part) for m, part in points.groupby("n"))
            if m & (m - 1) == 0 or m == selector.shape[1]  # powers of two and M; curve.parquet has every N
        },
    }
    for key, frame in others.items():
        wins = best_of_n.win_rate(selector, logit, table(frame, "test", "reward_logit"), n)
        result |= {key: float(wins.mean()), f"{key}_ci": interval(wins)}
    return result
