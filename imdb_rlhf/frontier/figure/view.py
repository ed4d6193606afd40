"""The limits of a figure's axes, chosen so that one diverged run does not squash the others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imdb_rlhf.frontier.figure.panel import finite

FAR = 3.0  # times the upper quartile of the settings' KL: settings beyond are pointed at and not drawn


class View(NamedTuple):
    """The limits of the axes.

    Attributes:
        kl: the end of the linear KL axis, nats; it starts at 0.
        log_kl: both ends of the logarithmic KL axis, nats.
        reward: both ends of the reward axis.
    """

    kl: float
    log_kl: tuple[float, float]
    reward: tuple[float, float]


def view_of(frontier: Mapping[str, Any]) -> View:
    """Choose the limits: they hold everything but diverged runs and settings far beyond most others."""
    diverged = {run for method in frontier["methods"] for run in method["diverged"]}
    settings = [
        setting
        for method in frontier["methods"]
        for setting in method["settings"]
        if finite(setting["kl"], setting["reward"])
    ]
    sound = [setting for setting in settings if not diverged & set(setting["runs"])] or settings
    curves = [curve for curve in frontier["best_of_n"].values() if curve["n"]]
    known = max((curve["kl"][-1] for curve in curves), default=0.0)  # the end of best-of-N's curves

    kls = [float(setting["kl"]) for setting in sound] or [known or float(frontier["score_kl"])]
    far = FAR * max(float(np.quantile(kls, 0.75)), 1e-6)
    widest = max(kl for kl in kls if kl <= far)
    shown = max([widest, *(float(s["kl"]) for s in settings if s["kl"] <= 1.5 * widest), min(known, 2.5 * widest)])
    bars = [float(s["kl_ci"][1]) for s in settings if s["kl"] <= shown and s["kl_ci"] and finite(*s["kl_ci"])]
    # every setting is the reference, up to rounding
    shown = shown if shown > 1e-6 else known or float(frontier["score_kl"])
    end = 1.05 * max([shown, *(bar for bar in bars if bar <= 1.25 * shown)])
    starts = [float(p["kl"]) for p in frontier["points"] if finite(p["kl"]) and p["kl"] > 0]
    start = max(min(starts, default=0.02), 0.1 * min([kl for kl in kls if kl > 0], default=0.1), end / 3000)
    outside = [float(s["kl"]) for s in settings if s["kl"] > end]
    log_end = max([end, *(1.3 * kl for kl in outside if kl <= 15 * end)])
    return View(end, (0.7 * min(start, end / 10), 1.1 * log_end), _rewards(frontier, sound, end))


def _rewards(frontier: Mapping[str, Any], sound: list[Mapping[str, Any]], end: float) -> tuple[float, float]:
    reference = float(frontier["reference"]["reward"])
    anchors = [reference, *frontier["reference"]["reward_ci"]]
    if frontier["base"] is not None:
        anchors += [frontier["base"]["reward"], *frontier["base"]["reward_ci"]]
    rewards = [float(setting["reward"]) for setting in sound]
    tops = [*anchors, *rewards]
    for curve in frontier["best_of_n"].values():
        tops += [reward for kl, reward in zip(curve["kl"], curve["reward"], strict=True) if kl <= end]
    optimum = frontier["optimum"]
    if optimum is not None:
        within = [at for at, kl in enumerate(optimum["kl"]) if kl <= end]
        tops += [optimum["lower"][at] for at in within]
        tops += [optimum["upper"][at] for at in within if optimum["kl"][at] <= optimum["trusted_kl"]]
    top = max(tops)
    cap = None if optimum is None else optimum["cap"]
    if cap is not None and top < cap <= top + 0.2 * (top - min(tops)):
        top = cap
    # down to 1.5 times the distance of the best above the reference, or of most settings below it
    depths = [reference - reward for reward in rewards]
    deepest = 1.5 * max([top - reference, *([float(np.quantile(depths, 0.75))] if depths else [])])
    bottom = min([*anchors, *(reward for reward in rewards if reference - reward <= deepest)])
    bars = [s["reward_ci"] for s in sound if s["kl"] <= end and s["reward_ci"] and finite(*s["reward_ci"])]
    reach = max(top - bottom, 1e-3 * max(abs(top), 1.0))  # a bar as long as all the rest would squash it
    top = max([top, *(float(high) for _, high in bars if high <= top + reach)])
    bottom = min([bottom, *(float(low) for low, _ in bars if low >= bottom - reach)])
    span = max(top - bottom, 1e-3 * max(abs(top), 1.0))
    return bottom - 0.06 * span, top + 0.05 * span
