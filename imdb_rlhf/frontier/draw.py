"""The frontier of reward over KL, drawn from finished runs.

A frontier is `frontier.json`, `frontier.csv`, `frontier.svg`, `frontier.pdf`, `frontier.png`, `nats.svg`, `nats.pdf`,
`nats.png` and `report.html`: see docs/frontier.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier import files
from imdb_rlhf.frontier.figure import figure, nats
from imdb_rlhf.frontier.finished import read
from imdb_rlhf.frontier.measure import measure
from imdb_rlhf.frontier.methods import setting_label
from imdb_rlhf.frontier.report import report
from imdb_rlhf.tracking.formats import decimals, with_interval

PARTS = ("prompts", "seed", "reference")  # of what moves a run
SPREAD = {"reward": ".3f", "kl": ".2f"}  # its digits


def draw(runs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write the frontier of some run folders into a folder; the folder is made, and its files are replaced.

    Returns:
        The content of `frontier.json`.

    Raises:
        ConfigError: the runs are not comparable.
        RunError: no run is finished, or none has a policy.
    """
    finished, skipped = read(runs)
    if not finished:
        reason = f"; {skipped[0]['path']}: {skipped[0]['why']}" if skipped else ""
        raise RunError(f"none of {len(runs)} runs is finished{reason}")
    frontier = measure(finished, skipped)
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw(frontier, *(folder / name for name in (files.SVG, files.PDF, files.PNG)))
    _draw_nats(frontier, [folder / name for name in files.NATS])
    report.write(frontier, folder / files.REPORT)
    atomic_write(folder / files.CSV, table(frontier).to_csv(index=False))
    atomic_write(folder / files.JSON, json.dumps(frontier, indent=1, allow_nan=False) + "\n")
    return frontier


def _draw_nats(frontier: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Draw where the nats go; without a reservoir nobody knows, and an earlier picture of it goes."""
    if frontier["nats"]:
        nats.draw(frontier, *paths)
    else:
        for path in paths:
            path.unlink(missing_ok=True)


def table(frontier: Mapping[str, Any]) -> pd.DataFrame:
    """`frontier.csv`: a row per evaluated checkpoint; intervals as two columns each."""
    rows = []
    for point in frontier["points"]:
        row: dict[str, Any] = {}
        for key, value in point.items():
            name = key.removesuffix("_ci")
            if name != key or key == "efficiency":
                row[f"{name}_low"], row[f"{name}_high"] = (None, None) if value is None else value
            else:
                row[key] = value
        rows.append(row)
    return pd.DataFrame(rows)


def describe(frontier: Mapping[str, Any]) -> str:
    """Tables for a terminal: each method's score, its reward at each budget and its efficiency; what moves its runs."""
    header = [
        "method",
        f"score (K={frontier['score_kl']:g})",
        *(f"R@{budget:g}" for budget in frontier["budgets"]),
        "efficiency",
        "intervals",
    ]
    rows = [header, *(_row(method) for method in frontier["methods"])]
    if frontier["optimum"] is not None:
        rows.append(
            ["optimum", "", *(_optimum_at(frontier["optimum"], budget) for budget in frontier["budgets"]), "", ""]
        )
    lines = _table(rows)
    reference = frontier["reference"]
    spec = decimals([reference["reward"], *reference["reward_ci"]], 3)
    lines += [
        "",
        f"reference {with_interval(reference['reward'], reference['reward_ci'], spec)}",
        "R@k: reward at a budget of k nats; ~ all checkpoints spent more (mixed with the reference), * all spent less",
        "efficiency: KL that the optimum needs for the same reward / KL spent; lowest to highest of the settings",
    ]
    if frontier["references"] > 1:
        lines.append(
            f"{frontier['references']} references, pooled: means over references of the means over their seeds"
        )
    return "\n".join([*lines, *_spread(frontier)])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _spread(frontier: Mapping[str, Any]) -> list[str]:
    """What moves a run, per setting of several seeds; no lines where there is none."""
    settings = [
        (method, setting)
        for method in frontier["methods"]
        for setting in method["settings"]
        if setting["spread"] is not None and setting["spread"]["kl"]["seed"] is not None
    ]
    if not settings:
        return []
    parts = [part for part in PARTS if any(setting["spread"]["kl"][part] for _, setting in settings)]
    columns = [(axis, part) for axis in SPREAD for part in parts]
    rows = [["a run's standard deviation by", "runs", *(f"{axis}: {part}" for axis, part in columns)]]
    for method, setting in settings:
        name = " ".join(filter(None, [method["name"], setting_label(method["knob"], [setting["knob_value"]])]))
        runs = str(setting["spread"]["seeds"] * setting["spread"]["references"])
        cells = [_part(setting["spread"][axis][part], SPREAD[axis]) for axis, part in columns]
        rows.append([name, runs, *cells])
    return ["", *_table(rows)]


def _part(part: Mapping[str, Any] | None, spec: str) -> str:
    return "-" if part is None else with_interval(part["sd"], part["ci"], spec)


def _row(method: Mapping[str, Any]) -> list[str]:
    """A method's row of the terminal's table."""
    score = "-" if method["score"] is None else _range(method["score"], ".2f")
    spec = decimals([at["reward"] for at in method["at_budget"]], 3)
    rewards = [
        f"{at['reward']:{spec}}{'~' if at['mixed'] else ' ' if at['reached'] else '*'}" for at in method["at_budget"]
    ]
    known = [setting["efficiency"] for setting in method["settings"] if setting["efficiency"] is not None]
    ends = "-" if not known else _range([min(low for low, _ in known), max(high for _, high in known)], ".2f")
    covers = f"over {method['covers']}" if method["covers"] != "prompts" else f"{_seeds(method)}: prompts only"
    return [method["name"], score, *rewards, ends, covers]


def _seeds(method: Mapping[str, Any]) -> str:
    count = len(method["seeds"])
    return "1 seed" if count == 1 else f"{count} seeds"


def _optimum_at(optimum: Mapping[str, Any], budget: float) -> str:
    at = optimum["kl"].index(budget)
    if optimum["cap"] is None and budget > optimum["trusted_kl"]:
        return f">={optimum['lower'][at]:.2f}"  # nothing is known of a larger reward
    return _range([optimum["lower"][at], optimum["upper"][at]], ".2f")


def _range(ends: Sequence[float], specification: str) -> str:
    low, high = (format(end, specification) for end in ends)

    return low if low == high else f"{low}-{high}"
