"""Where a method's nats go: its distance to the optimum at equal reward, in parts.

A setting has reward R and KL k. Each part is a difference of the KL at which two curves reach R:

    needed        the optimum's, by its lower curve: no policy is known that needs less
    objective     what its loss's population optimum needs beyond that, were its reward the true one
    reward model  what that optimum needs more because its reward is a learned one
    data          k less what the same method needs with the most data (completions per prompt times prompts)
    optimisation  the rest; with the data's part where no run has more data

The parts add up to k. A part may be negative: noise, or a policy that is better than the one that its loss asks for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.population import Population
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.frontier.curves import corners
from imdb_rlhf.frontier.finished import FinishedRun
from imdb_rlhf.frontier.methods import NO_METHOD
from imdb_rlhf.frontier.population import population_curve, with_true_reward
from imdb_rlhf.frontier.world import MeasuredRun, World

PARTS = ("needed", "objective", "reward_model", "data", "optimisation")
DATA_KEYS = ("groups.k", "pairs.prompts")
LEAST_KL = 0.05  # nats: a policy that spent less has nothing to split


@dataclass(frozen=True)
class KLAtReward:
    """The KL at which a curve reaches each seed's reward, or why that is not known.

    Attributes:
        kl: (seeds,) nats.
        draws: (seeds, count) on resamples of the prompts.
        why: of what is not known; then the rest is empty.
    """

    kl: np.ndarray
    draws: np.ndarray
    why: str | None = None


def split(world: World, members: Mapping[str, Sequence[MeasuredRun]]) -> list[dict[str, Any]]:
    """The parts of every setting; none without a reservoir.

    Args:
        world: the runs' axes.
        members: name of a method -> its runs.

    Returns:
        Entries of `method`, `knob`, `knob_value`, `seeds`, `reward`, `kl` and `parts`: each a dict of `name`, `nats`,
        `ci` and `why` (what is not known has no number, and `why` says so).
    """
    if world.baselines.bounds is None or world.baselines.reservoir is None:
        return []
    curves = _Curves(world)
    every = [m for runs in members.values() for m in runs]
    entries = []
    for name, runs in members.items():
        for value in sorted({_knob(m) for m in runs}):
            setting = [m for m in runs if _knob(m) == value]
            entry = _entry(world, curves, setting, every)
            knob = setting[0].run.knob
            if entry is not None:
                entries.append(
                    {
                        "method": name,
                        "knob": None if knob is None else knob[0],
                        "knob_value": None if knob is None else value,
                        "seeds": [m.run.seed for m in setting],
                        **entry,
                    }
                )
    return entries


def _knob(m: MeasuredRun) -> float:
    return m.run.knob[1] if m.run.knob else 0.0


class _Curves:
    """Reward over KL of the optimum and of population optima, on the grid of the optimum; each is computed once."""

    def __init__(self, world: World) -> None:
        self.world, self.bounds, rows = world, world.baselines.bounds, world.baselines.reservoir
        assert self.bounds is not None and rows is not None
        self.columns = {
            name: reservoir.table(rows, "test", name) for name in ("reward", "reward_logit", "learned") if name in rows
        }
        self._known: dict[Population, tuple[np.ndarray, np.ndarray]] = {}

    def optimum(self) -> tuple[np.ndarray, np.ndarray]:
        """The optimum's lower curve."""
        assert self.bounds is not None
        return self.bounds.lower, self.bounds.lower_draws

    def of(self, population: Population) -> tuple[np.ndarray, np.ndarray]:
        """A population optimum's curve.

        Raises:
            KeyError: the reservoir has no learned scores.
        """
        if population not in self._known:
            grid, weights = self.world.baselines.grid, self.world.weights
            self._known[population] = population_curve(population, self.columns.__getitem__, grid, weights)
        return self._known[population]


