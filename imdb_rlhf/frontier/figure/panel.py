"""A panel of a figure that records where ink is, so that its labels can be placed where nothing else is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imdb_rlhf.frontier.figure.labels import LEADER, Spot, Wish, best, between, place

SPARE = 45.0  # the largest cost of an optional label's place: next to its point, on no line
NEAR = 8.5  # points; the largest distance of an optional label from its point


def finite(*values: Any) -> bool:
    """Whether all values are numbers that can be drawn; those of a diverged run may not be."""
    return all(value is not None and bool(np.isfinite(value)) for value in values)


@dataclass
class Panel:
    """An axes whose limits are set: KL, linear or logarithmic, against reward.

    Everything that is drawn through it gets a gid that starts with the panel's name, and counts as ink on a grid of one
    cell per point (1/72 inch).
    """

    axes: Axes
    name: str
    log: bool
    ink: np.ndarray = field(init=False)
    """(height, width) the cost of covering a cell with a label."""
    wishes: list[Wish] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Start without ink."""
        width, height = self.size
        self.ink = np.zeros((int(height) + 1, int(width) + 1))

    # --- drawing -----------------------------------------------------------------------------------------------------

    def line(self, kl: Any, reward: Any, gid: str, *, weight: float = 1.0, **style: Any) -> np.ndarray:
        """Draw a line and return its (n, 2) points without those at KL 0 on a logarithmic axis."""
        x, y = self._drawable(kl, reward)
        self.axes.plot(x, y, gid=self._gid(gid), **style)
        points = self.points(x, y)
        self._occupy_line(points, weight)
        return points

    def dots(self, kl: Any, reward: Any, gid: str, *, weight: float = 1.0, radius: float = 1.0, **style: Any) -> None:
        """Draw markers without a line."""
        x, y = self._drawable(kl, reward)
        self.axes.plot(x, y, ls="", gid=self._gid(gid), **style)
        self._occupy(self.visible(self.points(x, y)), weight, radius)

    def estimate(
        self,
        kl: float,
        of: Mapping[str, Any],
        gid: str,
        *,
        marker: str,
        color: str,
        edge: str,
        size: float,
        hollow: bool = False,
    ) -> None:
        """Draw a point at a KL and the `reward` of a mapping, with its `kl_ci` and `reward_ci` if it has them."""
        reward = of["reward"]
        ends = of.get("kl_ci")
        if ends is not None and finite(*ends):
            smallest = self.axes.get_xlim()[0] if self.log else 0.0
            bar = [max(end, smallest) for end in ends]
            self.line(bar, [reward] * 2, f"{gid}-kl-ci", weight=0.7, color=color, lw=0.9, alpha=0.8, zorder=4.5)
        ends = of.get("reward_ci")
        if ends is not None and finite(*ends):
            self.line([kl] * 2, ends, f"{gid}-reward-ci", weight=0.7, color=color, lw=0.9, alpha=0.8, zorder=4.5)
        fill, width = ("white", 0.9) if hollow else (color, 0.5)
        style: dict[str, Any] = {"marker": marker, "ms": size, "mfc": fill, "mec": edge, "mew": width, "zorder": 5}
        self.dots([kl], [reward], gid, weight=1.5, radius=size / 2, clip_on=kl != 0, **style)

    def arrow(self, tip: np.ndarray, vector: np.ndarray, gid: str, color: str) -> None:
        """Draw an arrow with the length and direction of `vector` that ends at `tip`, both in points."""
        head = {"arrowstyle": "-|>", "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
        self.axes.annotate(
            "",
            tuple(tip / self.size),
            tuple((tip - vector) / self.size),
            xycoords="axes fraction",
            textcoords="axes fraction",
            arrowprops={**head, "gid": self._gid(gid)},
            zorder=6,
        )
        self._occupy_line(np.array([tip - vector, tip]), 1)

    # --- labels ------------------------------------------------------------------------------------------------------

    def label(self, text: str, points: np.ndarray, gid: str, *, optional: bool = False, **style: Any) -> None:
        """Request a label beside one of the (n, 2) points; there is none if all of them are outside the panel."""
        anchors = self.visible(points)
        if not len(anchors):
            return
        if len(anchors) > 24:
            walked = np.concatenate([[0], np.hypot(*np.diff(anchors, axis=0).T).cumsum()])
            anchors = anchors[np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], 24)))]
        sample = self.figure.text(0, 0, text, parse_math=False, **style)
        box = sample.get_window_extent()
        sample.remove()
        size = (float(box.width * self._scale), float(box.height * self._scale))
        self.wishes.append(Wish(text, anchors, *size, style, self._gid(gid), optional))

    def write(self) -> None:
        """Place and write the labels: first those that are needed, then the optional ones that there is room for."""
        needed = [wish for wish in self.wishes if not wish.optional]
        placed = list(zip(needed, place(needed, self.ink, self.size), strict=True))
        for wish in self.wishes:
            spot = best(wish, self.ink, self.size, placed) if wish.optional else None
            if spot is not None and spot.cost < SPARE and spot.distance <= NEAR:
                placed.append((wish, spot))
        for wish, spot in placed:
            self._write(wish, spot)

    def _write(self, wish: Wish, spot: Spot) -> None:
        at = (spot.left / self.size[0], spot.bottom / self.size[1])
        to = self.axes.transAxes
        self.axes.text(
            *at, wish.text, transform=to, ha="left", va="bottom", gid=wish.gid, zorder=9, parse_math=False, **wish.style
        )
        if spot.distance > LEADER and not wish.optional:
            ends = np.array([spot.edge, spot.anchor]) / self.size
            style = {"color": wish.style.get("color", "black"), "lw": 0.5, "alpha": 0.8, "zorder": 8}
            self.axes.plot(*ends.T, transform=to, gid=f"{wish.gid}-leader", **style)

    # --- places ------------------------------------------------------------------------------------------------------

    @property
    def figure(self) -> Figure:
        """The figure that the panel belongs to."""
        figure = self.axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        return figure

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in points."""
        box = self.axes.get_window_extent()
        return float(box.width * self._scale), float(box.height * self._scale)

    def points(self, kl: Any, reward: Any) -> np.ndarray:
        """(n, 2) positions of data in the panel, in points; data that cannot be drawn are left out."""
        data = np.column_stack(self._drawable(kl, reward))
        box = self.axes.get_window_extent()
        return (self.axes.transData.transform(data[np.isfinite(data).all(1)]) - (box.x0, box.y0)) * self._scale

    def visible(self, points: np.ndarray) -> np.ndarray:
        """Those of the (n, 2) points that are inside the panel."""
        return points[(points >= 0).all(1) & (points <= self.size).all(1)]

    def _gid(self, name: str) -> str:
        return "_".join(f"{self.name}-{name}".split())  # it becomes an id in the SVG, which may not have spaces

    @property
    def _scale(self) -> float:
        return 72 / self.figure.dpi

    def _drawable(self, kl: Any, reward: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.atleast_1d(np.asarray(kl, float)), np.atleast_1d(np.asarray(reward, float))
        return (np.where(x > 0, x, np.nan) if self.log else x), y

    def _occupy(self, points: np.ndarray, weight: float, radius: float = 0.0) -> None:
        reach = range(-int(np.ceil(radius)), int(np.ceil(radius)) + 1)
        cells = np.concatenate([points + (dx, dy) for dx in reach for dy in reach]).reshape(-1, 2)
        at = self.visible(cells).astype(int)
        np.maximum.at(self.ink, (at[:, 1], at[:, 0]), weight)

    def _occupy_line(self, points: np.ndarray, weight: float) -> None:
        for start, end in zip(points[:-1], points[1:], strict=True):
            self._occupy(between(start, end), weight)
