"""The frontier in Weights & Biases: one run beside those of the sweep, in their group.

It holds the points as a table, reward over KL as a chart, the picture, the methods as a table, and a scalar a method.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.tracking.wandb import WandbTracker, run_id

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
PAIRS = ("kl_ci", "reward_ci", "efficiency")  # two numbers each: a column an end


def frontier(
    frontier: Mapping[str, Any], folder: Path, logger: WandbLogger, group: str, warn: Callable[[str], None]
) -> None:
    """Mirror a frontier as the W&B run `frontier`; whatever goes wrong costs one warning.

    The run's id is kept in `folder`, so that drawing again updates the run: online in its place, offline by leaving
    only the newest to be synced.

    Args:
        frontier: what `frontier.json` holds.
        folder: the sweep's folder; `frontier.png` is taken from there, W&B makes `wandb/` in it.
        logger: project, entity, mode and tags.
        group: what the runs of the sweep share.
        warn: is told in one line if W&B failed.
    """
    try:
        known = run_id(folder, "frontier")
        _forget_offline(folder, known)
    except OSError as error:
        warn(f"W&B could not start ({error}); frontier.json has every number")
        return
    tracker = WandbTracker(
        folder=folder,
        config={key: frontier[key] for key in ("world", "confidence", "budgets", "score_kl")},
        project=logger.project,
        entity=logger.entity,
        group=group,
        name="frontier",
        job_type="frontier",
        run_id=known,
        mode=cast(Any, str(logger.mode)),
        tags=list(logger.tags),
        console_warn=warn,
        truth="frontier.json has every number",
    )
    tracker.table("frontier", _columns(POINTS), [list(_cells(point, POINTS)) for point in frontier["points"]])
    drawn = [[point[key] for key in ("method", "kl", "reward")] for point in frontier["points"]]
    title = "true reward over KL to the reference (nats)"
    tracker.scatter("reward_over_kl", ["method", "kl", "reward"], drawn, "kl", "reward", title)
    if (folder / "frontier.png").is_file():
        tracker.picture("picture", folder / "frontier.png")
    tracker.table("methods", *_methods(frontier))
    tracker.finish(_summary(frontier))


def _methods(frontier: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A row a method: its score as an interval, and its reward at every budget."""
    columns = ["method", "knob", "seeds", "score_low", "score_high", "score_ci_low", "score_ci_high", "score_raw"]
    columns += [f"reward_at_{budget:g}" for budget in frontier["budgets"]]
    rows = []
    for method in frontier["methods"]:
        score, interval = method["score"] or (None, None), method["score_ci"] or (None, None)
        bought = {at["kl"]: at["reward"] for at in method["at_budget"]}
        row = [method["name"], method["knob"], len(method["seeds"]), *score, *interval, method["score_raw"]]
        rows.append([*row, *(bought.get(budget) for budget in frontier["budgets"])])
    return columns, rows


def _summary(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars for W&B's own charts; the score's ends apart, and its middle."""
    summary: dict[str, Any] = {
        "reference_reward": frontier["reference"]["reward"],
        "runs": len(frontier["runs"]),
        "diverged": sum(len(method["diverged"]) for method in frontier["methods"]),
    }
    for method in frontier["methods"]:
        key = re.sub(r"\W+", "_", method["name"]).strip("_")  # other characters cannot be filtered and sorted by
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


def _forget_offline(folder: Path, known: str) -> None:
    """Remove what earlier drawings left to be synced: the new run says it all."""
    for earlier in (folder / "wandb").glob(f"offline-run-*-{known}"):
        shutil.rmtree(earlier)
    shutil.rmtree(folder / "wandb" / "artifacts", ignore_errors=True)
