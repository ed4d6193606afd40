"""The finished runs of one world, with the resamples of the test prompts that all intervals share.

All intervals come from the same resamples, so that differences are paired; then from the training seeds, where there
are three or more.
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

BUDGETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats
SCORE_KL = 5.0  # nats, the K of the score


@dataclass
class Measured:
    """A run with its place on the axes."""

    run: FinishedRun
    method: str
    kl_draws: np.ndarray  # (checkpoints, count)
    reward_draws: np.ndarray  # (checkpoints, count)
    chosen: list[int] = field(default_factory=list)  # the checkpoints that are corners of its seed's curve

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Its evaluated checkpoints."""
        return self.run.checkpoints

    @cached_property
    def reported(self) -> int:
        """Which checkpoint the run reports: the last, or the one with the best validation reward (`keep_model`)."""
        steps = [point.step for point in self.checkpoints]
        return steps.index(int(self.run.summary["step"]))


class World:
    """Runs that share a pair of axes.

    Attributes:
        runs: all of them but reward models.
        policies: those that end in a policy.
        measured: one run per method, knob and seed.
        reference: (prompts,) the reference's mean reward of each test prompt.
        reference_draws: (count,) its mean on each resample.
        reference_validation: its mean over validation prompts; None where its artifact was removed.
        weights: (count, prompts) resamples of the test prompts; rows sum to 1.
        confidence: of the intervals.
        baselines: the optimum and best-of-N.
        left_out: dicts of `path` and `why` for runs that a later one replaces.
        warnings: what a reader should know of all intervals.
    """

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        """Read the runs and draw the resamples.

        Raises:
            ConfigError: they cannot be compared.
            RunError: none has a policy.
        """
        self.policies = [run for run in runs if has_policy(run.algo)]
        if not self.policies and not any(run.algo == "best_of_n" for run in runs):
            raise RunError("none of the runs has a policy to draw")
        self.runs = [run for run in runs if run.algo != "reward_model"]
        check_one_world(self.runs)
        # of runs whose artifacts were removed the reference is known from some of its samples only
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
        """One run of each method, knob and seed: two that differ only in how often they were evaluated are no seeds."""
        latest: dict[tuple[Any, ...], FinishedRun] = {}
        for run in sorted(self.policies, key=lambda run: ((run.path / MANIFEST).stat().st_mtime, run.name)):
            key = (names[run.path], run.knob, run.seed)
            if key in latest:
                why = f"{run.name} is a later run of the same method, knob and seed"
                self.left_out.append({"path": str(latest[key].path), "why": why})
            latest[key] = run
        return sorted(latest.values(), key=lambda run: self.policies.index(run))

    def _measure(self, run: FinishedRun, method: str) -> Measured:
        kl, reward = (
            np.array([self.weights @ getattr(point, name) for point in run.checkpoints]) for name in ("kl", "reward")
        )
        return Measured(run, method, kl, reward)

    def members(self) -> dict[str, list[Measured]]:
        """The runs of each method, in the order of figures and tables."""
        ordered = sorted(self.measured, key=lambda m: (place_of(m.run.algo), m.method))
        return {name: [m for m in ordered if m.method == name] for name in dict.fromkeys(m.method for m in ordered)}

    def interval(self, estimates: np.ndarray, draws: np.ndarray) -> list[float]:
        """[low, high] over prompts and seeds, from (seeds,) estimates and their (seeds, count) resamples."""
        return list(over_seeds(estimates, draws, self.confidence, self.prompts, self.seed))
