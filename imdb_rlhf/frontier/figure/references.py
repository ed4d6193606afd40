"""The references that methods are compared with: the optimum, best-of-N, the reference policy, the model before SFT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imdb_rlhf.frontier.figure.panel import Panel, finite

INK, GREY, OPTIMUM = "#222222", "#666666", "#6b5e10"
CASING = 2.6  # points; the optimum is seen on both sides of best-of-N, which is 0.9 wide, where that covers it


def optimum(panel: Panel, frontier: Mapping[str, Any]) -> None:
    """Draw the area between the lower and the upper curve, grey and dashed beyond the trusted KL."""
    entry = frontier["optimum"]
    if entry is None:
        return
    kl, curves = _optimum_curves(panel, entry, frontier["reference"])
    trusted = float(entry["trusted_kl"])
    for part, inside in (("trusted", kl <= trusted), ("beyond", kl >= trusted)):
        beyond = part == "beyond"
        wide, inner, edge = ("#f5f5f5", "#ebebeb", "#aaaaaa") if beyond else ("#f3edd2", "#dfd08a", "#d3bd55")
        x = kl[inside]
        low, lower, upper, high = (curves[name][inside] for name in ("low", "lower", "upper", "high"))
        gid = f"{panel.name}-optimum"
        panel.axes.fill_between(x, low, high, color=wide, lw=0, zorder=0.5, gid=f"{gid}-interval-{part}")
        panel.axes.fill_between(x, lower, upper, color=inner, lw=0, zorder=0.6, gid=f"{gid}-band-{part}")
        look: dict[str, Any] = {"lw": 0.6, "ls": (0, (3, 2))} if beyond else {"lw": CASING}
        line: dict[str, Any] = {"color": edge, "zorder": 0.7, **look}
        weight = 0.4 if beyond else 1.0
        panel.line(x, lower, f"optimum-lower-{part}", weight=weight, **line)
        panel.line(x, upper, f"optimum-upper-{part}", weight=weight, **line)
    within = kl <= trusted
    outer = within & (kl >= 0.3 * trusted)  # near the reference all curves meet
    panel.label("optimum", panel.points(kl[outer], curves["upper"][outer]), "label-optimum", color=OPTIMUM)
    if not within.all():
        ends = [np.interp(trusted, kl, curves[name]) for name in ("low", "high")]
        panel.line([trusted] * 2, ends, "trusted", weight=0.4, color="#aaaaaa", lw=0.8, zorder=0.8)
        far = np.linspace(0.7 * trusted + 0.3 * kl[-1], kl[-1], 20)
        middle = np.interp(far, kl, (curves["lower"] + curves["upper"]) / 2)
        note = "the optimum is in the grey"
        panel.label(note, panel.points(far, middle), "label-beyond", optional=True, color=GREY, fontsize=7)
    learned = entry["learned"]
    if learned is not None:
        dotted: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": (0, (1, 1.2)), "zorder": 1}
        points = panel.line(learned["kl"], learned["reward"], "learned-optimum", **dotted)
        if panel.log:
            text = "true reward at the\nlearned reward's optimum"
            panel.label(text, points, "label-learned-optimum", color=INK, fontsize=7)


def _optimum_curves(
    panel: Panel, optimum: Mapping[str, Any], reference: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(n,) KLs across the panel and, at each, both curves and their intervals' outer ends, from the reference on."""
    curves = {
        "low": (optimum["lower_ci"][0], reference["reward_ci"][0]),
        "lower": (optimum["lower"], reference["reward"]),
        "upper": (optimum["upper"], reference["reward"]),
        "high": (optimum["upper_ci"][1], reference["reward_ci"][1]),
    }
    first, last = panel.axes.get_xlim()
    first = first if panel.log else 0.0
    known = np.asarray(optimum["kl"], float)
    between = np.geomspace(first, last, 80) if panel.log else np.array([first, last])
    kl = np.unique(np.concatenate([between, known, [float(optimum["trusted_kl"])]]))
    kl = kl[(kl >= first) & (kl <= last)]
    past = known > 0
    return kl, {
        name: np.interp(kl, [0.0, *known[past]], [start, *np.asarray(values, float)[past]])
        for name, (values, start) in curves.items()
    }


def best_of_n(panel: Panel, frontier: Mapping[str, Any]) -> None:
    """Draw best-of-N's curves, by the true reward and by a learned one, with a mark at every power of two."""
    styles = {"ground_truth": ("best-of-N", "-", INK), "learned": ("best-of-N, learned reward", (0, (4, 1.5)), "white")}
    for selector, (text, dashes, fill) in styles.items():
        curve = frontier["best_of_n"].get(selector)
        if not curve:
            continue
        points = panel.line(
            curve["kl"], curve["reward"], f"best-of-n-{selector}", color=INK, lw=0.9, ls=dashes, zorder=2
        )
        marks = [at for at, n in enumerate(curve["n"]) if n > 1 and n & (n - 1) == 0]
        kl, reward = ([curve[key][at] for at in marks] for key in ("kl", "reward"))
        mark: dict[str, Any] = {"marker": "o", "ms": 2.4, "mfc": fill, "mec": INK, "mew": 0.6, "zorder": 2.1}
        panel.dots(kl, reward, f"best-of-n-marks-{selector}", **mark)
        if panel.log or selector == "ground_truth":
            panel.label(text, points[3:], f"label-best-of-n-{selector}", color=INK)
        if panel.log and selector == "ground_truth" and marks:
            for at in (0, -1):
                n = curve["n"][marks[at]]
                where = panel.points(kl[at], reward[at])
                panel.label(f"N = {n}", where, f"label-n-{n}", optional=True, color=GREY, fontsize=7)


def anchors(panel: Panel, frontier: Mapping[str, Any]) -> None:
    """Draw the reference policy, at KL 0, and the model before SFT if its KL is known."""
    reference, base = frontier["reference"], frontier["base"]
    height = reference["reward"]
    ends = [max(panel.axes.get_xlim()[0], 0.0), panel.axes.get_xlim()[1]]
    dotted: dict[str, Any] = {"color": GREY, "lw": 0.6, "ls": (0, (1, 2)), "zorder": 1}
    line = panel.line(ends, [height] * 2, "reference-line", weight=0.5, **dotted)
    if not panel.log:
        panel.estimate(0.0, reference, "reference", marker="*", color=INK, edge="white", size=6.5)
    start = line[0] + np.array([[1.0, 0.0], [12.0, 0.0]])
    panel.label("reference", start, "label-reference", color=INK)
    if base is not None and finite(base["kl"], base["reward"]):
        panel.estimate(base["kl"], base, "base", marker="h", color=GREY, edge="white", size=4.5)
        panel.label("before SFT", panel.points(base["kl"], base["reward"]), "label-base", color=GREY)
