"""The frontier as a paper would print it: reward over KL, once with a linear and once with a logarithmic KL axis.

From the back to the front it shows the optimum as a band, best-of-N's curves, every evaluated checkpoint (faint), and
each method's settings (mean over seeds at the reported checkpoint, with intervals), joined in the order of their knob.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier.figure import references
from imdb_rlhf.frontier.figure.panel import Panel, finite
from imdb_rlhf.frontier.figure.references import GREY, INK
from imdb_rlhf.frontier.figure.view import view_of
from imdb_rlhf.frontier.methods import Style, styles

SIZE = (7.0, 3.3)  # inches: two columns of a paper
DPI = 300
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)))  # for the second and third method of one colour
KNOBS = {"beta": "β", "alpha": "α", "target_kl": "target"}
# Text stays text in the SVG. Neither file records when it was made, so equal frontiers give equal bytes.
LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imdb_rlhf",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.solid_capstyle": "butt",
}


def draw(frontier: Mapping[str, Any], svg: Path, png: Path) -> None:
    """Write the figure as an SVG and as a PNG, each whole or not at all; the same frontier gives the same bytes.

    Args:
        frontier: what `frontier.json` holds.
        svg: where the SVG goes.
        png: where the PNG goes, at 300 pixels per inch.
    """
    with matplotlib.style.context(["default", LOOK]):
        figure = compose(frontier)
        for path, metadata in ((svg, {"Date": None, "Creator": None}), (png, {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
            atomic_write(path, file.getvalue())


def compose(frontier: Mapping[str, Any]) -> Figure:
    """Draw the figure in matplotlib's current style; its artists have gids such as `log-line-DPO`."""
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _axes(figure, left, right, frontier)
    for panel in (Panel(left, "linear", False), Panel(right, "log", True)):
        methods(panel, frontier)  # first, so that their labels choose their places first
        references.optimum(panel, frontier)
        references.best_of_n(panel, frontier)
        references.anchors(panel, frontier)
        panel.write()
    figure.text(0.992, 0.012, _footnote(frontier), ha="right", va="bottom", fontsize=7, color=GREY, gid="footnote")
    return figure


def _axes(figure: Figure, left: Axes, right: Axes, frontier: Mapping[str, Any]) -> None:
    view = view_of(frontier)
    reward = frontier["world"].get("reward")
    left.set_ylabel(f"true reward ({reward})" if reward else "true reward", parse_math=False)
    left.set_ylim(*view.reward)
    left.set_xlim(-0.015 * view.kl, view.kl)
    left.set_xlabel("KL to the reference (nats)")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_xscale("log")
    right.set_xlim(*view.log_kl)
    right.set_xlabel("KL to the reference (nats, log scale)")
    right.xaxis.set_major_locator(FixedLocator(_log_ticks(*view.log_kl)))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.tick_params(left=False)
    # the left margin is as wide as the numbers beside it: those of a user's own reward may be long
    figure.subplots_adjust(left=0.1, right=0.992, bottom=0.185, top=0.975, wspace=0.07)
    numbers = left.yaxis.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert numbers is not None  # the axis is visible
    figure.subplots_adjust(left=(left.get_window_extent().x0 - numbers.x0) / figure.bbox.width + 0.008)


def _footnote(frontier: Mapping[str, Any]) -> str:
    optimum = frontier["optimum"]
    parts = [] if optimum is None else [f"grey: too few samples ({optimum['samples']} per prompt)"]
    if frontier["best_of_n"]:
        parts.append("dots: N = 2, 4, 8, …")
    parts += [f"bars: {frontier['confidence']:.0%} intervals"]
    if any(not point["last"] for point in frontier["points"]):
        parts.append("faint: earlier checkpoints")
    if any(method["diverged"] for method in frontier["methods"]):
        parts.append("×: diverged")
    return "  ·  ".join(parts)


