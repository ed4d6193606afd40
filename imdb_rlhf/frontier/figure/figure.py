"""The frontier as a paper would print it: reward over KL, once with a linear and once with a logarithmic KL axis.

From the back to the front it shows the optimum as a band, best-of-N's curves, every evaluated checkpoint (faint), and
each method's settings (mean over seeds at the reported checkpoint, with intervals), joined in the order of their knob.
A setting whose interval is over prompts alone is hollow, with dotted bars.

The SVG has its text as outlines: it looks the same wherever it is opened, whatever fonts are there; its comments hold
the words. The PDF has its text as text, with the glyphs that it uses embedded (TrueType, as publishers ask).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from imdb_rlhf.frontier.figure import references
from imdb_rlhf.frontier.figure.panel import Panel, finite
from imdb_rlhf.frontier.figure.references import GREY, INK
from imdb_rlhf.frontier.figure.saving import DPI, save
from imdb_rlhf.frontier.figure.view import View, view_of
from imdb_rlhf.frontier.methods import Style, knob_of, prompts_only, setting_label, styles

SIZE = (7.0, 3.3)  # inches: two columns of a paper
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)))  # for the second and third method of one colour
LONGEST_NOTE = 110  # letters of a line below the panels
COVERED = 6.0  # points between settings whose markers cover one another


def draw(frontier: Mapping[str, Any], *paths: Path) -> None:
    """Write the figure to files, each whole or not at all; the same frontier gives the same bytes.

    Args:
        frontier: what `frontier.json` holds.
        paths: each ends in .svg, .pdf or .png, which has 300 pixels per inch.
    """
    save(lambda: compose(frontier), *paths)


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
    return figure


def _axes(figure: Figure, left: Axes, right: Axes, frontier: Mapping[str, Any]) -> None:
    view = view_of(frontier)
    note: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 7, "color": GREY, "linespacing": 1.35}
    lines = _footnote(frontier, view)
    figure.text(0.992, 0.012, "\n".join(lines), gid="footnote", parse_math=False, **note)
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
    figure.subplots_adjust(left=0.1, right=0.992, bottom=0.143 + 0.042 * len(lines), top=0.975, wspace=0.07)
    numbers = left.yaxis.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert numbers is not None  # the axis is visible
    figure.subplots_adjust(left=(left.get_window_extent().x0 - numbers.x0) / figure.bbox.width + 0.008)


def _footnote(frontier: Mapping[str, Any], view: View) -> list[str]:
    """What the signs mean, and how many checkpoints are outside, on as many lines as are needed."""
    end = view.log_kl[1]
    optimum, lines = frontier["optimum"], []
    if optimum is not None and optimum["trusted_kl"] < end:
        samples = f"{optimum['samples']} samples per prompt"
        lines.append(f"grey: the best possible reward is somewhere in this area; {samples} cannot say where")
    parts = ["dots on best-of-N: N = 2, 4, 8, …"] if frontier["best_of_n"] else []
    settings = [setting for method in frontier["methods"] for setting in method["settings"]]
    hollow = [setting for setting in settings if prompts_only(setting)]
    covered = sorted({str(setting["covers"]) for setting in settings if not prompts_only(setting)}, key=len)
    confidence = f"{frontier['confidence']:.0%} intervals"
    if covered:
        parts.append(f"bars: {confidence} over {covered[-1].replace('prompts, ', 'prompts and ', 1)}")
    if hollow:
        seeds = max(len(setting["seeds"]) for setting in hollow)
        few = "1 seed" if seeds == 1 else f"at most {seeds} seeds"
        parts.append(f"hollow: {few}, {'bars' if covered else f'bars: {confidence}'} over prompts only")
    if not settings:
        parts.append(f"bars: {confidence}")
    if any(not point["last"] for point in frontier["points"]):
        beyond = sum(_is_outside(point, view) for point in frontier["points"])
        parts.append("faint: earlier checkpoints" + (f", {beyond} of them outside" if beyond else ""))
    if any(method["diverged"] for method in frontier["methods"]):
        parts.append("×: diverged")
    if _off_target(frontier):
        parts.append("ringed: KL of training off its target")
    for part in parts:
        longer = f"{lines[-1]}  ·  {part}" if lines and not lines[-1].startswith("grey") else part
        lines = [*lines[:-1], longer] if len(longer) <= LONGEST_NOTE and longer != part else [*lines, part]
    return lines


def _is_outside(point: Mapping[str, Any], view: View) -> bool:
    """Whether an earlier checkpoint is outside of both panels."""
    low, high = view.reward
    inside = finite(point["kl"], point["reward"]) and low <= point["reward"] <= high
    return not point["last"] and not (inside and point["kl"] <= max(view.kl, view.log_kl[1]))


def _off_target(frontier: Mapping[str, Any]) -> set[str]:
    """The names of the runs whose KL missed its target."""
    return {run["name"] for run in frontier.get("runs", ()) if run["missed_target"]}


def methods(panel: Panel, frontier: Mapping[str, Any]) -> None:
    """Draw every method: its checkpoints, its settings joined in the order of their knob, and its diverged runs."""
    style_of = styles(method["name"] for method in frontier["methods"])
    colours: list[str] = []
    missed = _off_target(frontier)
    for method in frontier["methods"]:
        name, style = method["name"], style_of[method["name"]]
        points = [p for p in frontier["points"] if p["method"] == name and finite(p["kl"], p["reward"])]
        faint: dict[str, Any] = {"marker": style.marker, "ms": 2.6, "mfc": style.colour, "mec": "none", "alpha": 0.4}
        panel.dots(*_columns(points), f"points-{name}", weight=0.35, zorder=3, **faint)
        _settings(panel, method, style, DASHES[min(colours.count(style.colour), len(DASHES) - 1)], missed)
        colours.append(style.colour)
        diverged = [p for p in points if p["run"] in method["diverged"] and p["last"]]
        panel.dots(*_columns(diverged), f"diverged-{name}", radius=3, marker="x", color=INK, ms=7, mew=1.1, zorder=7)


def _settings(panel: Panel, method: Mapping[str, Any], style: Style, dashes: Any, missed: set[str]) -> None:
    """Draw a method's settings and the line through them, with one label that names the method and its settings.

    A setting is ringed if one of its runs is among those that missed their target.
    """
    name, colour = method["name"], style.colour
    settings = [setting for setting in method["settings"] if finite(setting["kl"], setting["reward"])]
    line: dict[str, Any] = {"color": colour, "lw": 1.1, "alpha": 0.9, "ls": dashes, "zorder": 4}
    points = panel.line(*_columns(settings), f"line-{name}", **line)
    for number, setting in enumerate(settings):
        gid = f"setting-{name}-{number}"
        look: dict[str, Any] = {"marker": style.marker, "color": colour, "edge": _readable(colour), "size": 4.6}
        panel.estimate(setting["kl"], setting, gid, hollow=prompts_only(setting), **look)
        if missed.intersection(setting["runs"]):
            ring: dict[str, Any] = {"marker": "o", "ms": 9, "mfc": "none", "mec": _readable(colour), "mew": 0.7}
            panel.dots([setting["kl"]], [setting["reward"]], f"{gid}-off-target", radius=4.5, zorder=4.9, **ring)
    groups = _together(panel, settings)
    shown = [setting for group in groups for setting in group]
    _outside(panel, method, [setting for setting in settings if setting not in shown], bool(shown), colour)
    if not shown:
        return
    along = np.concatenate([points, *(points[:-1] * (1 - at) + points[1:] * at for at in (0.25, 0.5, 0.75))])
    words = _knob_words(method["knob"], settings, len(groups[0]) == len(settings) > 1)
    panel.label("\n".join(filter(None, [_wrapped(name), words])), along, f"label-{name}", color=_readable(colour))
    for group in groups:
        if 1 < len(group) < len(settings):
            where = np.concatenate([panel.points(setting["kl"], setting["reward"]) for setting in group])
            gid = f"count-{name}-{settings.index(group[0])}"
            panel.label(_count(method["knob"], len(group)), where, gid, fontsize=7, color=_readable(colour))


def _together(panel: Panel, settings: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The settings that the panel shows, in groups of those that cover one another."""
    groups: list[list[Mapping[str, Any]]] = []
    for setting in settings:
        place = panel.visible(panel.points(setting["kl"], setting["reward"]))
        if not len(place):
            continue
        near = [group for group in groups if any(_apart(panel, place[0], other) < COVERED for other in group)]
        joined = [other for group in near for other in group] + [setting]
        groups = [group for group in groups if group not in near] + [joined]
    return groups


