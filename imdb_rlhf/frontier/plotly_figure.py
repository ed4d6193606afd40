"""The frontier as a figure of plotly's, for W&B: methods in their colours with intervals, best-of-N, the optimum.

It shows what the interactive figure of the report shows. A figure is a mapping of `data` and `layout`; plotly's Python
side is not needed to make it.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imdb_rlhf.frontier.methods import prompts_only, seeds_of, styles

INK, SOFT = "#1a1a1a", "#6b6b6b"
BEST_OF = {"ground_truth": "best-of-N by the true reward", "learned": "best-of-N by the learned reward"}
Trace = dict[str, Any]


def figure(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """`data` and `layout` of reward over KL.

    Args:
        frontier: the content of `frontier.json`.
    """
    drawn = styles([method["name"] for method in frontier["methods"]])
    data = [*_optimum(frontier), *_best_of_n(frontier)]
    for method in frontier["methods"]:
        style = drawn[method["name"]]
        data += _method(frontier, method, style.colour, style.symbol)
    if frontier.get("base"):
        data.append(_base(frontier["base"]))
    return {"data": data, "layout": _layout(frontier)}


def _layout(frontier: Mapping[str, Any]) -> dict[str, Any]:
    furthest, (low, high) = _furthest(frontier), _rewards(frontier)
    pad = 0.05 * ((high - low) or 1.0)
    reference = frontier["reference"]["reward"]
    line = {"color": SOFT, "width": 1, "dash": "dot"}
    flat = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": reference, "y1": reference, "line": line}
    note = {"text": "reference", "xref": "paper", "x": 1, "y": reference, "xanchor": "right", "yanchor": "bottom"}
    legend = {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0, "font": {"size": 11}}
    return {
        "title": {"text": f"true reward ({html.escape(str(frontier['world']['reward']))}) over KL to the reference"},
        "xaxis": {"title": {"text": "KL to the reference, nats per sequence"}, "range": [-0.015 * furthest, furthest]},
        "yaxis": {"title": {"text": "true reward"}, "range": [low - pad, high + pad]},
        "shapes": [flat],
        "annotations": [note | {"showarrow": False, "font": {"size": 11, "color": SOFT}}],
        "legend": legend | {"title": {"text": _hollow(frontier)}},
        "margin": {"l": 60, "r": 20, "t": 44, "b": 60},
        "template": "none",
        "plot_bgcolor": "#ffffff",
        "paper_bgcolor": "#ffffff",
        "hovermode": "closest",
    }


def _hollow(frontier: Mapping[str, Any]) -> str:
    """What hollow markers mean, where there are any."""
    settings = [setting for method in frontier["methods"] for setting in method["settings"]]
    return "hollow, thin bars: 1 or 2 seeds, prompts only" if any(map(prompts_only, settings)) else ""


def _furthest(frontier: Mapping[str, Any]) -> float:
    """The end of the KL axis: the last point, unless that is a diverged run's at over twice the KL of all others."""
    diverged = {run for method in frontier["methods"] for run in method["diverged"]}

    def reach(points: Sequence[Mapping[str, Any]]) -> float:
        return max([frontier["score_kl"], *(point["kl_ci"][1] if point["kl_ci"] else point["kl"] for point in points)])

    points = frontier["points"]
    return 1.06 * min(reach(points), 2 * reach([point for point in points if point["run"] not in diverged]))