def _entry(
    world: World, curves: _Curves, setting: Sequence[MeasuredRun], every: Sequence[MeasuredRun]
) -> dict[str, Any] | None:
    """The parts of one setting; None where it spent next to nothing."""
    kl, reward = (np.array([getattr(m.checkpoints[m.reported], name).mean() for m in setting]) for name in KEYS)
    kl_draws, reward_draws = (np.array([getattr(m, f"{name}_draws")[m.reported] for m in setting]) for name in KEYS)
    if kl.mean() < LEAST_KL:
        return None
    grid = world.baselines.grid
    needed = at_reward(grid, *curves.optimum(), reward, reward_draws, "the optimum's lower curve ends below its reward")
    parts = {"needed": needed}
    parts |= _loss_parts(curves, setting[0].run, needed, reward, reward_draws)
    parts["data"] = _data_part(world, setting, every, (kl, kl_draws), (reward, reward_draws))
    known = [part for part in parts.values() if part.why is None]
    if needed.why is None:
        rest = KLAtReward(kl - sum(part.kl for part in known), kl_draws - sum(part.draws for part in known))
    else:
        rest = KLAtReward(kl[:0], kl_draws[:0], needed.why)
    parts["optimisation"] = rest
    return {
        "kl": float(kl.mean()),
        "kl_ci": world.interval(kl, kl_draws),
        "reward": float(reward.mean()),
        "reward_ci": world.interval(reward, reward_draws),
        "parts": [_part(world, name, parts[name]) for name in PARTS],
    }


KEYS = ("kl", "reward")


def _part(world: World, name: str, part: KLAtReward) -> dict[str, Any]:
    if part.why is not None:
        return {"name": name, "nats": None, "ci": None, "why": part.why}
    # a resample in which a curve ends below the reward says nothing of the rest
    usable = np.isfinite(part.draws).all(0)
    ends = world.interval(part.kl, part.draws[:, usable]) if usable.mean() > 0.9 else None
    return {"name": name, "nats": float(part.kl.mean()), "ci": ends, "why": None}


def _loss_parts(
    curves: _Curves, run: FinishedRun, needed: KLAtReward, reward: np.ndarray, draws: np.ndarray
) -> dict[str, KLAtReward]:
    """`objective` and `reward_model` of a run's setting."""
    none = np.empty((0,)), np.empty((0, draws.shape[1]))
    if needed.why is not None:
        return dict.fromkeys(("objective", "reward_model"), needed)
    asked = _asked(run)
    if isinstance(asked, str):
        return dict.fromkeys(("objective", "reward_model"), KLAtReward(*none, asked))
    grid, true = curves.world.baselines.grid, with_true_reward(asked)
    beyond = "what its loss asks for has less reward"
    own = at_reward(grid, *curves.of(true), reward, draws, beyond)
    objective = _less(own, needed)
    if true == asked:
        return {"objective": objective, "reward_model": KLAtReward(np.zeros(len(reward)), np.zeros_like(draws))}
    if "learned" not in curves.columns:
        why = "no run has the learned reward of the reservoir; add algo=best_of_n"
        return {"objective": objective, "reward_model": KLAtReward(*none, why)}
    learned = at_reward(grid, *curves.of(asked), reward, draws, "the learned reward's optimum has less reward")
    return {"objective": objective, "reward_model": _less(learned, own)}


def _asked(run: FinishedRun) -> Population | str:
    """What a run's loss asks for, or why that is not known."""
    try:
        return ALGOS[run.algo].population(run.config) if run.algo in ALGOS else "nothing is known of its loss"
    except KeyError as error:
        return f"its configuration has no {error.args[0]}"


def _less(first: KLAtReward, second: KLAtReward) -> KLAtReward:
    unknown = next((part for part in (first, second) if part.why is not None), None)
    return unknown or KLAtReward(first.kl - second.kl, first.draws - second.draws)


def _data_part(
    world: World,
    setting: Sequence[MeasuredRun],
    every: Sequence[MeasuredRun],
    kl: tuple[np.ndarray, np.ndarray],
    reward: tuple[np.ndarray, np.ndarray],
) -> KLAtReward:
    """`data` of a setting: its KL less what the same method needs with the most data."""
    none = np.empty((0,)), np.empty((0, kl[1].shape[1]))
    amount = data_amount(setting[0].run)
    alike = [
        m for m in every if m.run.algo == setting[0].run.algo and _without_data(m.run) == _without_data(setting[0].run)
    ]
    most = max(data_amount(m.run) or 0 for m in alike)
    if amount is None or most <= amount:
        return KLAtReward(*none, "no run of the method has more data")
    curve = _curve(world, [m for m in alike if data_amount(m.run) == most])
    more = at_reward(*curve, *reward, "with more data it does not reach this reward")
    return more if more.why is not None else KLAtReward(kl[0] - more.kl, kl[1] - more.draws)


