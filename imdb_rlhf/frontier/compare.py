"""Methods compared: their curves, the reward that each KL budget buys, scores, settings and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from imdb_rlhf.evaluation.stats import difference_interval, holm, percentile, two_sided_p
from imdb_rlhf.frontier.baselines import interpolated
from imdb_rlhf.frontier.curves import Curve, area, corners
from imdb_rlhf.frontier.world import BUDGETS, SCORE_KL, MeasuredRun, World


@dataclass(frozen=True)
class BudgetRewards:
    """The reward that a method's curves reach at each of `BUDGETS`.

    Attributes:
        name: of the method.
        rewards: (seeds, budgets).
        draws: (seeds, count, budgets) the same on each resample of the prompts.
        near: nats; each seed has a checkpoint of at most this KL.
        far: nats; each seed has a checkpoint of at least this KL.
    """

    name: str
    rewards: np.ndarray
    draws: np.ndarray
    near: float
    far: float


def curve(world: World, members: Sequence[MeasuredRun]) -> Curve:
    """The curve of one training seed from its runs; marks the checkpoints that are its corners as chosen."""
    index = [(m, i) for m in members for i in range(len(m.checkpoints))]
    kl, reward = ([getattr(m.checkpoints[i], f"validation_{name}") for m, i in index] for name in ("kl", "reward"))
    start = world.reference_validation
    chosen = [index[at] for at in corners(kl, reward, float(world.reference.mean()) if start is None else start)]
    for m, i in chosen:
        m.chosen.append(i)
    zero = np.zeros(len(world.weights))
    return Curve(
        np.array([0.0, *(m.checkpoints[i].kl.mean() for m, i in chosen)]),
        np.array([world.reference.mean(), *(m.checkpoints[i].reward.mean() for m, i in chosen)]),
        np.stack([zero, *(m.kl_draws[i] for m, i in chosen)], axis=1),
        np.stack([world.reference_draws, *(m.reward_draws[i] for m, i in chosen)], axis=1),
    )


def compare(world: World, name: str, members: Sequence[MeasuredRun]) -> tuple[dict[str, Any], BudgetRewards]:
    """A method's entry in `frontier.json`, and its rewards at the budgets."""
    seeds = sorted({m.run.seed for m in members})
    curves = [curve(world, [m for m in members if m.run.seed == seed]) for seed in seeds]
    steps = np.unique(np.concatenate([np.linspace(0, SCORE_KL, 101), BUDGETS]))
    values, draws = np.array([c.at(steps) for c in curves]), np.array([c.draws_at(steps) for c in curves])
    places = np.searchsorted(steps, BUDGETS)
    spent = [[c.kl.mean() for m in members if m.run.seed == seed for c in m.checkpoints] for seed in seeds]
    near, far = float(max(map(min, spent))), float(min(map(max, spent)))
    at_budgets = BudgetRewards(name, values[:, places], draws[:, :, places], near, far)
    table = [
        {
            "kl": budget,
            "reward": float(at_budgets.rewards[:, j].mean()),
            "reward_ci": world.interval(at_budgets.rewards[:, j], at_budgets.draws[:, :, j]),
            "mixed": budget < near,
            "reached": budget <= far,
        }
        for j, budget in enumerate(BUDGETS)
    ]
    knob = members[0].run.knob
    entry = {
        "name": name,
        "algo": members[0].run.algo,
        "knob": None if knob is None else knob[0],
        "seeds": seeds,
        **_score(world, members, steps, values, draws),
        "at_budget": table,
        "settings": _settings(world, members),
        "diverged": _diverged(world, members),
    }
    return entry, at_budgets


