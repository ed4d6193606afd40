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
from imdb_rlhf.frontier.world import MeasuredRun, Origin, World
from imdb_rlhf.runs.kind import RunKind
from imdb_rlhf.runs.kinds import KINDS

PARTS = ("needed", "objective", "reward_model", "data", "optimisation")
DATA_KEYS = ("groups.k", "pairs.prompts")
LEAST_KL = 0.05  # nats: a policy that spent less has nothing to split
LEAST_USABLE = 0.9  # share of the resamples that an interval needs


@dataclass(frozen=True)
class Part:
    """A part of every run of a setting, or why it is not known.

    Attributes:
        nats: (runs,).
        draws: (runs, count) on resamples of the prompts.
        why: of what is not known; the rest is then nan.
    """

    nats: np.ndarray
    draws: np.ndarray
    why: str | None = None

    def less(self, other: "Part") -> "Part":
        """This part less another; not known where one of them is not."""
        return Part(self.nats - other.nats, self.draws - other.draws, self.why or other.why)


def split(world: World, members: Mapping[str, Sequence[MeasuredRun]]) -> list[dict[str, Any]]:
    """The parts of every setting; none where a reference has no reservoir.

    Args:
        world: the runs' axes.
        members: name of a method -> its runs.

    Returns:
        Entries of `method`, `knob`, `knob_value`, `seeds`, `reward`, `kl` and `parts`: each a dict of `name`, `nats`,
        `ci` and `why` (what is not known has no number, and `why` says so).
    """
    if any(origin.baselines.bounds is None for origin in world.origins):
        return []
    curves = {origin.place: _Curves(world, origin) for origin in world.origins}
    every = [m for runs in members.values() for m in runs]
    entries = []
    for name, runs in members.items():
        for value in sorted({_knob(m) for m in runs}):
            setting = _Setting(world, [m for m in runs if _knob(m) == value])
            if setting.kl.mean() < LEAST_KL:
                continue
            knob = runs[0].run.knob
            named = {"method": name, "knob": knob and knob[0], "knob_value": value if knob else None}
            entries.append(named | setting.entry(_parts(setting, curves, every)))
    return entries


def _knob(m: MeasuredRun) -> float:
    return m.run.knob[1] if m.run.knob else 0.0


class _Setting:
    """The runs of one method and value of its knob, at the checkpoints that they report."""

    def __init__(self, world: World, runs: Sequence[MeasuredRun]) -> None:
        self.world, self.runs, self.origins = world, runs, [m.origin for m in runs]
        self.kl, self.reward = (
            np.array([getattr(m.checkpoints[m.reported], name).mean() for m in runs]) for name in ("kl", "reward")
        )
        self.kl_draws, self.reward_draws = (
            np.array([getattr(m, f"{name}_draws")[m.reported] for m in runs]) for name in ("kl", "reward")
        )

    def unknown(self, why: str) -> Part:
        """A part that is not known."""
        return Part(np.full(len(self.runs), np.nan), np.full(self.kl_draws.shape, np.nan), why)

    def nothing(self) -> Part:
        """A part of no nats."""
        return Part(np.zeros(len(self.runs)), np.zeros(self.kl_draws.shape))

    def at_reward(self, curves: Sequence[tuple[np.ndarray, np.ndarray]], why: str) -> Part:
        """The KL at which each run's curve reaches its reward.

        Args:
            curves: of each run (G,) rewards on the optimum's grid, and (count, G) on resamples; nan where unknown.
            why: said where a curve does not reach the reward.
        """
        grid = self.world.origins[0].baselines.grid
        pairs = list(zip(curves, self.reward, self.reward_draws, strict=True))
        nats = np.array([inverse(grid, curve[None], np.array([reward]))[0] for (curve, _), reward, _ in pairs])
        if not np.isfinite(nats).all():
            return self.unknown(why)
        return Part(nats, np.array([inverse(grid, draws, rewards) for (_, draws), _, rewards in pairs]))

    def entry(self, parts: Mapping[str, Part]) -> dict[str, Any]:
        """Its entry but for the names."""
        return {
            "seeds": [m.run.seed for m in self.runs],
            **{f"{name}{end}": value for name in ("kl", "reward") for end, value in self._mean(name).items()},
            "parts": [self._part(name, parts[name]) for name in PARTS],
        }

    def _mean(self, name: str) -> dict[str, Any]:
        nats, ends = self._interval(getattr(self, name), getattr(self, f"{name}_draws"))
        return {"": nats, "_ci": ends}

    def _interval(self, values: np.ndarray, draws: np.ndarray) -> tuple[float, list[float] | None]:
        means, draws = (self.world.means(each, self.origins) for each in (values, draws))
        # a resample in which a curve ends below the reward says nothing of the rest
        usable = np.isfinite(draws).all(0)
        ends = self.world.interval(means, draws[:, usable]) if usable.mean() > LEAST_USABLE else None
        return float(means.mean()), ends

    def _part(self, name: str, part: Part) -> dict[str, Any]:
        if part.why is not None:
            return {"name": name, "nats": None, "ci": None, "why": part.why}
        nats, ends = self._interval(part.nats, part.draws)
        return {"name": name, "nats": nats, "ci": ends, "why": None}


