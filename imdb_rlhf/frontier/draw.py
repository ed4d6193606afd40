"""The frontier of reward over KL, drawn from finished runs.

It is `frontier.json`, `frontier.csv`, `frontier.svg`, `frontier.png` and `report.html`; docs/frontier.md explains them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier.figure import figure
from imdb_rlhf.frontier.finished import read
from imdb_rlhf.frontier.measure import measure
from imdb_rlhf.frontier.report import report


def draw(runs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write the frontier of some run folders into a folder, which is made; files that are there are replaced.

    Returns:
        What stands in `frontier.json`.

    Raises:
        ConfigError: the runs belong to different worlds.
        RunError: no run is finished, or none has a policy.
    """
    finished, skipped = read(runs)
    if not finished:
        reason = f"; {skipped[0]['path']}: {skipped[0]['why']}" if skipped else ""
        raise RunError(f"none of {len(runs)} runs is finished{reason}")
    frontier = measure(finished, skipped)
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw(frontier, folder / "frontier.svg", folder / "frontier.png")
    report.write(frontier, folder / "report.html")
    atomic_write(folder / "frontier.csv", table(frontier).to_csv(index=False))
    atomic_write(folder / "frontier.json", json.dumps(frontier, indent=1, allow_nan=False) + "\n")
    return frontier


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
    """The methods' score and reward at each budget as a table for a terminal."""
    head = [
        "method",
        f"score (K={frontier['score_kl']:g})",
        *(f"R@{budget:g}" for budget in frontier["budgets"]),
        "efficiency",
    ]
    rows = [head]
    for method in frontier["methods"]:
        score = "-" if method["score"] is None else _range(method["score"], ".2f")
        # a budget that no checkpoint is near is bought by a mixture with the reference, or by less than it; both marked
        marks = [
            " " if at["reached"] and not at["mixed"] else "~" if at["mixed"] else "*" for at in method["at_budget"]
        ]
        bought = [f"{at['reward']:.3f}{mark}" for at, mark in zip(method["at_budget"], marks, strict=True)]
        spent = [setting["efficiency"] for setting in method["settings"] if setting["efficiency"] is not None]
        ends = "-" if not spent else _range([min(low for low, _ in spent), max(high for _, high in spent)], ".2f")
        rows.append([method["name"], score, *bought, ends])
    if frontier["optimum"] is not None:
        rows.append(["optimum", "", *(_optimum_at(frontier["optimum"], budget) for budget in frontier["budgets"]), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    reference = frontier["reference"]
    low, high = reference["reward_ci"]
    lines += [
        "",
        f"reference {reference['reward']:.3f} [{low:.3f}, {high:.3f}]",
        "R@k: reward for k nats; ~ where the method never spent so little (mixed with the reference), * never so much",
        "efficiency: KL that the optimum needs for the reward / KL spent, least to most of the settings",
    ]
    return "\n".join(lines)


def _optimum_at(optimum: Mapping[str, Any], budget: float) -> str:
    at = optimum["kl"].index(budget)
    return _range([optimum["lower"][at], optimum["upper"][at]], ".2f")


def _range(ends: Sequence[float], form: str) -> str:
    low, high = (format(end, form) for end in ends)
    return low if low == high else f"{low}-{high}"
