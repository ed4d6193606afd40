"""Reward over KL of finished runs, measured: points, curves, scores and tests beside the optimum and best-of-N.

All intervals come from the same resamples of the test prompts, so that differences are paired; then from the training
seeds, where there are three or more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import difference_interval, holm, over_seeds, percentile, resamples, two_sided_p
from imdb_rlhf.frontier import finished as reading
from imdb_rlhf.frontier.baselines import Bounds, interpolated
from imdb_rlhf.frontier.curves import Curve, area, corners
from imdb_rlhf.frontier.finished import Checkpoint, FinishedRun

BUDGETS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats
SCORE_KL = 5.0  # nats, the K of the score
NO_POLICY = ("best_of_n", "reward_model")
ORDER = ("sft", "dpo", "ppo", "unlikelihood", "preferred_ft", "own_model")


@dataclass
class Measured:
    """A run with its place on the axes."""

    run: FinishedRun
    method: str
    kl_draws: np.ndarray  # (checkpoints, count)
    reward_draws: np.ndarray  # (checkpoints, count)
    chosen: list[int] = field(default_factory=list)  # checkpoints that its seed's curve is made of

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Its evaluated checkpoints."""
        return self.run.checkpoints

    @cached_property
    def reported(self) -> int:
        """Which checkpoint the run reports: the last, or the one with the best validation reward (`keep_model`)."""
        steps = [point.step for point in self.checkpoints]
        return steps.index(int(self.run.summary["step"]))