class _Curves:
    """Reward over KL of one reference's optimum and of population optima; each is computed once."""

    def __init__(self, world: World, origin: Origin) -> None:
        self.world, self.baselines = world, origin.baselines
        bounds, rows = self.baselines.bounds, self.baselines.reservoir
        assert bounds is not None and rows is not None
        self.optimum = bounds.lower, bounds.lower_draws
        names = [name for name in ("reward", "reward_logit", "learned") if name in rows]
        self.columns = {name: reservoir.table(rows, "test", name) for name in names}
        self._known: dict[Population, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, population: Population) -> tuple[np.ndarray, np.ndarray]:
        """A population optimum's curve.

        Raises:
            KeyError: the reservoir has no learned scores.
        """
        if population not in self._known:
            grid, weights = self.baselines.grid, self.world.weights
            self._known[population] = population_curve(population, self.columns.__getitem__, grid, weights)
        return self._known[population]


def _parts(setting: _Setting, curves: Mapping[int, _Curves], every: Sequence[MeasuredRun]) -> dict[str, Part]:
    """The parts of one setting."""
    own = [curves[origin.place] for origin in setting.origins]
    needed = setting.at_reward([each.optimum for each in own], "the optimum's lower curve ends below its reward")
    parts = {"needed": needed} | _loss_parts(setting, own, needed)
    parts["data"] = _data_part(setting, every)
    rest = Part(setting.kl, setting.kl_draws, needed.why)
    for part in parts.values():
        rest = rest.less(part) if part.why is None else rest
    return parts | {"optimisation": rest}


def _loss_parts(setting: _Setting, curves: Sequence[_Curves], needed: Part) -> dict[str, Part]:
    """`objective` and `reward_model` of a setting."""
    asked = _asked(setting.runs[0].run)
    if needed.why is not None or isinstance(asked, str):
        unknown = setting.unknown(needed.why or str(asked))
        return {"objective": unknown, "reward_model": unknown}
    true = with_true_reward(asked)
    own = setting.at_reward([each.of(true) for each in curves], "what its loss asks for has less reward")
    objective = own.less(needed)
    if true == asked:
        return {"objective": objective, "reward_model": setting.nothing()}
    if any("learned" not in each.columns for each in curves):
        why = "no run has the learned reward of the reservoir; add algo=best_of_n"
        return {"objective": objective, "reward_model": setting.unknown(why)}
    learned = setting.at_reward([each.of(asked) for each in curves], "the learned reward's optimum has less reward")
    return {"objective": objective, "reward_model": learned.less(own)}


def _asked(run: FinishedRun) -> Population | str:
    """What a run's loss asks for, or why that is not known."""
    try:
        return (ALGOS.get(run.algo) or KINDS.get(run.algo) or RunKind).population(run.config)
    except KeyError as error:
        return f"its configuration has no {error.args[0]}"


def _data_part(setting: _Setting, every: Sequence[MeasuredRun]) -> Part:
    """`data` of a setting: its KL less what the same method needs with the most data."""
    base, amount = _without_data(setting.runs[0].run), data_amount(setting.runs[0].run)
    alike = [m for m in every if _without_data(m.run) == base]
    most = max(data_amount(m.run) or 0 for m in alike)
    if amount is None or most <= amount:
        return setting.unknown("no run of the method has more data")
    more = [m for m in alike if data_amount(m.run) == most]
    curves = [_curve(setting.world, origin, [m for m in more if m.origin is origin]) for origin in setting.origins]
    reached = setting.at_reward(curves, "with more data it does not reach this reward")
    return Part(setting.kl, setting.kl_draws).less(reached)


def data_amount(run: FinishedRun) -> int | None:
    """Completions that a method learns from: those per prompt times the prompts that are used; None for no groups."""
    prompts, k = run.flat.get("pairs.prompts") or run.flat.get("data.prompts.train"), run.flat.get("groups.k")
    return None if prompts is None or k is None else int(prompts) * int(k)


def _without_data(run: FinishedRun) -> dict[str, Any]:
    left_out = {*run.knob_keys, *DATA_KEYS}
    method = {key: value for key, value in run.flat.items() if key not in left_out and not NO_METHOD.match(key)}
    return method | {"algo": run.algo}


def _curve(world: World, origin: Origin, runs: Sequence[MeasuredRun]) -> tuple[np.ndarray, np.ndarray]:
    """The upper concave hull of a method's settings, means over seeds, on the optimum's grid; nan past its end."""
    values = sorted({_knob(m) for m in runs})
    groups = [[m for m in runs if _knob(m) == value] for value in values]
    (kl, kl_draws), (reward, reward_draws) = (_means(groups, key) for key in ("kl", "reward"))
    start = float(origin.reference.mean())
    chosen = corners(kl.tolist(), reward.tolist(), start)
    spent = np.vstack([np.zeros(len(world.weights)), kl_draws[chosen]])
    bought = np.vstack([origin.draws, reward_draws[chosen]])

    def along(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.interp(origin.baselines.grid, np.maximum.accumulate(x), y, right=np.nan)

    curve = along(np.array([0.0, *kl[chosen]]), np.array([start, *reward[chosen]]))
    return curve, np.array([along(*pair) for pair in zip(spent.T, bought.T, strict=True)])


def _means(groups: Sequence[Sequence[MeasuredRun]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(groups,) the mean over seeds of KL or reward at the reported checkpoints, and (groups, count) on resamples."""
    means = [np.mean([getattr(m.checkpoints[m.reported], key).mean() for m in group]) for group in groups]
    draws = [np.mean([getattr(m, f"{key}_draws")[m.reported] for m in group], axis=0) for group in groups]
    return np.array(means), np.array(draws)


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
