"""Methods compared: their curves, the reward that each KL budget buys, scores and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from imdb_rlhf.evaluation.stats import difference_interval, holm, percentile, two_sided_p
from imdb_rlhf.frontier.baselines import interpolated
from imdb_rlhf.frontier.curves import Curve, area, corners
from imdb_rlhf.frontier.settings import settings
from imdb_rlhf.frontier.world import BUDGETS, SCORE_KL, MeasuredRun, Origin, World


@dataclass(frozen=True)
class BudgetRewards:
    """The reward that a method's curves reach at each of `BUDGETS`.

    Attributes:
        name: of the method.
        rewards: (seeds, budgets); of a pool (references, budgets).
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
    """The curve of one training seed from its runs, which are from one reference; marks its corners as chosen."""
    index = [(m, i) for m in members for i in range(len(m.checkpoints))]
    kl, reward = ([getattr(m.checkpoints[i], f"validation_{name}") for m, i in index] for name in ("kl", "reward"))
    origin = members[0].origin
    start = float(origin.reference.mean()) if origin.validation is None else origin.validation
    chosen = [index[at] for at in corners(kl, reward, start)]
    for m, i in chosen:
        m.chosen.append(i)
    zero = np.zeros(len(world.weights))
    return Curve(
        np.array([0.0, *(m.checkpoints[i].kl.mean() for m, i in chosen)]),
        np.array([origin.reference.mean(), *(m.checkpoints[i].reward.mean() for m, i in chosen)]),
        np.stack([zero, *(m.kl_draws[i] for m, i in chosen)], axis=1),
        np.stack([origin.draws, *(m.reward_draws[i] for m, i in chosen)], axis=1),
    )


def compare(world: World, name: str, members: Sequence[MeasuredRun]) -> tuple[dict[str, Any], BudgetRewards]:
    """A method's entry in `frontier.json`, and its rewards at the budgets."""
    keys = sorted({(m.origin.place, m.run.seed) for m in members})
    of_key = [[m for m in members if (m.origin.place, m.run.seed) == key] for key in keys]
    origins = [group[0].origin for group in of_key]
    curves = [curve(world, group) for group in of_key]
    steps = np.unique(np.concatenate([np.linspace(0, SCORE_KL, 101), BUDGETS]))
    values, draws = np.array([c.at(steps) for c in curves]), np.array([c.draws_at(steps) for c in curves])
    places = np.searchsorted(steps, BUDGETS)
    spent = [[c.kl.mean() for m in group for c in m.checkpoints] for group in of_key]
    near, far = float(max(map(min, spent))), float(min(map(max, spent)))
    rewards, reward_draws = (world.means(each, origins) for each in (values[:, places], draws[:, :, places]))
    at_budgets = BudgetRewards(name, rewards, reward_draws, near, far)
    table = [
        {
            "kl": budget,
            "reward": float(rewards[:, j].mean()),
            "reward_ci": world.interval(rewards[:, j], reward_draws[:, :, j]),
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
        "seeds": sorted({seed for _, seed in keys}),
        "covers": world.covers(len(rewards)),
        **_score(world, sum(map(len, spent)), origins, steps, values, draws),
        "at_budget": table,
        "settings": settings(world, members),
        "diverged": _diverged(world, members),
    }
    return entry, at_budgets


def _score(
    world: World, points: int, origins: Sequence[Origin], steps: np.ndarray, values: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    """The area above the reference over [0, K] as a share of the optimum's; None where there is one point only.

    Args:
        world: the runs' world.
        points: how many checkpoints the curves are made from.
        origins: (curves,) the reference of each curve.
        steps: (G,) nats.
        values: (curves, G) rewards.
        draws: (curves, count, G) the same on each resample of the prompts.
    """
    none = {"score": None, "score_ci": None, "score_raw": None}
    if points < 2:
        return none
    inside = steps <= SCORE_KL
    grid = steps[inside]
    own = np.array([area(grid, v[inside], float(o.reference.mean())) for v, o in zip(values, origins, strict=True)])
    own_draws = np.array([area(grid, d[:, inside], o.draws) for d, o in zip(draws, origins, strict=True)])
    entry: dict[str, Any] = none | {"score_raw": float(world.means(own, origins).mean())}
    best = {origin.place: _areas_of_optimum(origin, grid) for origin in origins}
    ends, intervals = [], []
    for bound in (0, 1):
        known = [best[origin.place][bound] for origin in origins]
        if any(mean is None or mean <= 0 or (spread <= 0).any() for mean, spread in known):
            return entry  # no optimum, or the reference cannot be surpassed
        shares = world.means(own / np.array([mean for mean, _ in known]), origins)
        share_draws = world.means(own_draws / np.array([spread for _, spread in known]), origins)
        ends.append(float(shares.mean()))
        intervals.append(world.interval(shares, share_draws))
    return entry | {"score": ends, "score_ci": [intervals[0][0], intervals[1][1]]}


def _areas_of_optimum(origin: Origin, grid: np.ndarray) -> list[tuple[float | None, np.ndarray]]:
    """The area above the reference of the optimum's upper and lower curve, and on each resample; None without one."""
    bounds, start = origin.baselines.bounds, float(origin.reference.mean())
    if bounds is None:
        return [(None, np.empty(0))] * 2
    return [
        (
            float(area(grid, np.interp(grid, bounds.kl, curve), start)),
            area(grid, interpolated(grid, bounds.kl, curve_draws), origin.draws),
        )
        for curve, curve_draws in ((bounds.upper, bounds.upper_draws), (bounds.lower, bounds.lower_draws))
    ]


def _diverged(world: World, members: Sequence[MeasuredRun]) -> list[str]:
    """Runs below the reference by more than their interval, or with over three times the median KL of their setting."""
    names = []
    for m in members:
        worse = percentile(m.reward_draws[m.reported] - m.origin.draws, world.confidence)[1] < 0
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
            if len(world.origins) > 1:  # both methods start from the same references: paired over them, too
                rewards, draws = rewards - other_rewards, draws - other_draws
                other_rewards, other_draws = np.zeros(1), np.zeros_like(draws[:1])
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
