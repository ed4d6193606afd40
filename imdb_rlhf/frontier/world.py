"""The finished runs of one world, and the resamples of the test prompts that all intervals share.

All intervals come from the same resamples, so that differences are paired. Where a setting has three or more training
seeds, its interval covers them as well.

Runs of several references (SFT seeds) are pooled. Every run's KL, reward and optimum are those from its own reference;
a number of the pool is the mean over references of the mean over their seeds. The reference is the outermost level: its
means are what an interval resamples, so that from three references on it covers other references and other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import LEAST_SEEDS, over_seeds, percentile, resamples
from imdb_rlhf.frontier.baselines import Baselines
from imdb_rlhf.frontier.comparable import by_reference
from imdb_rlhf.frontier.finished import Checkpoint, FinishedRun
from imdb_rlhf.frontier.methods import has_policy, method_names, place_of
from imdb_rlhf.stages.reservoir import Reservoir

BUDGETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats
SCORE_KL = 5.0  # nats, the K of the score


class Origin:
    """One reference: where the policies of its runs start, and what is possible from there.

    Attributes:
        place: its number among the references of the pool, from 0.
        reference: (prompts,) its mean reward of each test prompt.
        draws: (count,) the mean on each resample.
        validation: its mean over validation prompts; None where its artifact was removed.
        baselines: the optimum and best-of-N.
    """

    def __init__(self, place: int, runs: Sequence[FinishedRun]) -> None:
        self.place, self.runs = place, runs
        # a run whose artifacts were removed knows only some samples of the reference
        self.reference, self.validation = next((r for r in runs if r.world), runs[0]).reference
        self.draws = np.empty(0)
        self.baselines: Baselines

    def resample(self, weights: np.ndarray, confidence: float, furthest: float) -> None:
        """Lay out what depends on the (count, prompts) resamples, and on the largest KL of the world in nats."""
        self.draws = weights @ self.reference
        self.baselines = Baselines(self.runs, self.reference, weights, confidence, furthest, BUDGETS)


@dataclass
class MeasuredRun:
    """A run with its position on the axes.

    Attributes:
        run: the finished run.
        method: the name of its method.
        origin: its reference.
        kl_draws: (checkpoints, count) the KL of each checkpoint on each resample of the test prompts.
        reward_draws: (checkpoints, count) the reward likewise.
        chosen: which checkpoints are corners of its seed's curve; filled when the curve is computed.
    """

    run: FinishedRun
    method: str
    origin: Origin
    kl_draws: np.ndarray
    reward_draws: np.ndarray
    chosen: list[int] = field(default_factory=list)

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """The evaluated checkpoints, in the order of training."""
        return self.run.checkpoints

    @cached_property
    def reported(self) -> int:
        """Index of the checkpoint that the run reports: the last, or the best on validation (see `keep_model`)."""
        steps = [point.step for point in self.checkpoints]
        return steps.index(int(self.run.summary["step"]))


class World:
    """Runs that share a pair of axes.

    Attributes:
        runs: those that end in a policy or have a reservoir.
        policies: those that end in a policy.
        origins: their references; one, unless references that differ in their seed alone are pooled.
        measured: the latest policy per reference, method, knob and seed; of a pool, those of settings that every
            reference has.
        prompts: the number of test prompts.
        weights: (count, prompts) resamples of the test prompts; rows sum to 1.
        confidence: of the intervals.
        left_out: dicts of `path` and `why` for the runs that a later one replaces, or that the pool cannot use.
        warnings: one line each, about the intervals of all runs.
    """

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        """Read the runs and draw the resamples.

        Raises:
            ConfigError: they are not comparable.
            RunError: no run has anything to draw.
        """
        self.policies = [run for run in runs if has_policy(run.algo)]
        self.runs = [run for run in runs if has_policy(run.algo) or Reservoir.name in run.artifacts]
        if not self.runs:
            raise RunError("none of the runs has a policy to draw")
        self.origins = [Origin(place, members) for place, members in enumerate(by_reference(self.runs))]
        self.prompts = len(self.origins[0].reference)
        settings = [run.config["evaluation"] for run in self.runs]
        self.seed = int(settings[0]["seed"])
        self.confidence = max(float(config["confidence"]) for config in settings)
        count = max(int(config["bootstrap"]) for config in settings)
        self.weights = resamples(self.prompts, count, self.seed)
        self.warnings: list[str] = []
        if len({(config["confidence"], config["bootstrap"]) for config in settings}) > 1:
            self.warnings.append(
                f"runs differ in evaluation.confidence or evaluation.bootstrap: all are drawn with {self.confidence:g} "
                f"and {count} resamples"
            )
        names = method_names(self.policies)
        self.left_out: list[dict[str, str]] = []
        self.measured = self._everywhere([self._measure(run, names[run.path]) for run in self._once(names)])
        furthest = max([float(c.kl.mean()) for m in self.measured for c in m.checkpoints] + [BUDGETS[-1]])
        for origin in self.origins:
            origin.resample(self.weights, self.confidence, furthest)

    @cached_property
    def _origin_of(self) -> dict[Path, Origin]:
        return {run.path: origin for origin in self.origins for run in origin.runs}

    def _once(self, names: dict[Path, str]) -> list[FinishedRun]:
        """The latest run per method, knob and seed: two that differ in `evaluation.every` alone are not two seeds."""
        latest: dict[tuple[Any, ...], FinishedRun] = {}
        for run in sorted(self.policies, key=lambda run: ((run.path / MANIFEST).stat().st_mtime, run.name)):
            key = (self._origin_of[run.path].place, names[run.path], run.knob, run.seed)
            if key in latest:
                why = f"{run.name} is a later run of the same method, knob and seed"
                self.left_out.append({"path": str(latest[key].path), "why": why})
            latest[key] = run
        return sorted(latest.values(), key=lambda run: self.policies.index(run))

    def _measure(self, run: FinishedRun, method: str) -> MeasuredRun:
        """A run with the resamples of its checkpoints' means."""
        kl, reward = (
            np.array([self.weights @ getattr(point, name) for point in run.checkpoints]) for name in ("kl", "reward")
        )
        return MeasuredRun(run, method, self._origin_of[run.path], kl, reward)

    def _everywhere(self, measured: list[MeasuredRun]) -> list[MeasuredRun]:
        """The runs whose setting every reference has: a mean over other references would compare these instead."""
        where: dict[tuple[Any, ...], set[int]] = {}
        for m in measured:
            where.setdefault((m.method, m.run.knob), set()).add(m.origin.place)
        kept = [m for m in measured if len(where[m.method, m.run.knob]) == len(self.origins)]
        self.left_out += [
            {"path": str(m.run.path), "why": f"not every one of the {len(self.origins)} references has its setting"}
            for m in measured
            if m not in kept
        ]
        return kept

    def members(self) -> dict[str, list[MeasuredRun]]:
        """The runs of each method, in the order of figures and tables; those of one reference together."""
        ordered = sorted(self.measured, key=lambda m: (place_of(m.run.algo), m.method, m.origin.place))
        return {name: [m for m in ordered if m.method == name] for name in dict.fromkeys(m.method for m in ordered)}

    # --- from runs to numbers of the world

    def means(self, values: np.ndarray, origins: Sequence[Origin]) -> np.ndarray:
        """What intervals resample: (seeds, ...) values as they are, or of a pool their (references, ...) means.

        Args:
            values: (runs, ...).
            origins: (runs,) of each run.
        """
        if len(self.origins) == 1:
            return values
        places = np.array([origin.place for origin in origins])
        return np.stack([values[places == place].mean(0) for place in sorted(set(places))])

    def interval(self, estimates: np.ndarray, draws: np.ndarray) -> list[float]:
        """[low, high] over prompts and seeds, or references, from `means` of estimates and of (..., count) draws."""
        return list(over_seeds(estimates, draws, self.confidence, self.prompts, self.seed))

    def covers(self, levels: int) -> str:
        """What an interval of so many seeds, or references of a pool, covers: other prompts alone, or these as well."""
        if levels < LEAST_SEEDS:
            return "prompts"
        return "prompts, seeds" if len(self.origins) == 1 else "prompts, seeds, references"

    def reference(self) -> dict[str, Any]:
        """`reference` of `frontier.json`: its reward, and of a pool the mean over references."""
        means, draws = (np.array([getattr(o, name) for o in self.origins]) for name in ("reference", "draws"))
        ends = percentile(draws[0], self.confidence) if len(means) == 1 else self.interval(means.mean(1), draws)
        return {"reward": float(means.mean(1).mean()), "reward_ci": ends}

    def efficiency(self, kl: np.ndarray, reward: np.ndarray, origins: Sequence[Origin]) -> list[float] | None:
        """[low, high] of the share of its KL that a setting would have needed; of a pool, the mean over references.

        Args:
            kl: (runs,) nats.
            reward: (runs,).
            origins: (runs,) of each run.
        """
        if len(self.origins) == 1:
            return self.origins[0].baselines.efficiency(float(kl.mean()), float(reward.mean()))
        pairs = [
            origin.baselines.efficiency(float(spent), float(earned))
            for origin, spent, earned in zip(
                self.origins, self.means(kl, origins), self.means(reward, origins), strict=True
            )
        ]
        known = [pair for pair in pairs if pair is not None]
        return list(np.mean(known, axis=0)) if len(known) == len(pairs) else None
