"""The frontier in Weights & Biases: one W&B run in the group of the sweep's runs.

It has reward over KL as a figure of plotly's, the points and the methods as tables, the report as a page, the figure as
a picture, and scalars per method.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.frontier import files
from imdb_rlhf.frontier.methods import prompts_only
from imdb_rlhf.frontier.plotly_figure import figure
from imdb_rlhf.tracking.wandb import WandbTracker
from imdb_rlhf.tracking.wandb_files import run_id

POINTS = (
    "run",
    "method",
    "knob",
    "knob_value",
    "seed",
    "step",
    "last",
    "kl",
    "kl_ci",
    "reward",
    "reward_ci",
    "efficiency",
)
PAIRS = ("kl_ci", "reward_ci", "efficiency")  # two numbers each, one column per end


def frontier(
    frontier: Mapping[str, Any], folder: Path, logger: WandbLogger, group: str, warn: Callable[[str], None]
) -> None:
    """Log a frontier as the W&B run `frontier`; a failure costs one warning.

    The run's id is kept in `folder`, so that another drawing updates the run: online in place; offline the earlier
    drawings are removed once the new one is whole, and only that is left to be synced.

    Args:
        frontier: the content of `frontier.json`.
        folder: the sweep's folder, which has `frontier.png` and `report.html`; W&B makes `wandb/` in it.
        logger: project, entity, mode, tags, and what else W&B is told.
        group: the W&B group of the sweep's runs.
        warn: called with one line if W&B failed.
    """
    truth = f"{files.JSON} has every number"
    try:
        frontier_id = run_id(folder, "frontier")
    except OSError as error:
        warn(f"W&B could not start ({error}); {truth}")
        return
    tracker = WandbTracker(
        folder=folder,
        config={key: frontier[key] for key in ("world", "confidence", "budgets", "score_kl")},
        logger=replace(logger, code=False),
        group=group,
        name="frontier",
        job_type="frontier",
        run_id=frontier_id,
        console_warn=warn,
        truth=truth,
    )
    tracker.table("frontier", _columns(POINTS), [list(_cells(point, POINTS)) for point in frontier["points"]])
    tracker.figure("reward_over_kl", figure(frontier))
    if (folder / files.PNG).is_file():
        tracker.picture("picture", folder / files.PNG)
    if (folder / files.REPORT).is_file():
        tracker.page("report", (folder / files.REPORT).read_text(encoding="utf-8"))
    tracker.table("methods", *_methods(frontier))
    tracker.finish(_summary(frontier))


def _methods(frontier: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns, and a row per method: its score with its intervals, and its reward at every budget."""
    columns = ["method", "knob", "seeds", "score_low", "score_high", "score_ci_low", "score_ci_high", "score_raw"]
    columns += [*(f"reward_at_{budget:g}" for budget in frontier["budgets"]), "intervals_over"]
    rows = []
    for method in frontier["methods"]:
        score, interval = method["score"] or (None, None), method["score_ci"] or (None, None)
        rewards = {at["kl"]: at["reward"] for at in method["at_budget"]}
        row = [method["name"], method["knob"], len(method["seeds"]), *score, *interval, method["score_raw"]]
        covers = method["covers"] + (" only" if prompts_only(method) else "")
        rows.append([*row, *(rewards.get(budget) for budget in frontier["budgets"]), covers])
    return columns, rows


def _summary(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars for W&B's own charts; of a score its middle and both ends."""
    summary: dict[str, Any] = {
        "reference_reward": frontier["reference"]["reward"],
        "runs": len(frontier["runs"]),
        "diverged": sum(len(method["diverged"]) for method in frontier["methods"]),
    }
    for method in frontier["methods"]:
        key = re.sub(r"\W+", "_", method["name"]).strip("_")  # W&B cannot filter or sort by other characters
        if method["score"] is not None:
            low, high = method["score"]
            summary |= {f"score/{key}": (low + high) / 2, f"score_low/{key}": low, f"score_high/{key}": high}
        summary |= {f"reward_at_{at['kl']:g}/{key}": at["reward"] for at in method["at_budget"]}
    return summary


def _columns(keys: Sequence[str]) -> list[str]:
    return [
        column
        for key in keys
        for column in ([f"{key.removesuffix('_ci')}_{end}" for end in ("low", "high")] if key in PAIRS else [key])
    ]


def _cells(row: Mapping[str, Any], keys: Sequence[str]) -> Iterable[Any]:
    for key in keys:
        if key in PAIRS:
            yield from row[key] if row[key] is not None else (None, None)
        else:
            yield row[key]