def data_amount(run: FinishedRun) -> int | None:
    """Completions that a method learns from: those per prompt times the prompts that are used; None for no groups."""
    prompts, k = run.flat.get("pairs.prompts") or run.flat.get("data.prompts.train"), run.flat.get("groups.k")
    return None if prompts is None or k is None else int(prompts) * int(k)


def _without_data(run: FinishedRun) -> dict[str, Any]:
    left_out = {*run.knob_keys, *DATA_KEYS}
    method = {key: value for key, value in run.flat.items() if key not in left_out and not NO_METHOD.match(key)}
    return method | {"algo": run.algo}


def _curve(world: World, runs: Sequence[MeasuredRun]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The upper concave hull of a method's settings, means over seeds, on the optimum's grid; nan past its end."""
    values = sorted({_knob(m) for m in runs})
    groups = [[m for m in runs if _knob(m) == value] for value in values]
    (kl, kl_draws), (reward, reward_draws) = (_means(groups, key) for key in KEYS)
    chosen = corners(kl.tolist(), reward.tolist(), float(world.reference.mean()))
    grid, zero = world.baselines.grid, np.zeros(len(world.weights))
    spent = np.vstack([zero, kl_draws[chosen]])
    bought = np.vstack([world.reference_draws, reward_draws[chosen]])

    def along(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.interp(grid, np.maximum.accumulate(x), y, right=np.nan)

    curve = along(np.array([0.0, *kl[chosen]]), np.array([world.reference.mean(), *reward[chosen]]))
    return grid, curve, np.array([along(*pair) for pair in zip(spent.T, bought.T, strict=True)])


def _means(groups: Sequence[Sequence[MeasuredRun]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(groups,) the mean over seeds of KL or reward at the reported checkpoints, and (groups, count) on resamples."""
    means = [np.mean([getattr(m.checkpoints[m.reported], key).mean() for m in group]) for group in groups]
    draws = [np.mean([getattr(m, f"{key}_draws")[m.reported] for m in group], axis=0) for group in groups]
    return np.array(means), np.array(draws)


def at_reward(
    grid: np.ndarray, curve: np.ndarray, curve_draws: np.ndarray, reward: np.ndarray, draws: np.ndarray, why: str
) -> KLAtReward:
    """The KL at which a curve reaches rewards.

    Args:
        grid: (G,) nats, ascending from 0.
        curve: (G,) reward; nan where it is unknown.
        curve_draws: (count, G) the same on resamples of the prompts.
        reward: (seeds,) to be reached.
        draws: (seeds, count) on the same resamples.
        why: said where the curve does not reach the mean reward.
    """
    kl = np.array([inverse(grid, curve[None], np.array([value]))[0] for value in reward])
    if not np.isfinite(kl).all():
        return KLAtReward(kl[:0], draws[:0], why)
    return KLAtReward(kl, np.array([inverse(grid, curve_draws, values) for values in draws]))


def inverse(grid: np.ndarray, curves: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """(n,) the least KL at which each curve, linear between its points, reaches its reward; infinity if it does not.

    Args:
        grid: (G,) nats, ascending from 0.
        curves: (n, G) rewards; nan where unknown.
        rewards: (n,).
    """
    known = np.where(np.isnan(curves), -np.inf, curves)
    reaching = known >= rewards[:, None]
    at = reaching.argmax(1)
    rows = np.arange(len(curves))
    before = np.maximum(at - 1, 0)
    low, high = known[rows, before], known[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where((high > low) & np.isfinite(low), (rewards - low) / (high - low), 1.0)
    found = grid[before] + share * (grid[at] - grid[before])
    return np.where(reaching.any(1), np.where(at == 0, grid[0], found), np.inf)