def _apart(panel: Panel, place: np.ndarray, setting: Mapping[str, Any]) -> float:
    return float(np.hypot(*(panel.points(setting["kl"], setting["reward"])[0] - place)))


def _knob_words(knob: str | None, settings: Sequence[Mapping[str, Any]], covered: bool) -> str:
    """Say which settings a line joins, from the least KL to the most: "β = 5 … 0.05", or "4 targets: 3 … 12"."""
    values = [setting["knob_value"] for setting in settings]
    if knob is None or None in values:
        return ""
    if settings[0]["kl"] > settings[-1]["kl"] and not covered:
        values.reverse()
    words = setting_label(knob, values)
    return f"{_count(knob, len(values))}: {words.partition(' = ')[2]}" if covered else words


def _count(knob: str | None, number: int) -> str:
    return f"{number} {'settings' if knob is None else knob_of(knob).many}"


def _outside(
    panel: Panel, method: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], named: bool, colour: str
) -> None:
    """Draw an arrow at the border towards each setting beyond it, and one label that says where they are.

    Args:
        panel: the panel.
        method: the method of the settings.
        settings: those that the panel does not show.
        named: whether another label names the method.
        colour: of the method.
    """
    name, (width, height) = method["name"], panel.size
    arrows, texts = [], []
    for setting in settings:
        number = method["settings"].index(setting)
        for x, y in panel.points(setting["kl"], setting["reward"]):
            arrow = np.array([x > width, int(y > height) - int(y < 0)], float) * 13
            tip = np.clip([x, y], (4, 4), (width - 1, height - 1))
            panel.arrow(tip, arrow, f"outside-{name}-{number}", colour)
            arrows.append(tip - arrow / 2)
            words = setting_label(method["knob"], [setting["knob_value"]])
            texts.append(f"{words and words + ':' + chr(10)}{setting['reward']:.2f} at {setting['kl']:.3g} nats")
    if arrows:
        shown = texts if len(texts) <= 2 else [texts[0], f"and {len(texts) - 1} more"]
        lines = shown if named else [f"{_wrapped(name)}:", *shown]
        panel.label("\n".join(lines), np.array(arrows), f"label-outside-{name}", color=_readable(colour), fontsize=7)


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
