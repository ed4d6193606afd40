"""Reward over KL as points of methods, from arrays, measurements or finished runs: a table, a picture, a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from imdb_rlhf.api.results import Measurement
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier.curves import corners
from imdb_rlhf.frontier.draw import table
from imdb_rlhf.frontier.finished import find, read
from imdb_rlhf.frontier.measure import measure
from imdb_rlhf.frontier.methods import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ["method", "knob", "knob_value", "seed", "step", "last"]
NUMBERS = ["kl", "kl_low", "kl_high", "reward", "reward_low", "reward_high"]
INK, GREY, OCHRE = "#222222", "#888888", "#b8860b"


class Frontier:
    """Policies on the axes of reward and KL.

    Attributes:
        points: a row per policy: `method`, `knob`, `knob_value`, `seed`, `step`, `last` (whether the run reports it),
            `kl`, `reward` and their intervals (`kl_low`, ...).
        reference: `reward`, and `reward_ci` where it is known, of the reference at KL 0; None where it is not known.
        optimum: columns `kl`, `lower`, `upper`, and `trusted_kl` in `attrs`; None without a reservoir.
        best_of_n: columns `n`, `kl`, `reward`; None without a reservoir.
        content: `frontier.json`, of a frontier of finished runs.
    """

    def __init__(
        self,
        kl: ArrayLike,
        reward: ArrayLike,
        *,
        method: str | Sequence[str] = "policy",
        knob: str | None = None,
        knob_value: ArrayLike | None = None,
        kl_ci: ArrayLike | None = None,
        reward_ci: ArrayLike | None = None,
        reference: float | None = None,
    ) -> None:
        """A frontier of plain arrays.

        Args:
            kl: (n,) nats.
            reward: (n,).
            method: a name, or (n,) names.
            knob: the name of what was varied.
            knob_value: (n,) its values.
            kl_ci: (n, 2) intervals.
            reward_ci: (n, 2) intervals.
            reference: the reward of the reference, at KL 0.

        Raises:
            ConfigError: the arrays do not go together, or a number is nan or infinite.
        """
        spent, earned = _column(kl, "kl"), _column(reward, "reward")
        if len(spent) != len(earned):
            raise ConfigError(f"kl has {len(spent)} points and reward {len(earned)}; give one of each per policy")
        names = [method] * len(spent) if isinstance(method, str) else [str(name) for name in method]
        if len(names) != len(spent):
            raise ConfigError(
                f"method has {len(names)} names for {len(spent)} points; give one per policy, or one for all"
            )
        frame = pd.DataFrame({"method": names, "knob": knob, "kl": spent, "reward": earned, "last": True})
        frame["knob_value"] = np.nan if knob_value is None else _column(knob_value, "knob_value", len(spent))
        for name, ends in (("kl", kl_ci), ("reward", reward_ci)):
            low, high = _ends(ends, f"{name}_ci", len(spent))
            frame[f"{name}_low"], frame[f"{name}_high"] = low, high
        self.points = frame.assign(seed=None, step=None)[COLUMNS + NUMBERS]
        self.reference: dict[str, Any] | None = None if reference is None else {"reward": float(reference)}
        self.optimum: pd.DataFrame | None = None
        self.best_of_n: pd.DataFrame | None = None
        self.content: dict[str, Any] | None = None

    @classmethod
    def from_measurements(cls, measurements: Mapping[str, Measurement]) -> Self:
        """A frontier of measured models: name of the method -> its measurement; all from one reference.

        Raises:
            ConfigError: there is none, or their references differ.
        """
        if not measurements:
            raise ConfigError("measurements is empty; give at least one")
        given = list(measurements.values())
        if any(each.reference != given[0].reference for each in given):
            raise ConfigError("the measurements are from several references, prompts or rewards; measure on one World")
        made = cls(
            [each.kl for each in given],
            [each.reward for each in given],
            method=list(measurements),
            kl_ci=[each.kl_ci for each in given],
            reward_ci=[each.reward_ci for each in given],
        )
        made.reference = {key: given[0].reference[key] for key in ("reward", "reward_ci")}
        return made

    @classmethod
    def from_runs(cls, *places: str | Path) -> Self:
        """The frontier of finished runs, as `python -m imdb_rlhf.frontier` measures it.

        Args:
            places: run folders, sweep folders, or folders of them.

        Raises:
            ConfigError: there is no run, or the runs are not comparable.
            RunError: no run is finished.
        """
        if not places:
            raise ConfigError("no folder is given; name a run, a sweep or a folder of runs")
        runs, skipped = read(find([Path(place).expanduser() for place in places]))
        if not runs:
            raise RunError(f"no run is finished: {skipped[0]['path']}: {skipped[0]['why']}")
        content = measure(runs, skipped)
        rows = table(content) if content["points"] else pd.DataFrame(columns=COLUMNS + NUMBERS)
        made = cls.__new__(cls)
        made.points, made.content = rows, content
        made.reference = dict(content["reference"])
        made.optimum = _optimum(content["optimum"])
        made.best_of_n = _best_of_n(content["best_of_n"])
        return made

    def __add__(self, other: "Frontier") -> "Frontier":
        """Both frontiers' points; reference, optimum and best-of-N of the first that has them."""
        both = Frontier([0.0], [0.0])
        both.points = pd.concat([self.points, other.points], ignore_index=True)
        for name in ("reference", "optimum", "best_of_n"):
            own = getattr(self, name)
            setattr(both, name, getattr(other, name) if own is None else own)
        return both

    def to_frame(self) -> pd.DataFrame:
        """The points: a row per evaluated policy."""
        return self.points.copy()

    def reward_at(self, budgets: Sequence[float]) -> pd.DataFrame:
        """What each method earns with a budget of KL: a row per method, a column per budget.

        A method's curve goes from the reference over the corners of its points' upper concave hull and is flat past the
        last one; between two corners a policy draws one of the two. Of finished runs, the checkpoints are those that
        were chosen on validation prompts. Of arrays, the points choose themselves, which flatters those with noise.

        Raises:
            ConfigError: a budget is negative, or the reward of the reference is not known.
        """
        wanted = np.asarray(budgets, dtype=np.float64)
        if self.reference is None:
            raise ConfigError("the reward of the reference is not known; give Frontier(..., reference=...)")
        if not (wanted >= 0).all():
            raise ConfigError(f"a budget of {wanted.min()} nats cannot be; give numbers of at least 0")
        start, rows = float(self.reference["reward"]), {}
        for name, part in self.points.groupby("method", sort=False):
            seeds = [seed_part for _, seed_part in part.groupby("seed", dropna=False)]
            rows[name] = np.mean([_along(seed_part, start, wanted) for seed_part in seeds], axis=0)
        return pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(budgets, name="KL (nats)"))

    def plot(self, ax: "Axes | None" = None, *, log: bool = False) -> "Axes":
        """Draw methods, best-of-N, the optimum and the reference.

        Args:
            ax: an axis of matplotlib; None makes a figure.
            log: whether KL is on a logarithmic scale; the reference, at KL 0, is then a line.

        Returns:
            The axis.
        """
        if ax is None:
            import matplotlib.pyplot as plt  # opens a window system, which an axis of one's own need not

            _, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        if log:
            ax.set_xscale("log")
        _draw_references(ax, self, log)
        style_of = styles(self.points["method"])
        for name, part in self.points.groupby("method", sort=False):
            style, last = style_of[str(name)], part[part["last"].astype(bool)]
            earlier = part[~part["last"].astype(bool)]
            ax.plot(earlier["kl"], earlier["reward"], style.marker, color=style.colour, ms=3, alpha=0.35, lw=0)
            settings = last.groupby("knob_value", dropna=False)[["kl", "reward"]].mean().sort_values("kl")
            ax.plot(settings["kl"], settings["reward"], "-", color=style.colour, lw=1)
            _write_knobs(ax, settings)
            ax.errorbar(
                last["kl"],
                last["reward"],
                xerr=_reach(last, "kl"),
                yerr=_reach(last, "reward"),
                fmt=style.marker,
                color=style.colour,
                ms=5,
                lw=0.8,
                mfc="white" if last["seed"].notna().any() else style.colour,
                label=str(name),
            )
        ax.set_xlabel("KL to the reference (nats)")
        ax.set_ylabel("reward")
        ax.spines[["top", "right"]].set_visible(False)
        title = "hollow: one run each, bars over prompts only" if self.points["seed"].notna().any() else None
        ax.legend(frameon=False, fontsize=8, title=title, title_fontsize=7)
        return ax


