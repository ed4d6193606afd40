"""Where the nats go: a bar for each setting, its length the KL, divided into the parts that add up to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from imdb_rlhf.frontier.figure.references import GREY, INK
from imdb_rlhf.frontier.figure.saving import DPI, save
from imdb_rlhf.frontier.methods import setting_label

# Of each part its words and its colour; those that the method spends for nothing are warm.
PARTS = {
    "needed": ("the optimum needs it", "#dfd08a"),
    "objective": ("objective", "#0072B2"),
    "reward_model": ("reward model", "#CC79A7"),
    "data": ("data", "#56B4E9"),
    "optimisation": ("optimisation", "#D55E00"),
}
BAR, WIDTH = 0.2, 7.0  # inches
UNSPLIT = "#cccccc"


def draw(frontier: Mapping[str, Any], *paths: Path) -> None:
    """Write the picture to files, each whole or not at all; the same frontier gives the same bytes.

    Args:
        frontier: what `frontier.json` holds; `nats` has at least one entry.
        paths: each ends in .svg, .pdf or .png.
    """
    save(lambda: compose(frontier), *paths)


def compose(frontier: Mapping[str, Any]) -> Figure:
    """Draw the picture in matplotlib's current style; its artists have gids such as `bar-DPO-0.1-objective`."""
    entries = frontier["nats"]
    height = 1.05 + BAR * len(entries)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, entry in enumerate(entries):
        _bar(axes, place, entry)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_yticks(range(len(entries)), [_label(entry) for entry in entries], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=INK, lw=0.6)
    axes.set_xlabel("KL to the reference (nats), by what it is spent on")
    axes.margins(x=0.0)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.1 * (high - low))
    _legend(figure, entries)
    figure.subplots_adjust(left=0.3, right=0.985, bottom=0.42 / height, top=1 - 0.36 / height)
    names = max(label.get_window_extent().width for label in axes.get_yticklabels()) / figure.bbox.width
    figure.subplots_adjust(left=min(names + 0.02, 0.5))
    return figure


def _label(entry: Mapping[str, Any]) -> str:
    words = setting_label(entry["knob"], [entry["knob_value"]])
    return f"{entry['method']}  {words}".rstrip()


def _bar(axes: Axes, place: int, entry: Mapping[str, Any]) -> None:
    """Draw one setting: parts above 0 to the right of 0, one after another, and those below 0 to its left."""
    right = left = 0.0
    name = f"bar-{entry['method']}-{entry['knob_value']}"
    parts = [part for part in entry["parts"] if part["nats"] is not None]
    for part in parts:
        nats = part["nats"]
        start = right if nats >= 0 else left
        look: dict[str, Any] = {"color": PARTS[part["name"]][1], "height": 0.66, "lw": 0}
        axes.barh(place, nats, left=start, gid=f"{name}-{part['name']}", **look)
        right, left = right + max(nats, 0.0), left + min(nats, 0.0)
    if not parts:
        axes.barh(place, entry["kl"], color=UNSPLIT, height=0.66, lw=0, gid=f"{name}-unsplit")
        right = entry["kl"]
    axes.annotate(
        f"R {entry['reward']:.3f}",
        (right, place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=GREY,
        fontsize=7,
    )


def _legend(figure: Figure, entries: list[Mapping[str, Any]]) -> None:
    """Name the parts that occur above the axes, in the order of the bars."""
    shown = {part["name"] for entry in entries for part in entry["parts"] if part["nats"]}
    split = all(any(part["nats"] is not None for part in entry["parts"]) for entry in entries)
    words = [PARTS[name] for name in PARTS if name in shown] + ([] if split else [("not known", UNSPLIT)])
    if "data" not in shown:
        words = [(text.replace("optimisation", "data and optimisation"), colour) for text, colour in words]
    figure.legend(
        [Patch(color=colour, lw=0) for _, colour in words],
        [text for text, _ in words],
        loc="upper left",
        ncols=len(words),
        frameon=False,
        fontsize=7.5,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
