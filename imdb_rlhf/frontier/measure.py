"""The content of `frontier.json`: points, methods, optimum, best-of-N, tests and warnings of finished runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imdb_rlhf.algos.kl_controller import TOLERANCE
from imdb_rlhf.evaluation.stats import percentile
from imdb_rlhf.frontier import nats
from imdb_rlhf.frontier.compare import compare, paired_tests
from imdb_rlhf.frontier.finished import FinishedRun
from imdb_rlhf.frontier.pooled import best_of_n, optimum
from imdb_rlhf.frontier.world import BUDGETS, SCORE_KL, World

NO_RESERVOIR = "no run has a reservoir (M reference samples per prompt): no optimum; add algo=best_of_n"


def measure(runs: Sequence[FinishedRun], skipped: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Measure finished runs.

    Args:
        runs: finished runs of one world.
        skipped: dicts of `path` and `why` for runs that could not be read.

    Returns:
        `frontier.json`, with values of JSON's own types only.

    Raises:
        ConfigError: the runs are not comparable.
        RunError: no run has anything to draw.
    """
    world = World(runs)
    methods, rewards = [], []
    members = world.members()
    for name, runs_of_method in members.items():
        method, at_budgets = compare(world, name, runs_of_method)
        methods.append(method)
        rewards.append(at_budgets)
    frontier = {
        "world": axes_of(world.runs[0].config, world.prompts),
        "confidence": world.confidence,
        "references": len(world.origins),
        "reference": world.reference(),
        "base": next((run.summary["base"] for run in world.runs if run.summary.get("base")), None),
        "budgets": list(BUDGETS),
        "score_kl": SCORE_KL,
        "methods": methods,
        "points": list(_points(world)),
        "optimum": optimum(world),
        "best_of_n": best_of_n(world),
        "nats": nats.split(world, members),
        "tests": paired_tests(world, rewards),
        "runs": [entry_of(m.run, m.method) for m in world.measured],
        "sources": [str(run.path) for run in world.runs],
        "skipped": [*skipped, *world.left_out],
    }
    plain: dict[str, Any] = _plain(frontier)
    return plain | {"warnings": world.warnings + _warnings(plain)}


def _points(world: World) -> Iterator[dict[str, Any]]:
    """An entry per evaluated checkpoint."""
    for m in world.measured:
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
                "reference": m.origin.place,
                "step": point.step,
                "last": i == m.reported,
                "chosen": i in m.chosen,
                "kl": kl,
                "kl_ci": percentile(m.kl_draws[i], world.confidence),
                "reward": reward,
                "reward_ci": percentile(m.reward_draws[i], world.confidence),
                "validation_kl": point.validation_kl,
                "validation_reward": point.validation_reward,
                "efficiency": m.origin.baselines.efficiency(kl, reward),
                "above_optimum": m.origin.baselines.surpassed_by(m.kl_draws[i], m.reward_draws[i]),
            }


def axes_of(config: Mapping[str, Any], prompts: int | None) -> dict[str, Any]:
    """The data, reward, model and sampling that all runs share, from the configuration of one of them."""
    return {
        "data": config["data"]["name"],
        "reward": config["reward"]["name"],
        "model": config["model"]["name"] if config["sft"]["path"] is None else config["sft"]["path"],
        "max_new_tokens": config["generation"]["max_new_tokens"],
        "temperature": config["generation"]["temperature"],
        "test_prompts": prompts,
        "samples_per_prompt": config["evaluation"]["samples"],
    }


def entry_of(run: FinishedRun, method: str) -> dict[str, Any]:
    """A run's entry in `runs` of `frontier.json`: the settings and results that the report lists.

    Args:
        run: of any kind; numbers that its kind has not are None.
        method: what figures and tables call it.
    """
    summary, knob = run.summary, run.knob
    control = summary.get("ppo", {})
    copied = ("reward", "kl", "win_rate", "distinct_2", "length", "seconds")
    return {
        "name": run.name,
        "path": str(run.path),
        "method": method,
        "knob": None if knob is None else knob[0],
        "knob_value": None if knob is None else knob[1],
        "seed": run.seed,
        "overrides": list(run.overrides),
        "command": summary.get("command"),
        **{key: summary.get(key) for key in copied},
        "kl_last_fifth": control.get("kl_last_fifth"),
        "missed_target": _off_target(control),
        "missed_because": control.get("missed_because"),
    }


def _off_target(control: Mapping[str, Any]) -> bool:
    """Whether a run's KL is off its target, by its own numbers: what was near enough has changed."""
    target, kl = control.get("target_kl"), control.get("kl_last_fifth")
    if target is None or kl is None:
        return control.get("on_target") is False
    return not abs(kl / target - 1) <= TOLERANCE


def _warnings(frontier: dict[str, Any]) -> list[str]:
    """One line for each thing that a reader of the frontier should know."""
    warnings = [f"left out {item['path']}: {item['why']}" for item in frontier["skipped"]]
    warnings += [
        f"{point['run']} at step {point['step']} is above the optimum's upper curve by more than its interval: "
        "an estimate is wrong somewhere"
        for point in frontier["points"]
        if point["above_optimum"]
    ]
    warnings += [f"diverged: {run}" for method in frontier["methods"] for run in method["diverged"]]
    missed: dict[str | None, list[str]] = {}
    for run in frontier["runs"]:
        if run["missed_target"]:
            missed.setdefault(run["missed_because"], []).append(run["name"])
    for why, names in missed.items():
        off = f"KL of the last fifth of training more than {TOLERANCE:.0%} off its target in {', '.join(names)}"
        warnings.append(off.replace("%", " %") + (f" ({why})" if why else ""))
    if frontier["optimum"] is None:
        warnings.append(NO_RESERVOIR)
    return warnings


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