def _draw_references(ax: "Axes", frontier: Frontier, log: bool) -> None:
    """Draw what needs no training; a logarithmic axis has no place for KL 0."""
    furthest = 1.15 * float(frontier.points["kl"].max()) if len(frontier.points) else np.inf
    if log and (frontier.points["kl"] > 0).any():
        nearest = float(frontier.points.loc[frontier.points["kl"] > 0, "kl"].min())
        ax.set_xlim(0.2 * nearest, furthest)
    least = ax.get_xlim()[0] if log else 0.0

    def shown(curve: pd.DataFrame) -> pd.DataFrame:
        return curve[(curve["kl"] >= least) & (curve["kl"] <= furthest)]

    if frontier.optimum is not None:
        band, trusted = shown(frontier.optimum), frontier.optimum.attrs["trusted_kl"]
        parts = ((band["kl"] <= trusted, OCHRE, "optimum"), (band["kl"] >= trusted, GREY, "optimum: too few samples"))
        for part, colour, label in parts:
            if part.any():
                inside = band[part]
                ax.fill_between(inside["kl"], inside["lower"], inside["upper"], color=colour, alpha=0.3, label=label)
                for name in ("lower", "upper"):
                    ax.plot(inside["kl"], inside[name], color=colour, lw=1)
    if frontier.best_of_n is not None:
        curve = shown(frontier.best_of_n)
        ax.plot(curve["kl"], curve["reward"], color=INK, lw=0.9, ls=(0, (4, 2)), label="best-of-N")
    if frontier.reference is not None:
        height = frontier.reference["reward"]
        ax.axhline(height, color=GREY, lw=0.6, ls=":")
        if not log:
            ax.plot([0], [height], "*", color=INK, ms=8, label="reference")


