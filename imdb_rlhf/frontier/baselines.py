"""The baselines that need no training: the bounds of the optimum, and best-of-N. Both are read off a reservoir."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.evaluation.stats import percentile
from imdb_rlhf.frontier.bounds import OptimumBounds, needed_kl, optimum_bounds, optimum_of
from imdb_rlhf.frontier.finished import FinishedRun
from imdb_rlhf.stages import reservoir as stage

GRID = 120  # points of the optimum's curves
LEAST_KL = 0.01  # nats; no efficiency is computed below


class Baselines:
    """The optimum and best-of-N of one world; both are unknown without a reservoir."""

    def __init__(
        self,
        runs: Sequence[FinishedRun],
        reference: np.ndarray,
        weights: np.ndarray,
        confidence: float,
        furthest: float,
        budgets: Sequence[float],
    ) -> None:
        """Choose the grid of KL; everything else is read and computed when it is asked for.

        Args:
            runs: of one world; the largest of their reservoirs is used.
            reference: (prompts,) the reference's mean reward of each test prompt.
            weights: (count, prompts) resamples of the prompts; rows sum to 1.
            confidence: of the intervals.
            furthest: the KL up to which the optimum is computed, nats.
            budgets: KL that the grid must contain, nats.
        """
        self.runs, self.reference, self.weights, self.confidence = runs, reference, weights, confidence
        self.grid = np.unique(np.concatenate([[0.0], np.geomspace(LEAST_KL, 1.05 * furthest, GRID), budgets]))

    @cached_property
    def reservoir(self) -> pd.DataFrame | None:
        """The test prompts' rows of the largest reservoir that a run used, with learned scores if there are any."""
        best: tuple[int, bool, pd.DataFrame] | None = None
        seen: set[tuple[Path, Path | None]] = set()
        for run in self.runs:
            samples, scores = run.artifact(stage.Reservoir.name), run.artifact(stage.LearnedScores.name)
            if samples is None or (samples, scores) in seen:
                continue
            seen.add((samples, scores))
            rows = pd.read_parquet(samples / stage.FILE)
            if scores is not None:
                rows = rows.merge(pd.read_parquet(scores / stage.SCORES), on=stage.KEYS, validate="one_to_one")
            rows = rows[rows["split"] == "test"]
            key = (len(rows), scores is not None)
            if best is None or key > best[:2]:
                best = (*key, rows)
        return None if best is None else best[2]

    @cached_property
    def bounds(self) -> OptimumBounds | None:
        """The bounds of the true reward's optimum; None without a reservoir.

        Raises:
            RunError: a sample has more reward than the runs' summaries say is possible.
        """
        if self.reservoir is None:
            return None
        rewards = reservoir.table(self.reservoir, "test", "reward")
        cap = max(run.largest_reward for run in self.runs)
        if rewards.max() > cap:
            raise RunError(
                f"a sample of the reference has reward {rewards.max():g}, and the range of these runs' reward ends at "
                f"{cap:g}; mend the reward's range and make the runs again"
            )
        return optimum_bounds(rewards, self.grid, self.weights, cap)

    def optimum(self) -> dict[str, Any] | None:
        """`optimum` of `frontier.json`; None without a reservoir."""
        if self.bounds is None or self.reservoir is None:
            return None
        optimum: dict[str, Any] = {
            "samples": int(self.reservoir["sample_id"].nunique()),
            "trusted_kl": self.bounds.trusted_kl,
            "cap": self.bounds.cap if np.isfinite(self.bounds.cap) else None,
            "kl": self.bounds.kl,
            "lower": self.bounds.lower,
            "lower_ci": percentile(self.bounds.lower_draws, self.confidence),
            "upper": self.bounds.upper,
            "upper_ci": percentile(self.bounds.upper_draws, self.confidence),
            "learned": None,
        }
        if "learned" in self.reservoir:
            learned, reward = (reservoir.table(self.reservoir, "test", name) for name in ("learned", "reward"))
            curve, draws = optimum_of(learned, reward, self.grid, self.weights)
            known = np.isfinite(curve)
            ends = percentile(draws[:, known], self.confidence)
            optimum["learned"] = {"kl": self.grid[known], "reward": curve[known], "reward_ci": ends}
        return optimum

    def best_of_n(self) -> dict[str, Any]:
        """`best_of_n` of `frontier.json`: selector -> its curve for every N."""
        if self.reservoir is None:
            return {}
        curves = {}
        for source, rows in self._curves.items():
            rewards, by_n = self.rewards_of(source), rows.groupby("n")
            kl = by_n["kl"].first()
            curves[str(source)] = {
                "n": [int(n) for n in kl.index],
                "kl": kl.to_numpy(),
                "kl_atom": by_n["kl_atom"].mean().to_numpy(),
                "reward": rewards.mean(0),
                "reward_ci": percentile(self.weights @ rewards, self.confidence),
            }
        return curves

    def rewards_of(self, selector: str) -> np.ndarray:
        """(prompts, N) the mean reward of the best of each N by a selector that the reservoir has."""
        rows = self._curves[RewardSource(selector)]
        return rows.pivot(index="prompt_id", columns="n", values="reward").to_numpy()

    @cached_property
    def _curves(self) -> dict[RewardSource, pd.DataFrame]:
        """Selector -> best-of-N's rows, of those that the reservoir has."""
        table = self.reservoir
        if table is None:
            return {}
        sources = [source for source in RewardSource if reservoir.SELECTORS[source] in table]
        return {source: reservoir.curve(table, source) for source in sources}

    def efficiency(self, kl: float, reward: float) -> list[float] | None:
        """[low, high] of the share of a policy's KL that the optimum would need for its reward.

        The low end is read off the optimum's upper curve, the high end off the lower one. Where the lower curve does
        not reach the reward, nothing better than 1 is known. None without an optimum, or below `LEAST_KL`.
        """
        if self.bounds is None or kl < LEAST_KL:
            return None
        if reward <= self.reference.mean():
            return [0.0, 0.0]
        low, high = (needed_kl(self.bounds.kl, curve, reward) / kl for curve in (self.bounds.upper, self.bounds.lower))
        return [float(min(low, 1.0)), float(min(high, 1.0))]

    def surpassed_by(self, kl_draws: np.ndarray, reward_draws: np.ndarray) -> bool:
        """Whether a policy is above the upper curve by more than its interval, which means an error somewhere.

        Args:
            kl_draws: (count,) the policy's KL on each resample of the prompts.
            reward_draws: (count,) its reward likewise.
        """
        if self.bounds is None:
            return False
        right, share = _places(kl_draws, self.bounds.kl)
        rows = np.arange(len(kl_draws))
        bound = (1 - share) * self.bounds.upper_draws[rows, right - 1] + share * self.bounds.upper_draws[rows, right]
        return percentile(reward_draws - bound, self.confidence)[0] > 0


def interpolated(at: np.ndarray, grid: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(count, len(at)) linear interpolation of the rows of draws (count, G) over grid (G,); flat outside of it."""
    right, share = _places(at, grid)
    return (1 - share) * draws[:, right - 1] + share * draws[:, right]


def _places(at: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grid point at or after each number, and the number's place between the point before (0) and that one (1)."""
    right = np.clip(np.searchsorted(grid, at), 1, len(grid) - 1)
    return right, np.clip((at - grid[right - 1]) / (grid[right] - grid[right - 1]), 0, 1)