def _rewards(frontier: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest reward that the axis must show."""
    values = [frontier["reference"]["reward"]]
    for point in frontier["points"]:
        values += point["reward_ci"] or [point["reward"]]
    if frontier.get("base"):
        values.append(frontier["base"]["reward"])
    optimum = frontier.get("optimum")
    if optimum is not None:
        furthest = _furthest(frontier)
        # where the reward has no upper limit, the upper bound beyond the trusted KL would squash everything else
        end = min(furthest, optimum["trusted_kl"]) if optimum["cap"] is None else furthest
        pairs = zip(optimum["kl"], optimum["upper"], strict=True)
        values += [value for kl, value in pairs if value is not None and kl <= end]
    return min(values), max(values)


def _band(kl: Sequence[float], low: Sequence[Any], high: Sequence[Any], fill: str, group: str) -> Iterator[Trace]:
    bare = {"mode": "lines", "type": "scatter", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    bare |= {"legendgroup": group}
    yield bare | {"x": list(kl), "y": list(low)}
    yield bare | {"x": list(kl), "y": list(high), "fill": "tonexty", "fillcolor": fill}


def _curve(name: str, kl: Sequence[float], values: Sequence[Any], line: Mapping[str, Any], text: list[str]) -> Trace:
    shown = {"type": "scatter", "mode": "lines", "x": list(kl), "y": list(values), "line": dict(line)}
    return shown | {"name": name, "legendgroup": name, "text": text, "hoverinfo": "text"}


def _optimum(frontier: Mapping[str, Any]) -> Iterator[Trace]:
    """The region between the bounds, each with its interval, and the learned reward's optimum."""
    optimum = frontier.get("optimum")
    if optimum is None:
        return
    name, kl = "optimum, lower to upper bound", optimum["kl"]
    yield from _band(kl, optimum["lower_ci"][0], optimum["upper_ci"][1], "rgba(107, 107, 107, 0.12)", name)
    yield from _band(kl, optimum["lower"], optimum["upper"], "rgba(107, 107, 107, 0.2)", name)
    line = {"color": SOFT, "width": 1.5}
    for bound, meaning in (("lower", "a policy that reaches it exists"), ("upper", "no policy is above it")):
        ends = optimum[f"{bound}_ci"]
        text = [
            f"<b>optimum</b>, {bound} bound: {meaning}<br>reward {_number(value)} {_interval([ends[0][i], ends[1][i]])}"
            f" for {_number(at, 2)} nats" + ("<br>too few samples for a tight bound" if _loose(optimum, at) else "")
            for i, (at, value) in enumerate(zip(kl, optimum[bound], strict=True))
        ]
        yield _curve(name, kl, optimum[bound], line, text) | {"showlegend": bound == "lower"}
    learned = optimum.get("learned")
    if learned is not None:
        name = "optimum of the learned reward, its true reward"
        low, high = learned["reward_ci"]
        yield from _band(learned["kl"], low, high, "rgba(107, 107, 107, 0.1)", name)
        text = [f"{name}<br>reward {_number(value)}" for value in learned["reward"]]
        yield _curve(name, learned["kl"], learned["reward"], line | {"dash": "dashdot"}, text)


def _loose(optimum: Mapping[str, Any], kl: float) -> bool:
    return bool(kl > optimum["trusted_kl"])


def _best_of_n(frontier: Mapping[str, Any]) -> Iterator[Trace]:
    """The curve of best-of-N by each selector, with its interval."""
    for selector, curve in (frontier.get("best_of_n") or {}).items():
        name = BEST_OF.get(selector, f"best-of-N by {selector}")
        low, high = curve["reward_ci"]
        yield from _band(curve["kl"], low, high, "rgba(26, 26, 26, 0.1)", name)
        text = [
            f"<b>{html.escape(name)}</b>, N = {n}<br>reward {_number(curve['reward'][i])} "
            f"{_interval([low[i], high[i]])}<br>KL at most {_number(curve['kl'][i], 2)} nats"
            for i, n in enumerate(curve["n"])
        ]
        line = {"color": INK, "width": 1.4, "dash": "dot" if selector == "learned" else "solid"}
        sizes = [5 if n & (n - 1) == 0 else 0 for n in curve["n"]]
        markers = {"mode": "lines+markers", "marker": {"color": INK, "size": sizes}}
        yield _curve(name, curve["kl"], curve["reward"], line, text) | markers


def _method(frontier: Mapping[str, Any], method: Mapping[str, Any], colour: str, symbol: str) -> list[Trace]:
    """A method's checkpoints, faint, and its settings with their intervals, joined."""
    name = html.escape(method["name"])
    points = [point for point in frontier["points"] if point["method"] == method["name"]]
    settings = method["settings"]
    shared = {"type": "scatter", "name": name, "legendgroup": name, "hoverinfo": "text"}
    checkpoints = {
        "mode": "markers",
        "x": [point["kl"] for point in points],
        "y": [point["reward"] for point in points],
        "text": [_about(point, f"{html.escape(point['run'])}, step {point['step']}") for point in points],
        "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.45},
        "showlegend": not settings,
    }
    if not settings:
        return [shared | checkpoints]
    joined = {
        "mode": "lines",
        "x": [setting["kl"] for setting in settings],
        "y": [setting["reward"] for setting in settings],
        "line": {"color": colour, "width": 1.6},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    groups = [[setting for setting in settings if prompts_only(setting) == alone] for alone in (False, True)]
    marks = [shared | _marks(method, group, colour, symbol) for group in groups if group]
    return [shared | checkpoints, shared | joined, *(each | {"showlegend": each is marks[0]} for each in marks)]


def _marks(method: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], colour: str, symbol: str) -> Trace:
    """Settings with their intervals: hollow with thin bars where these are over prompts alone (plotly has no dots)."""
    alone = prompts_only(settings[0])
    edge = {"color": colour, "width": 2.0} if alone else {"color": "#ffffff", "width": 1.2}
    return {
        "mode": "markers",
        "x": [setting["kl"] for setting in settings],
        "y": [setting["reward"] for setting in settings],
        "error_x": _errors(settings, "kl", colour, alone),
        "error_y": _errors(settings, "reward", colour, alone),
        "text": [_about(setting, _title(method, setting)) for setting in settings],
        "marker": {"color": colour, "symbol": f"{symbol}-open" if alone else symbol, "size": 11, "line": edge},
    }


def _errors(settings: Sequence[Mapping[str, Any]], key: str, colour: str, alone: bool) -> dict[str, Any]:
    ends = [(setting[key], *(setting[f"{key}_ci"] or [setting[key]] * 2)) for setting in settings]
    above, below = [high - value for value, _, high in ends], [value - low for value, low, _ in ends]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return bars | {"color": colour, "thickness": 0.6 if alone else 1.6, "width": 0 if alone else 4}


def _title(method: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    knob = f", {method['knob']} = {setting['knob_value']:g}" if setting.get("knob_value") is not None else ""
    return html.escape(f"{method['name']}{knob}, {seeds_of(setting)}")


def _about(point: Mapping[str, Any], title: str) -> str:
    lines = [
        f"<b>{title}</b>",
        f"reward {_number(point['reward'])} {_interval(point['reward_ci'])}",
        f"KL {_number(point['kl'], 2)} {_interval(point['kl_ci'], 2)} nats",
    ]
    if point.get("covers"):
        lines.append(f"intervals over {point['covers']}" + (" only" if prompts_only(point) else ""))
    if point.get("efficiency"):
        lines.append("efficiency " + " to ".join(dict.fromkeys(_number(end, 2) for end in point["efficiency"])))
    return "<br>".join(lines)


def _base(base: Mapping[str, Any]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "before SFT",
        "x": [base["kl"]],
        "y": [base["reward"]],
        "text": [_about(base, "before SFT")],
        "hoverinfo": "text",
        "marker": {"symbol": "star", "size": 11, "color": SOFT},
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(ends: Sequence[float | None] | None, digits: int = 3) -> str:
    return "" if ends is None else f"[{', '.join(_number(end, digits) for end in ends)}]"
