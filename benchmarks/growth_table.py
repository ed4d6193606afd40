"""Points to rows, slopes and a verdict: does a time grow faster than the work, memory with tokens x vocabulary?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# From which slope of log time over log work on a time grows faster than the work; 1 is as fast, and timings are noisy.
FASTER = 1.1
# Bytes a token and entry from which on memory grows with their product: a tenth of what float32 logits take.
PRODUCT = 0.4
UNITS = {"batch": "batch", "completion": "tokens of a completion", "vocabulary": "vocabulary", "model": "model"}


def summary(measured: Mapping[str, Any], base: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """What the points come to.

    Args:
        measured: as `growth.measure` returns it.
        base: the base point.
        axes: names of a point's sizes.

    Returns:
        "rows": an axis' point each: task, axis, value, x (a number), base (whether it is the base point), seconds
        (median), low, high, operations, relative (time over work, the base point being 1), rate (operations a second),
        above (bytes); "slopes": task, axis, slope, end (of the last three points), faster; "memory": task, points,
        product (bytes a token and entry), grows; "failures": a line each.
    """
    failures = [f"{t['task']} {_where(t['point'])}: {t['failure']}" for t in measured["times"] if t["failure"]]
    rows = []
    for task in dict.fromkeys(time["task"] for time in measured["times"]):
        own = [time for time in measured["times"] if time["task"] == task and not time["failure"]]
        origin = next((time for time in own if _is(time["point"], base)), None)
        if origin is not None:
            rows += [_row(time, axis, base, origin) for axis in axes for time in _along(own, base, axis)]
    return {
        "rows": rows,
        "slopes": _slopes(rows),
        "memory": [_memory(task, measured["memory"]) for task in dict.fromkeys(m["task"] for m in measured["memory"])],
        "failures": failures + list(measured["failures"]),
    }


def _where(point: Mapping[str, Any]) -> str:
    return f"batch {point['batch']}, {point['completion']} tokens, vocabulary {point['vocabulary']}, {point['model']}"


def _is(point: Mapping[str, Any], base: Mapping[str, Any], but: str | None = None) -> bool:
    return all(point[name] == value for name, value in base.items() if name != but)


def _along(times: Sequence[Mapping[str, Any]], base: Mapping[str, Any], axis: str) -> list[Mapping[str, Any]]:
    """The points that differ from the base in one size alone, rising."""
    found = [time for time in times if _is(time["point"], base, but=axis)]
    return sorted(found, key=lambda time: _x(time["point"], axis))


def _x(point: Mapping[str, Any], axis: str) -> float:
    return float(point["parameters"] if axis == "model" else point[axis])


def _row(time: Mapping[str, Any], axis: str, base: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    seconds, first = statistics.median(time["seconds"]), statistics.median(origin["seconds"])
    return {
        "task": time["task"],
        "axis": axis,
        "value": time["point"][axis],
        "x": _x(time["point"], axis),
        "base": _is(time["point"], base),
        "seconds": seconds,
        "low": min(time["seconds"]),
        "high": max(time["seconds"]),
        "operations": time["operations"],
        "relative": (seconds / time["operations"]) / (first / origin["operations"]),
        "rate": time["operations"] / seconds,
        "above": time["above"],
        "precision": time["precision"],
    }


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The least-squares slope of log y over log x; None of fewer than two different x."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    if len({x for x, _ in logs}) < 2:
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def _slopes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for task, axis in dict.fromkeys((row["task"], row["axis"]) for row in rows):
        own = [(r["operations"], r["seconds"]) for r in rows if (r["task"], r["axis"]) == (task, axis)]
        values = {"slope": slope(own), "end": slope(own[-3:])}
        faster = any(value is not None and value > FASTER for value in values.values())
        found.append({"task": task, "axis": axis, **values, "faster": faster})
    return found


def _memory(task: str, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much of the memory belongs to neither tokens nor vocabulary alone: the mixed difference over the grid."""
    points = [dict(point) for point in measured if point["task"] == task]
    corners = {(point["tokens"], point["vocabulary"]): point for point in points}
    tokens, vocabulary = (sorted({key[place] for key in corners}) for place in (0, 1))
    (low, high), (few, many) = (tokens[0], tokens[-1]), (vocabulary[0], vocabulary[-1])

    def mixed(name: str) -> float | None:
        values = [corners[key].get(name) for key in ((high, many), (low, many), (high, few), (low, few))]
        if high == low or many == few or any(value is None for value in values):
            return None
        a, b, c, d = map(float, values)  # type: ignore[arg-type]
        return (a - b - c + d) / ((high - low) * (many - few))

    product = mixed("above")
    return {
        "task": task,
        "points": points,
        "product": product,
        "process_product": mixed("process"),
        "grows": product is not None and product > PRODUCT,
    }