def _write_knobs(ax: "Axes", settings: pd.DataFrame) -> None:
    """Write the knob's value beside each setting of a method that has several."""
    if len(settings) > 1:
        for value, kl, reward in zip(settings.index, settings["kl"], settings["reward"], strict=True):
            if pd.notna(value):
                ax.annotate(
                    f"{value:g}", (kl, reward), xytext=(4, -9), textcoords="offset points", fontsize=7, color=GREY
                )


def _optimum(entry: Mapping[str, Any] | None) -> pd.DataFrame | None:
    if entry is None:
        return None
    frame = pd.DataFrame({name: entry[name] for name in ("kl", "lower", "upper")})
    frame.attrs["trusted_kl"] = entry["trusted_kl"]
    return frame


def _best_of_n(curves: Mapping[str, Any]) -> pd.DataFrame | None:
    """The curve by the true reward, or by the learned one where there is no other."""
    curve = curves.get("ground_truth") or curves.get("learned")
    return None if curve is None else pd.DataFrame({name: curve[name] for name in ("n", "kl", "reward")})


def _along(points: pd.DataFrame, start: float, budgets: np.ndarray) -> np.ndarray:
    """(budgets,) the reward of one seed's curve."""
    if "chosen" in points:
        on = points[points["chosen"].astype(bool)].sort_values("kl")
    else:
        on = points.iloc[corners(points["kl"].tolist(), points["reward"].tolist(), start)]
    kl = np.maximum.accumulate([0.0, *on["kl"]])
    return np.interp(budgets, kl, [start, *on["reward"]])


def _reach(points: pd.DataFrame, name: str) -> np.ndarray | None:
    """(2, n) how far an interval goes below and above each point."""
    if points[f"{name}_low"].isna().any():
        return None
    away = [points[name] - points[f"{name}_low"], points[f"{name}_high"] - points[name]]
    return np.maximum(np.array(away, dtype=np.float64), 0)


def _column(values: ArrayLike, name: str, count: int | None = None) -> np.ndarray:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is no list of numbers; give one per policy") from error
    if column.ndim != 1 or not len(column) or (count is not None and len(column) != count):
        raise ConfigError(
            f"{name} has shape {column.shape}; give one number per policy{'' if count is None else f' ({count})'}"
        )
    if not np.isfinite(column).all():
        raise ConfigError(
            f"{name}[{int(np.flatnonzero(~np.isfinite(column))[0])}] is nan or infinite; leave the policy out"
        )
    return column


def _ends(values: ArrayLike | None, name: str, count: int) -> tuple[Any, Any]:
    if values is None:
        return np.nan, np.nan
    ends = np.asarray(values, dtype=np.float64)
    if ends.shape != (count, 2) or not (ends[:, 0] <= ends[:, 1]).all():
        raise ConfigError(f"{name} has shape {ends.shape}; give low and high, in that order, per policy: ({count}, 2)")
    return ends[:, 0], ends[:, 1]
