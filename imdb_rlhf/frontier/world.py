"""The finished runs of one world, and the resamples of the test prompts that all intervals share.

All intervals come from the same resamples, so that differences are paired. Where a setting has three or more training
seeds, its interval covers them as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import over_seeds, resamples
from imdb_rlhf.frontier.baselines import Baselines
from imdb_rlhf.frontier.comparable import check_one_world
from imdb_rlhf.frontier.finished import Checkpoint, FinishedRun
from imdb_rlhf.frontier.methods import has_policy, method_names, place_of
from imdb_rlhf.stages.reservoir import Reservoir

BUDGETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats
SCORE_KL = 5.0  # nats, the K of the score


@dataclass
class MeasuredRun:
    """A run with its position on the axes.

    Attributes:
        run: the finished run.
        method: the name of its method.
        kl_draws: (checkpoints, count) the KL of each checkpoint on each resample of the test prompts.
        reward_draws: (checkpoints, count) the reward likewise.
        chosen: which checkpoints are corners of its seed's curve; filled when the curve is computed.
    """

    run: FinishedRun
    method: str
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
        measured: the latest policy per method, knob and seed.
        reference: (prompts,) the reference's mean reward of each test prompt.
        reference_draws: (count,) its mean on each resample.
        reference_validation: its mean over validation prompts; None where its artifact was removed.
        weights: (count, prompts) resamples of the test prompts; rows sum to 1.
        confidence: of the intervals.
        baselines: the optimum and best-of-N.
        left_out: dicts of `path` and `why` for the runs that a later one replaces.
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
        check_one_world(self.runs)
        # a run whose artifacts were removed knows only some samples of the reference
        self.reference, self.reference_validation = next((r for r in self.runs if r.world), self.runs[0]).reference
        self.prompts = len(self.reference)
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
        self.reference_draws = self.weights @ self.reference
        names = method_names(self.policies)
        self.left_out: list[dict[str, str]] = []
        self.measured = [self._measure(run, names[run.path]) for run in self._once(names)]
        furthest = max([float(c.kl.mean()) for m in self.measured for c in m.checkpoints] + [BUDGETS[-1]])
        self.baselines = Baselines(self.runs, self.reference, self.weights, self.confidence, furthest, BUDGETS)

    def _once(self, names: dict[Path, str]) -> list[FinishedRun]:
        """The latest run per method, knob and seed: two that differ in `evaluation.every` alone are not two seeds."""
        latest: dict[tuple[Any, ...], FinishedRun] = {}
        for run in sorted(self.policies, key=lambda run: ((run.path / MANIFEST).stat().st_mtime, run.name)):
            key = (names[run.path], run.knob, run.seed)
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
        return MeasuredRun(run, method, kl, reward)

    def members(self) -> dict[str, list[MeasuredRun]]:
        """The runs of each method, in the order of figures and tables."""
        ordered = sorted(self.measured, key=lambda m: (place_of(m.run.algo), m.method))
        return {name: [m for m in ordered if m.method == name] for name in dict.fromkeys(m.method for m in ordered)}

    def interval(self, estimates: np.ndarray, draws: np.ndarray) -> list[float]:
        """[low, high] over prompts and seeds, from (seeds,) estimates and their (seeds, count) resamples."""
        return list(over_seeds(estimates, draws, self.confidence, self.prompts, self.seed))