def methods(panel: Panel, frontier: Mapping[str, Any]) -> None:
    """Draw every method: its checkpoints, its settings joined in the order of their knob, and its diverged runs."""
    style_of = styles(method["name"] for method in frontier["methods"])
    colours: list[str] = []
    for method in frontier["methods"]:
        name, style = method["name"], style_of[method["name"]]
        points = [p for p in frontier["points"] if p["method"] == name and finite(p["kl"], p["reward"])]
        faint: dict[str, Any] = {"marker": style.marker, "ms": 2.6, "mfc": style.colour, "mec": "none", "alpha": 0.4}
        panel.dots(*_columns(points), f"points-{name}", weight=0.35, zorder=3, **faint)
        _settings(panel, method, style, DASHES[min(colours.count(style.colour), len(DASHES) - 1)])
        colours.append(style.colour)
        diverged = [p for p in points if p["run"] in method["diverged"] and p["last"]]
        panel.dots(*_columns(diverged), f"diverged-{name}", radius=3, marker="x", color=INK, ms=7, mew=1.1, zorder=7)


def _settings(panel: Panel, method: Mapping[str, Any], style: Style, dashes: Any) -> None:
    """Draw a method's settings, the line through them, its name, and the knob of the first and the last."""
    name, colour = method["name"], style.colour
    settings = [setting for setting in method["settings"] if finite(setting["kl"], setting["reward"])]
    line: dict[str, Any] = {"color": colour, "lw": 1.1, "alpha": 0.9, "ls": dashes, "zorder": 4}
    points = panel.line(*_columns(settings), f"line-{name}", **line)
    for number, setting in enumerate(settings):
        gid = f"setting-{name}-{number}"
        panel.estimate(setting["kl"], setting, gid, marker=style.marker, color=colour, edge=_readable(colour), size=4.6)
    _outside(panel, name, settings, colour)
    if len(panel.visible(points)):
        along = np.concatenate([points, *(points[:-1] * (1 - at) + points[1:] * at for at in (0.25, 0.5, 0.75))])
        panel.label(_wrapped(name), along, f"label-{name}", color=_readable(colour))
    knobs = [setting for setting in settings if setting["knob_value"] is not None]
    if panel.log and len(knobs) > 1:
        for setting in (knobs[0], knobs[-1]):
            text = f"{KNOBS.get(method['knob'], method['knob'])} {setting['knob_value']:g}"
            where = panel.points(setting["kl"], setting["reward"])
            gid = f"knob-{name}-{setting['knob_value']:g}"
            panel.label(text, where, gid, optional=True, fontsize=7, color=_readable(colour))


def _outside(panel: Panel, name: str, settings: Sequence[Mapping[str, Any]], colour: str) -> None:
    """Draw an arrow at the border towards each setting beyond it, and one label that says where they are."""
    width, height = panel.size
    arrows, texts = [], []
    for number, setting in enumerate(settings):
        for x, y in panel.points(setting["kl"], setting["reward"]):
            arrow = np.array([x > width, int(y > height) - int(y < 0)], float) * 13
            if arrow.any():
                tip = np.clip([x, y], (4, 4), (width - 1, height - 1))
                panel.arrow(tip, arrow, f"outside-{name}-{number}", colour)
                arrows.append(tip - arrow / 2)
                texts.append(f"{setting['reward']:.2f} at {setting['kl']:.3g} nats")
    if arrows:
        shown = texts if len(texts) <= 2 else [texts[0], f"and {len(texts) - 1} more"]
        text = "\n".join([f"{_wrapped(name)}:", *shown])
        panel.label(text, np.array(arrows), f"label-outside-{name}", color=_readable(colour), fontsize=7)


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["kl"] for row in rows], [row["reward"] for row in rows]


def _wrapped(name: str) -> str:
    """A name on at most two lines of 24 letters each."""
    lines = textwrap.wrap(name, 24) or [name]
    if len(lines) > 2:
        lines = [lines[0], lines[1][:23] + "…"]
    return "\n".join(lines)


def _readable(colour: str) -> str:
    """The colour, darkened until text in it is readable on white (luminance at most 0.18, a contrast of 4.5)."""
    rgb = np.array(to_rgb(colour))
    while _luminance(rgb) > 0.18:
        rgb = rgb * 0.95
    return to_hex(tuple(rgb))


def _luminance(rgb: np.ndarray) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines 2.1 define it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _log_ticks(start: float, end: float) -> list[float]:
    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    steps = (1, 2, 5) if end / start < 1500 else (1,)
    return [step * 10.0**power for power in decades for step in steps if start <= step * 10.0**power <= end]
