"""The settings of a method: the mean over the runs of one value of its knob, its interval, and what moves it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from imdb_rlhf.evaluation.components import components
from imdb_rlhf.frontier.world import MeasuredRun, World

AXES = ("kl", "reward")


def settings(world: World, members: Sequence[MeasuredRun]) -> list[dict[str, Any]]:
    """An entry of a method's `settings` per value of its knob, from the checkpoints that its runs report."""
    values = sorted({_value(m) for m in members})
    return [_setting(world, [m for m in members if _value(m) == value]) for value in values]


def _value(m: MeasuredRun) -> float:
    return m.run.knob[1] if m.run.knob else 0.0


def _setting(world: World, runs: Sequence[MeasuredRun]) -> dict[str, Any]:
    origins = [m.origin for m in runs]
    estimates = {axis: np.array([getattr(m.checkpoints[m.reported], axis).mean() for m in runs]) for axis in AXES}
    entry: dict[str, Any] = {
        "knob_value": runs[0].run.knob[1] if runs[0].run.knob else None,
        "seeds": [m.run.seed for m in runs],
        "references": len({origin.place for origin in origins}),
    }
    for axis in AXES:
        means = world.means(estimates[axis], origins)
        draws = world.means(np.array([getattr(m, f"{axis}_draws")[m.reported] for m in runs]), origins)
        entry |= {axis: float(means.mean()), f"{axis}_ci": world.interval(means, draws)}
        entry["covers"] = world.covers(len(means))
    return entry | {
        "efficiency": world.efficiency(estimates["kl"], estimates["reward"], origins),
        "spread": spread(world, runs),
        "runs": [m.run.name for m in runs],
    }


def spread(world: World, runs: Sequence[MeasuredRun]) -> dict[str, Any] | None:
    """What moves KL and reward of a run: `components` of the reported checkpoints; None of a single run.

    The split needs as many seeds of every reference: of one that has more, the first are taken.
    """
    by_origin = [[m for m in runs if m.origin is origin] for origin in world.origins]
    seeds = min(len(group) for group in by_origin)
    if seeds * len(by_origin) < 2:
        return None
    groups = [sorted(group, key=lambda m: m.run.seed)[:seeds] for group in by_origin]
    table = {
        axis: np.array([[getattr(m.checkpoints[m.reported], axis) for m in group] for group in groups]) for axis in AXES
    }
    split = {axis: asdict(components(values, world.confidence, world.seed)) for axis, values in table.items()}
    return {"seeds": seeds, "references": len(groups), **split}