class Frontier:
    """Everything that finished runs of one world say of reward and KL; `measure` puts it together."""

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        """Read the runs and draw the resamples.

        Raises:
            ConfigError: they cannot be compared.
            RunError: none has a policy.
        """
        self.policies = [run for run in runs if run.algo not in NO_POLICY]
        if not self.policies and not any(run.algo == "best_of_n" for run in runs):
            raise RunError("none of the runs has a policy to draw")
        self.runs = [run for run in runs if run.algo != "reward_model"]
        reading.check_one_world(self.runs)
        # of runs whose artifacts were removed the reference is known from some of its samples only
        self.reference, self.reference_validation = next((r for r in self.runs if r.world), self.runs[0]).reference
        self.prompts = len(self.reference)
        settings = [run.config["evaluation"] for run in self.runs]
        self.seed = int(settings[0]["seed"])
        self.confidence = max(float(config["confidence"]) for config in settings)
        count = max(int(config["bootstrap"]) for config in settings)
        self.weights = resamples(self.prompts, count, self.seed)
        self.remarks: list[str] = []
        if len({(config["confidence"], config["bootstrap"]) for config in settings}) > 1:
            self.remarks.append(
                f"runs differ in evaluation.confidence or evaluation.bootstrap: all are drawn with {self.confidence:g} "
                f"and {count} resamples"
            )
        self.reference_draws = self.weights @ self.reference
        names = reading.method_names(self.policies)
        self.left_out: list[dict[str, str]] = []
        self.measured = [self._measure(run, names[run.path]) for run in self._once(names)]
        furthest = max([float(c.kl.mean()) for m in self.measured for c in m.checkpoints] + [BUDGETS[-1]])
        self.bounds = Bounds(self.runs, self.reference, self.weights, self.confidence, furthest, BUDGETS)

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

    # --- points -----------------------------------------------------------------------------------------------------

    def _points(self) -> Iterator[dict[str, Any]]:
        for m in self.measured:
            knob = m.run.knob
            for i, point in enumerate(m.checkpoints):
                kl, reward = float(point.kl.mean()), float(point.reward.mean())
                yield {
                    "run": m.run.name,
                    "method": m.method,
                    "algo": m.run.algo,
                    "knob": None if knob is None else knob[0],
                    "knob_value": None if knob is None else knob[1],
                    "seed": m.run.seed,
                    "step": point.step,
                    "last": i == m.reported,
                    "chosen": i in m.chosen,
                    "kl": kl,
                    "kl_ci": percentile(m.kl_draws[i], self.confidence),
                    "reward": reward,
                    "reward_ci": percentile(m.reward_draws[i], self.confidence),
                    "validation_kl": point.validation_kl,
                    "validation_reward": point.validation_reward,
                    "efficiency": self.bounds.efficiency(kl, reward),
                    "above_optimum": self.bounds.surpassed_by(m.kl_draws[i], m.reward_draws[i]),
                }

    # --- methods ----------------------------------------------------------------------------------------------------

    def _members(self) -> dict[str, list[Measured]]:
        """The runs of each method, in the order of figures and tables."""
        place = {algo: i for i, algo in enumerate(ORDER)}
        ordered = sorted(self.measured, key=lambda m: (place.get(m.run.algo, len(ORDER)), m.method))
        return {name: [m for m in ordered if m.method == name] for name in dict.fromkeys(m.method for m in ordered)}

    def curve(self, members: Sequence[Measured]) -> Curve:
        """The curve of one training seed, from its runs; marks the checkpoints that it is made of."""
        index = [(m, i) for m in members for i in range(len(m.checkpoints))]
        kl, reward = ([getattr(m.checkpoints[i], f"validation_{name}") for m, i in index] for name in ("kl", "reward"))
        start = self.reference_validation
        found = [index[at] for at in corners(kl, reward, float(self.reference.mean()) if start is None else start)]
        for m, i in found:
            m.chosen.append(i)
        zero = np.zeros(len(self.weights))
        return Curve(
            np.array([0.0, *(m.checkpoints[i].kl.mean() for m, i in found)]),
            np.array([self.reference.mean(), *(m.checkpoints[i].reward.mean() for m, i in found)]),
            np.stack([zero, *(m.kl_draws[i] for m, i in found)], axis=1),
            np.stack([self.reference_draws, *(m.reward_draws[i] for m, i in found)], axis=1),
        )

    def _interval(self, estimates: np.ndarray, draws: np.ndarray) -> list[float]:
        return list(over_seeds(estimates, draws, self.confidence, self.prompts, self.seed))

    def _method(self, name: str, members: Sequence[Measured]) -> tuple[dict[str, Any], "Bought"]:
        seeds = sorted({m.run.seed for m in members})
        curves = [self.curve([m for m in members if m.run.seed == seed]) for seed in seeds]
        steps = np.unique(np.concatenate([np.linspace(0, SCORE_KL, 101), BUDGETS]))
        values, draws = np.array([c.at(steps) for c in curves]), np.array([c.draws_at(steps) for c in curves])
        places = np.searchsorted(steps, BUDGETS)
        spent = [[c.kl.mean() for m in members if m.run.seed == seed for c in m.checkpoints] for seed in seeds]
        near, far = float(max(map(min, spent))), float(min(map(max, spent)))
        bought = Bought(name, values[:, places], draws[:, :, places], near, far)
        at_budget = [
            {
                "kl": budget,
                "reward": float(bought.rewards[:, j].mean()),
                "reward_ci": self._interval(bought.rewards[:, j], bought.draws[:, :, j]),
                "mixed": budget < near,
                "reached": budget <= far,
            }
            for j, budget in enumerate(BUDGETS)
        ]
        knob = members[0].run.knob
        found = {
            "name": name,
            "algo": members[0].run.algo,
            "knob": None if knob is None else knob[0],
            "seeds": seeds,
            **self._score(members, steps, values, draws),
            "at_budget": at_budget,
            "settings": self._settings(members),
            "diverged": self._diverged(members),
        }
        return found, bought

    def _score(
        self, members: Sequence[Measured], steps: np.ndarray, values: np.ndarray, draws: np.ndarray
    ) -> dict[str, Any]:
        """The area above the reference over [0, K] as a share of the optimum's; of one point alone there is none."""
        none = {"score": None, "score_ci": None, "score_raw": None}
        if sum(len(m.checkpoints) for m in members) < 2:
            return none
        inside = steps <= SCORE_KL
        grid, start = steps[inside], float(self.reference.mean())
        own, own_draws = area(grid, values[:, inside], start), area(grid, draws[:, :, inside], self.reference_draws)
        found: dict[str, Any] = none | {"score_raw": float(own.mean())}
        if self.bounds.band is None:
            return found
        ends, intervals = [], []
        band = self.bounds.band
        for curve, curve_draws in ((band.upper, band.upper_draws), (band.lower, band.lower_draws)):
            best = float(area(grid, np.interp(grid, band.kl, curve), start))
            best_draws = area(grid, interpolated(grid, band.kl, curve_draws), self.reference_draws)
            if best <= 0 or (best_draws <= 0).any():
                return found  # the reference cannot be surpassed
            ends.append(float(own.mean() / best))
            intervals.append(self._interval(own / best, own_draws / best_draws))
        return found | {"score": ends, "score_ci": [intervals[0][0], intervals[1][1]]}

    def _settings(self, members: Sequence[Measured]) -> list[dict[str, Any]]:
        """The runs of each value of the knob together, at the checkpoint that they report."""
        found = []
        values = sorted({m.run.knob[1] if m.run.knob else 0.0 for m in members})
        for value in values:
            here = [m for m in members if (m.run.knob[1] if m.run.knob else 0.0) == value]
            kl, reward = (
                np.array([getattr(m.checkpoints[m.reported], name).mean() for m in here]) for name in ("kl", "reward")
            )
            kl_draws, reward_draws = (
                np.array([getattr(m, f"{name}_draws")[m.reported] for m in here]) for name in ("kl", "reward")
            )
            found.append(
                {
                    "knob_value": value if here[0].run.knob else None,
                    "seeds": [m.run.seed for m in here],
                    "kl": float(kl.mean()),
                    "kl_ci": self._interval(kl, kl_draws),
                    "reward": float(reward.mean()),
                    "reward_ci": self._interval(reward, reward_draws),
                    "efficiency": self.bounds.efficiency(float(kl.mean()), float(reward.mean())),
                    "runs": [m.run.name for m in here],
                }
            )
        return found

    def _diverged(self, members: Sequence[Measured]) -> list[str]:
        """Runs that are worse than the reference beyond their interval, or of three times their setting's median KL."""
        found = []
        for m in members:
            worse = percentile(m.reward_draws[m.reported] - self.reference_draws, self.confidence)[1] < 0
            others = [float(o.checkpoints[o.reported].kl.mean()) for o in members if o.run.knob == m.run.knob]
            far = len(others) > 2 and m.checkpoints[m.reported].kl.mean() > 3 * float(np.median(others))
            if worse or far:
                found.append(m.run.name)
        return found

    def _tests(self, all_bought: Sequence["Bought"]) -> list[dict[str, Any]]:
        """Every two methods at the budgets between what both spent; p-values corrected by Holm for all of them."""
        found = []
        for first, second in combinations(all_bought, 2):
            for j, budget in enumerate(BUDGETS):
                if not max(first.near, second.near) <= budget <= min(first.far, second.far):
                    continue
                mine, theirs = (bought.rewards[:, j] for bought in (first, second))
                draws, other = (bought.draws[:, :, j] for bought in (first, second))
                p = two_sided_p(mine, draws, theirs, other, self.prompts)
                ends = difference_interval(mine, draws, theirs, other, self.confidence, self.prompts)
                difference = float(mine.mean() - theirs.mean())
                found.append(
                    {
                        "first": first.name,
                        "second": second.name,
                        "kl": budget,
                        "difference": difference,
                        "ci": ends,
                        "p": p,
                    }
                )
        adjusted = holm(np.array([test["p"] for test in found]))
        return [test | {"p_adjusted": float(p)} for test, p in zip(found, adjusted, strict=True)]

    # --- all of it --------------------------------------------------------------------------------------------------

    def measure(self, skipped: Sequence[dict[str, str]]) -> dict[str, Any]:
        """The whole frontier as plain values."""
        methods, all_bought = [], []
        for name, members in self._members().items():
            method, bought = self._method(name, members)
            methods.append(method)
            all_bought.append(bought)
        found = {
            "world": self._world(),
            "confidence": self.confidence,
            "reference": {
                "reward": float(self.reference.mean()),
                "reward_ci": percentile(self.reference_draws, self.confidence),
            },
            "base": next((run.summary["base"] for run in self.runs if run.summary.get("base")), None),
            "budgets": list(BUDGETS),
            "score_kl": SCORE_KL,
            "methods": methods,
            "points": list(self._points()),
            "optimum": self.bounds.optimum(),
            "best_of_n": self.bounds.best_of_n(),
            "tests": self._tests(all_bought),
            "runs": [self._run(m) for m in self.measured],
            "sources": [str(run.path) for run in self.runs],
            "skipped": [*skipped, *self.left_out],
        }
        plain: dict[str, Any] = _plain(found)
        return plain | {"warnings": self.remarks + _warnings(plain)}

    def _world(self) -> dict[str, Any]:
        config = self.runs[0].config
        return {
            "data": config["data"]["name"],
            "reward": config["reward"]["name"],
            "model": config["model"]["name"] if config["sft"]["path"] is None else config["sft"]["path"],
            "max_new_tokens": config["generation"]["max_new_tokens"],
            "temperature": config["generation"]["temperature"],
            "test_prompts": self.prompts,
            "samples_per_prompt": config["evaluation"]["samples"],
        }

    def _run(self, m: Measured) -> dict[str, Any]:
        summary, knob = m.run.summary, m.run.knob
        kept = ("reward", "kl", "win_rate", "distinct_2", "length", "seconds")
        return {
            "name": m.run.name,
            "path": str(m.run.path),
            "method": m.method,
            "knob": None if knob is None else knob[0],
            "knob_value": None if knob is None else knob[1],
            "seed": m.run.seed,
            "overrides": list(m.run.overrides),
            **{key: summary.get(key) for key in kept},
            "missed_target": bool(summary.get("ppo", {}).get("on_target") is False),
        }


@dataclass(frozen=True)
class Bought:
    """What a method's curves buy at each budget."""

    name: str
    rewards: np.ndarray  # (seeds, budgets)
    draws: np.ndarray  # (seeds, count, budgets)
    near: float  # nats: each seed has a checkpoint of at most this KL
    far: float  # nats: each seed has a checkpoint of at least this KL


def _warnings(found: dict[str, Any]) -> list[str]:
    said = [f"left out {item['path']}: {item['why']}" for item in found["skipped"]]
    said += [
        f"{point['run']} at step {point['step']} lies above the optimum's upper curve by more than its interval: "
        "an estimate is wrong somewhere"
        for point in found["points"]
        if point["above_optimum"]
    ]
    said += [f"diverged: {run}" for method in found["methods"] for run in method["diverged"]]
    missed = [run["name"] for run in found["runs"] if run["missed_target"]]
    if missed:
        said.append(f"KL of the last fifth of training more than 25 % off its target in {', '.join(missed)}")
    if found["optimum"] is None:
        said.append("no reservoir of reference samples among the runs: no optimum; add a run of algo=best_of_n")
    return said


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
