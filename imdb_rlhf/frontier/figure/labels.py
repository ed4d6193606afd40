"""Places for labels: beside their points, and where nothing else is drawn.

Everything is measured in points (1/72 inch) from a panel's lower left corner, so that the layout does not depend on the
resolution. There is no randomness: equal drawings get equal places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

GRID = 2  # points between the places that are tried
EDGE = 4  # points between a label and the axes
GAP = 2.0  # points that stay free around a label
LEADER = 7.0  # points from its anchor beyond which a label has a thin line to it


@dataclass
class Wish:
    """A label that needs a place."""

    text: str
    anchors: np.ndarray
    """(anchors, 2) points of the panel: the label may be beside any of them."""
    width: float
    height: float
    style: dict[str, Any]
    gid: str
    optional: bool
    """Whether the label is left out if it would touch something."""


@dataclass
class Spot:
    """The place of a label: its lower left corner, and the two ends of its leader."""

    left: float
    bottom: float
    anchor: tuple[float, float]
    edge: tuple[float, float]
    cost: float

    @property
    def distance(self) -> float:
        """From the label's edge to its anchor, points."""
        return float(np.hypot(self.anchor[0] - self.edge[0], self.anchor[1] - self.edge[1]))


def place(wishes: list[Wish], ink: np.ndarray, size: tuple[float, float], rounds: int = 3) -> list[Spot]:
    """Find a place for every label: greedily, in order, then each anew given the others.

    Args:
        wishes: the labels.
        ink: (height, width) cost of covering a cell of one point.
        size: width and height of the panel, points.
        rounds: how often every label is placed.

    Returns:
        A place per label. Labels do not overlap as long as there is room.
    """
    spots: list[Spot | None] = [None] * len(wishes)
    for _ in range(rounds):
        for at, wish in enumerate(wishes):
            others = [(w, s) for i, (w, s) in enumerate(zip(wishes, spots, strict=True)) if i != at and s is not None]
            spots[at] = best(wish, ink, size, others) or best(wish, ink, size, [])
    return [spot for spot in spots if spot is not None]


def best(wish: Wish, ink: np.ndarray, size: tuple[float, float], placed: list[tuple[Wish, Spot]]) -> Spot | None:
    """The cheapest place that overlaps no label, or None if there is none."""
    left, bottom = (
        grid.ravel().astype(float)
        for grid in np.meshgrid(
            np.arange(EDGE, max(size[0] - wish.width, EDGE) + GRID, GRID),
            np.arange(EDGE, max(size[1] - wish.height, EDGE) + GRID, GRID),
        )
    )
    inside = (left + wish.width <= size[0]) & (bottom + wish.height <= size[1])
    free = inside if inside.any() else left == left.min()  # a label wider than the panel starts at its left
    for other, spot in placed:
        free &= (
            (left + wish.width + GAP <= spot.left)
            | (spot.left + other.width + GAP <= left)
            | (bottom + wish.height + GAP <= spot.bottom)
            | (spot.bottom + other.height + GAP <= bottom)
        )
    left, bottom = left[free], bottom[free]
    if not len(left):
        return None
    drawn = ink.copy()
    for _, spot in placed:
        if spot.distance > LEADER:
            _draw(drawn, between(np.array(spot.edge), np.array(spot.anchor)), 4.0)
    sums = np.pad(drawn.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    cost = 24 * _covered(sums, left, bottom, wish, 1.0) + 0.5 * _covered(sums, left, bottom, wish, 3.0)

    # (places, anchors): from the nearest point of the label to each anchor
    ax, ay = wish.anchors[:, 0], wish.anchors[:, 1]
    ex = np.clip(ax, left[:, None], left[:, None] + wish.width)
    ey = np.clip(ay, bottom[:, None], bottom[:, None] + wish.height)
    distance = np.hypot(ex - ax, ey - ay)
    nearest = distance.argmin(1)
    rows = np.arange(len(left))
    cost = cost + 1.2 * np.maximum(distance[rows, nearest] - 3, 0)
    cheapest_spot: Spot | None = None
    cheapest = np.inf
    for at in np.argsort(cost, kind="stable"):
        if cost[at] >= cheapest:  # a leader only adds to it
            break
        x, y = wish.anchors[nearest[at]]
        edge = np.array([ex[at, nearest[at]], ey[at, nearest[at]]])
        total = float(cost[at])
        if distance[at, nearest[at]] > LEADER:
            total += 12 + _crossed(drawn, edge, wish.anchors[nearest[at]], placed)
        if total < cheapest:
            cheapest = total
            ends = ((float(x), float(y)), (float(edge[0]), float(edge[1])))
            cheapest_spot = Spot(float(left[at]), float(bottom[at]), *ends, cheapest)
    return cheapest_spot


def _covered(sums: np.ndarray, left: np.ndarray, bottom: np.ndarray, wish: Wish, margin: float) -> np.ndarray:
    """(places,) the sum of the ink under a label and its margin, from a summed-area table."""
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    x0 = np.clip(left - margin, 0, width).astype(int)
    x1 = np.clip(left + wish.width + margin + 1, 0, width).astype(int)
    y0 = np.clip(bottom - margin, 0, height).astype(int)
    y1 = np.clip(bottom + wish.height + margin + 1, 0, height).astype(int)
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]


def _crossed(ink: np.ndarray, edge: np.ndarray, anchor: np.ndarray, placed: list[tuple[Wish, Spot]]) -> float:
    """The cost of what a leader crosses: ink, except near its anchor, and other labels."""
    leader = between(edge, anchor)
    leader = leader[np.hypot(*(leader - anchor).T) > 4]
    if not len(leader):
        return 0.0
    at = np.clip(leader.astype(int), 0, (ink.shape[1] - 1, ink.shape[0] - 1))
    cost = 6.0 * float(ink[at[:, 1], at[:, 0]].sum())
    for other, spot in placed:
        x, y = leader[:, 0], leader[:, 1]
        within = (x > spot.left - 1) & (x < spot.left + other.width + 1)
        within &= (y > spot.bottom - 1) & (y < spot.bottom + other.height + 1)
        cost += 200.0 * bool(within.any())
    return cost


def _draw(ink: np.ndarray, points: np.ndarray, weight: float) -> None:
    at = np.clip(points.astype(int), 0, (ink.shape[1] - 1, ink.shape[0] - 1))
    np.maximum.at(ink, (at[:, 1], at[:, 0]), weight)


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n, 2) points of a line, at most one point apart."""
    steps = int(np.ceil(min(max(np.abs(end - start).max(), 1), 1e5))) + 1
    return np.linspace(start, end, steps)
