"""What a reservoir says of best-of-N: the estimate for every N, its win rate, and actual draws.

A reservoir is a table with a row a sample of the reference: `split`, `prompt_id`, `sample_id`, `reward`,
`reward_logit`, `ref_logprob`, `learned` (where there is a reward model), and its texts and tokens.
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
    """(prompts, M) a column of a split, ordered by prompt and sample."""
    part = rows[rows["split"] == split].sort_values(["prompt_id", "sample_id"])
    return part[column].to_numpy(dtype=np.float64).reshape(part["prompt_id"].nunique(), -1)


def curve(rows: pd.DataFrame, source: RewardSource) -> pd.DataFrame:
    """Best-of-N for every N up to M: a row a test prompt and N.

    Columns `n`, `prompt_id`, `reward`, `reward_logit` (unbiased estimates), `kl` (log N - (N-1)/N, an upper bound),
    `kl_atom` (the bound with the share of samples tied with the best as an atom, an estimate).
    """
    chooser, reward, logit = (table(rows, "test", name) for name in (SELECTORS[source], "reward", "reward_logit"))
    ns = list(range(1, chooser.shape[1] + 1))
    rewards, logits = best_of_n.curve(chooser, reward, ns), best_of_n.curve(chooser, logit, ns)
    mass = best_of_n.top_mass(chooser)
    # one sample on top of M is no atom: only ties are
    atom = np.where(mass > 1 / chooser.shape[1], mass, 0.0)
    parts = [
        pd.DataFrame(
            {
                "n": n,
                "prompt_id": np.arange(len(chooser)),
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
    """Actual samples of best-of-N as an evaluation has them: the best of up to `count` disjoint blocks of a prompt.

    `kl` is the upper bound log N - (N-1)/N; the log-ratio of a single sample is not known, so `kl_k1` is nan.
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
    """The keys of `summary.json` that best-of-N has from its whole reservoir instead of from single draws.

    Args:
        rows: the reservoir.
        source: what selects.
        n: how many to choose from.
        others: key of a win rate -> evaluation rows of the policy that it is against.
        config: intervals.
    """
    chooser, reward, logit = (table(rows, "test", name) for name in (SELECTORS[source], "reward", "reward_logit"))
    points = curve(rows, source)
    here = points[points["n"] == n]

    def interval(values: np.ndarray) -> list[float]:
        return list(bootstrap_mean(values, config.bootstrap, config.confidence, config.seed))

    found: dict[str, Any] = {
        "reward": float(here["reward"].mean()),
        "reward_ci": interval(here["reward"].to_numpy()),
        "reward_logit": float(best_of_n.expected(chooser, logit, n).mean()),
        "kl": float(here["kl"].mean()),
        "kl_ci": [float(here["kl"].mean())] * 2,
        "kl_is": "upper bound",
        "kl_atom": float(here["kl_atom"].mean()),
        "kl_k1": None,
        "kl_k1_ci": None,
        "kl_per_token": None,
        "reservoir": chooser.shape[1],
        "samples_per_prompt": min(config.samples, chooser.shape[1] // n),  # of the draws: texts, lengths, distinct-2
        "selector": str(source),
        "curve": {
            str(m): {"reward": float(part["reward"].mean()), "kl": float(part["kl"].mean())}
            for m, part in ((int(str(m)), part) for m, part in points.groupby("n"))
            if m & (m - 1) == 0 or m == chooser.shape[1]  # powers of two and M; every N stands in curve.parquet
        },
    }
    for key, frame in others.items():
        theirs = table(frame, "test", "reward_logit")
        wins = best_of_n.win_rate(chooser, logit, theirs, n)
        found |= {key: float(wins.mean()), f"{key}_ci": interval(wins)}
    return found