def _score(
    world: World, members: Sequence[MeasuredRun], steps: np.ndarray, values: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    """The area above the reference over [0, K] as a share of the optimum's; None where there is one point only."""
    none = {"score": None, "score_ci": None, "score_raw": None}
    if sum(len(m.checkpoints) for m in members) < 2:
        return none
    inside = steps <= SCORE_KL
    grid, start = steps[inside], float(world.reference.mean())
    own, own_draws = area(grid, values[:, inside], start), area(grid, draws[:, :, inside], world.reference_draws)
    entry: dict[str, Any] = none | {"score_raw": float(own.mean())}
    if world.baselines.bounds is None:
        return entry
    ends, intervals = [], []
    bounds = world.baselines.bounds
    for curve, curve_draws in ((bounds.upper, bounds.upper_draws), (bounds.lower, bounds.lower_draws)):
        best = float(area(grid, np.interp(grid, bounds.kl, curve), start))
        best_draws = area(grid, interpolated(grid, bounds.kl, curve_draws), world.reference_draws)
        if best <= 0 or (best_draws <= 0).any():
            return entry  # the reference cannot be surpassed
        ends.append(float(own.mean() / best))
        intervals.append(world.interval(own / best, own_draws / best_draws))
    return entry | {"score": ends, "score_ci": [intervals[0][0], intervals[1][1]]}


def _settings(world: World, members: Sequence[MeasuredRun]) -> list[dict[str, Any]]:
    """An entry per value of the knob: the mean over its runs at the checkpoints that they report."""
    settings = []
    values = sorted({m.run.knob[1] if m.run.knob else 0.0 for m in members})
    for value in values:
        runs = [m for m in members if (m.run.knob[1] if m.run.knob else 0.0) == value]
        kl, reward = (
            np.array([getattr(m.checkpoints[m.reported], name).mean() for m in runs]) for name in ("kl", "reward")
        )
        kl_draws, reward_draws = (
            np.array([getattr(m, f"{name}_draws")[m.reported] for m in runs]) for name in ("kl", "reward")
        )
        settings.append(
            {
                "knob_value": value if runs[0].run.knob else None,
                "seeds": [m.run.seed for m in runs],
                "kl": float(kl.mean()),
                "kl_ci": world.interval(kl, kl_draws),
                "reward": float(reward.mean()),
                "reward_ci": world.interval(reward, reward_draws),
                "efficiency": world.baselines.efficiency(float(kl.mean()), float(reward.mean())),
                "runs": [m.run.name for m in runs],
            }
        )
    return settings


def _diverged(world: World, members: Sequence[MeasuredRun]) -> list[str]:
    """Runs below the reference by more than their interval, or with over three times the median KL of their setting."""
    names = []
    for m in members:
        worse = percentile(m.reward_draws[m.reported] - world.reference_draws, world.confidence)[1] < 0
        others = [float(o.checkpoints[o.reported].kl.mean()) for o in members if o.run.knob == m.run.knob]
        far = len(others) > 2 and m.checkpoints[m.reported].kl.mean() > 3 * float(np.median(others))
        if worse or far:
            names.append(m.run.name)
    return names


def paired_tests(world: World, methods: Sequence[BudgetRewards]) -> list[dict[str, Any]]:
    """Compare every two methods at each budget within the KL that both spent; p-values are adjusted by Holm for all."""
    results = []
    for first, second in combinations(methods, 2):
        for j, budget in enumerate(BUDGETS):
            if not max(first.near, second.near) <= budget <= min(first.far, second.far):
                continue
            rewards, other_rewards = (method.rewards[:, j] for method in (first, second))
            draws, other_draws = (method.draws[:, :, j] for method in (first, second))
            p = two_sided_p(rewards, draws, other_rewards, other_draws, world.prompts)
            ends = difference_interval(rewards, draws, other_rewards, other_draws, world.confidence, world.prompts)
            difference = float(rewards.mean() - other_rewards.mean())
            results.append(
                {
                    "first": first.name,
                    "second": second.name,
                    "kl": budget,
                    "difference": difference,
                    "ci": ends,
                    "p": p,
                }
            )
    adjusted = holm(np.array([test["p"] for test in results]))
    return [test | {"p_adjusted": float(p)} for test, p in zip(results, adjusted, strict=True)]