# --- as text ----------------------------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The summary as Markdown: verdict, times, slopes, memory."""
    head = f"{facts['device']}, {facts['threads']} threads, {facts['precision']}, commit {facts['commit']}"
    parts = ["# Growth", head, "\n".join(f"- {line}" for line in verdict(found))]
    if found["rows"]:
        parts += ["## Time beside work", EXPLAINED, _times(found), "## Slopes", _slope_table(found)]
    if found["memory"]:
        parts += ["## Memory over tokens and vocabulary", MEMORY, _memory_table(found)]
    return "\n\n".join(parts) + "\n"


EXPLAINED = (
    "Work is model operations: matrix products of the forward and, in training, the backward pass, each distinct row "
    "once. Time/work is relative to the base point (bold): above 1 a point is slower than its work explains. Memory is "
    "the process's peak above what it had before the work."
)
MEMORY = (
    "The largest sum of tensors that are held at a time, above inputs and the gradients that are returned, counted "
    "exactly; in brackets the process's peak. Whole float32 logits would be 4 bytes for each token and entry."
)


def verdict(found: Mapping[str, Any]) -> list[str]:
    """What was found, in a line each."""
    lines = []
    faster = [s for s in found["slopes"] if s["faster"]]
    for s in faster:
        steep = max(value for value in (s["slope"], s["end"]) if value is not None)
        lines.append(f"GROWS FASTER THAN THE WORK: {s['task']} over {UNITS[s['axis']]}, slope {steep:.2f}")
    known = [s["slope"] for s in found["slopes"] if s["slope"] is not None]
    if known and not faster:
        ends = [s["end"] for s in found["slopes"] if s["end"] is not None]
        lines.append(
            f"Nothing grows faster than the work: slopes of log time over log work are at most {max(known):.2f}, "
            f"at the large end {max(ends):.2f} (above {FASTER} would be faster)"
        )
    for m in found["memory"]:
        if m["product"] is None:
            continue
        says = "GROWS WITH" if m["grows"] else "does not grow with"
        process = "" if m["process_product"] is None else f"; of the process {m['process_product'] + 0.0:.3f}"
        lines.append(
            f"Memory of {m['task']} {says} tokens x vocabulary: {m['product'] + 0.0:.3f} bytes a token and entry "
            f"(logits: 4){process}"
        )
    return lines + [f"FAILED: {line}" for line in found["failures"]]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _times(found: Mapping[str, Any]) -> str:
    body = []
    for row in found["rows"]:
        value = row["value"] if isinstance(row["value"], str) else f"{row['value']:,}"
        body.append(
            [
                row["task"],
                UNITS[row["axis"]],
                f"**{value}**" if row["base"] else value,
                duration(row["seconds"]),
                f"{duration(row['low'])} - {duration(row['high'])}",
                f"{row['operations'] / 1e9:,.3g} G",
                f"{row['relative']:.2f}",
                f"{row['above'] / 1e6:,.0f} MB",
            ]
        )
    return _table(["", "axis", "value", "time", "min - max", "work", "time/work", "memory"], body)


def _slope_table(found: Mapping[str, Any]) -> str:
    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    body = [
        [s["task"], UNITS[s["axis"]], text(s["slope"]), text(s["end"]), "YES" if s["faster"] else "no"]
        for s in found["slopes"]
    ]
    return _table(["", "axis", "slope", "of the last three points", "faster than the work"], body)


def _memory_table(found: Mapping[str, Any]) -> str:
    body = []
    for m in found["memory"]:
        for tokens in sorted({point["tokens"] for point in m["points"]}):
            own = sorted((p for p in m["points"] if p["tokens"] == tokens), key=lambda p: p["vocabulary"])
            body.append([m["task"], f"{tokens:,}", *(_megabytes(point) for point in own)])
    vocabularies = sorted({p["vocabulary"] for m in found["memory"] for p in m["points"]})
    tables = [_table(["", "tokens", *(f"vocabulary {size:,}" for size in vocabularies)], body)]
    logits = [p for p in found["memory"][0]["points"]]
    largest = max(point["logits"] for point in logits)
    return "\n\n".join([*tables, f"Logits of the last point alone: {largest / 1e6:,.0f} MB."])


def _megabytes(point: Mapping[str, Any]) -> str:
    process = point.get("process")
    return f"{point['above'] / 1e6:,.1f} MB" + ("" if process is None else f" ({process / 1e6:,.0f})")


def duration(seconds: float) -> str:
    """Milliseconds or seconds, three digits that count, or four of thousands."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.3g} ms" if abs(seconds) < 1 else f"{seconds:.3g} s"
