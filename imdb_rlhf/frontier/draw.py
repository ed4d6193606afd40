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
from imdb_rlhf.frontier import finished as points
from imdb_rlhf.frontier.figure import figure
from imdb_rlhf.frontier.measure import Frontier
from imdb_rlhf.frontier.report import report


def draw(runs: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write the frontier of some run folders into a folder, which is made; files that are there are replaced.

    Returns:
        What stands in `frontier.json`.

    Raises:
        ConfigError: the runs belong to different worlds.
        RunError: no run is finished, or none has a policy.
    """
    finished, skipped = points.read(runs)
    if not finished:
        reason = f"; {skipped[0]['path']}: {skipped[0]['why']}" if skipped else ""
        raise RunError(f"none of {len(runs)} runs is finished{reason}")
    found = Frontier(finished).measure(skipped)
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw(found, folder / "frontier.svg", folder / "frontier.png")
    report.write(found, folder / "report.html")
    atomic_write(folder / "frontier.csv", table(found).to_csv(index=False))
    atomic_write(folder / "frontier.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """`frontier.csv`: a row an evaluated checkpoint; intervals as two columns each."""
    rows = []
    for point in found["points"]:
        row: dict[str, Any] = {}
        for key, value in point.items():
            name = key.removesuffix("_ci")
            if name != key or key == "efficiency":
                row[f"{name}_low"], row[f"{name}_high"] = (None, None) if value is None else value
            else:
                row[key] = value
        rows.append(row)
    return pd.DataFrame(rows)


def describe(found: Mapping[str, Any]) -> str:
    """The methods' score and reward at each budget as a table for a terminal."""
    head = [
        "method",
        f"score (K={found['score_kl']:g})",
        *(f"R@{budget:g}" for budget in found["budgets"]),
        "efficiency",
    ]
    rows = [head]
    for method in found["methods"]:
        score = "-" if method["score"] is None else _range(method["score"], ".2f")
        # a budget that no checkpoint is near is bought by a mixture with the reference, or by less than it; both marked
        marks = [
            " " if at["reached"] and not at["mixed"] else "~" if at["mixed"] else "*" for at in method["at_budget"]
        ]
        bought = [f"{at['reward']:.3f}{mark}" for at, mark in zip(method["at_budget"], marks, strict=True)]
        spent = [setting["efficiency"] for setting in method["settings"] if setting["efficiency"] is not None]
        ends = "-" if not spent else _range([min(low for low, _ in spent), max(high for _, high in spent)], ".2f")
        rows.append([method["name"], score, *bought, ends])
    if found["optimum"] is not None:
        rows.append(["optimum", "", *(_optimum_at(found["optimum"], budget) for budget in found["budgets"]), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    reference = found["reference"]
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
