"""Time over batch, completion, vocabulary and model, with the work beside it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier import methods as palette
from imdb_rlhf.frontier.figure.figure import DPI, LOOK

SIZE = (7.0, 5.2)  # inches: two columns of a paper
NAMES = {"dpo": "DPO step", "generate": "generation", "evaluate": "evaluation"}
LABELS = {
    "batch": "batch (pairs, prompts, samples)",
    "completion": "tokens of a completion",
    "vocabulary": "entries of the vocabulary",
    "model": "model (weights)",
}
APART = 0.075  # of a panel's height: between two labels
GREY = "#666666"


def draw(summary: Mapping[str, Any], svg: Path, png: Path) -> None:
    """Write the picture as an SVG and as a PNG.

    Args:
        summary: of `growth_table.summary`; `rows` is read.
        svg: where the SVG goes.
        png: where the PNG goes.
    """
    with matplotlib.style.context(["default", LOOK]):
        figure = compose(summary["rows"])
        for path, metadata in ((svg, {"Date": None, "Creator": None}), (png, {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
            atomic_write(path, file.getvalue())


def compose(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure, unsaved; lines have gids such as `batch-dpo` and `batch-dpo-work`."""
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharey=True).flatten()
    figure.subplots_adjust(left=0.085, right=0.985, top=0.97, bottom=0.15, wspace=0.06, hspace=0.3)
    low = min(min(row["low"], _work(row)) for row in rows)
    high = max(max(row["high"], _work(row)) for row in rows)
    for axes, axis in zip(panels, LABELS, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        _panel(axes, axis, [row for row in rows if row["axis"] == axis])
    for axes in panels[::2]:
        axes.set_ylabel("seconds")
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    note = "dashed: model operations, scaled to the time of the base point (ring); bars: fastest and slowest repetition"
    figure.text(0.985, 0.015, note, ha="right", va="bottom", fontsize=7, color=GREY)
    return figure


def _work(row: Mapping[str, Any]) -> float:
    """Seconds that the point would take if time grew as the work does, from the base point on."""
    return float(row["seconds"] / row["relative"])


def _panel(axes: Axes, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
    ends: list[tuple[float, str, str]] = []
    for place, task in enumerate(NAMES):
        own = [row for row in rows if row["task"] == task]
        if not own:
            continue
        look = palette.style(place)
        x, seconds = [row["x"] for row in own], [row["seconds"] for row in own]
        spread = [[row["seconds"] - row["low"] for row in own], [row["high"] - row["seconds"] for row in own]]
        axes.plot(x, [_work(row) for row in own], "--", color=look.colour, lw=0.9, alpha=0.8, gid=f"{axis}-{task}-work")
        axes.plot(x, seconds, color=look.colour, marker=look.marker, ms=3.5, lw=1.4, gid=f"{axis}-{task}")
        axes.errorbar(x, seconds, spread, color=look.colour, fmt="none", elinewidth=0.8)
        base = [row for row in own if row["base"]]
        axes.plot([r["x"] for r in base], [r["seconds"] for r in base], "o", ms=8, mfc="none", mec=look.colour, mew=0.8)
        ends.append((seconds[-1], NAMES[task], look.colour))
    axes.set_xlabel(LABELS[axis])
    _ticks(axes, axis, rows)
    _label(axes, max((row["x"] for row in rows), default=1.0), ends)


def _ticks(axes: Axes, axis: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The measured values themselves, and room at the right for the labels."""
    places = {row["x"]: _tick(axis, row) for row in rows}
    if not places:
        return
    low, high = min(places), max(places)
    room = max(high / low, 1.5)
    axes.set_xlim(low / room**0.06, high * room**0.34)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: places.get(value, "")))


def _tick(axis: str, row: Mapping[str, Any]) -> str:
    return f"{row['value']}\n{row['x'] / 1e6:.3g} M" if axis == "model" else f"{row['value']:,}"


def _label(axes: Axes, right: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Each line's name where it ends, pushed apart where two end together."""
    bottom, top = axes.get_ylim()
    span = (top / bottom) ** APART
    heights: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        heights.append(max(y, heights[-1] * span) if heights else y)
    over = heights[-1] / (top / span**0.5) if heights else 0.0
    for (_, name, colour), y in zip(ordered, heights, strict=True):
        place = y / max(over, 1.0)
        axes.annotate(name, (right, place), (7, 0), textcoords="offset points", va="center", color=colour, fontsize=8)
