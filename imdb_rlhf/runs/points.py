"""The evaluation points of a run: kept one file each while it trains, joined when it is finished."""

from pathlib import Path

import pandas as pd

from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.evaluation.evaluate import COLUMNS, metrics

PARTS = "evaluations"
# Best-of-N has no estimate of its KL per sample.
UNKNOWN = ("kl_k1", "log_ratio")


def keep(folder: Path, frame: pd.DataFrame, step: int) -> None:
    """Write one evaluation point, texts included, whole or not at all."""
    (folder / PARTS).mkdir(exist_ok=True)
    part = folder / PARTS / f"step-{step:08d}.parquet"
    write_table(part.with_suffix(".part"), frame, UNKNOWN)
    part.with_suffix(".part").replace(part)


def read(folder: Path) -> dict[int, pd.DataFrame]:
    """The evaluation points of an unfinished run by step."""
    return {_step_of(part): pd.read_parquet(part) for part in sorted((folder / PARTS).glob("step-*.parquet"))}


def drop(folder: Path, after: int) -> None:
    """Delete the evaluation points after a step: the run resumes there and makes them again."""
    for part in (folder / PARTS).glob("step-*.parquet"):
        if _step_of(part) > after:
            part.unlink(missing_ok=True)


def _step_of(part: Path) -> int:
    return int(part.stem.removeprefix("step-"))


def best_step(points: dict[int, pd.DataFrame]) -> int:
    """The step with the highest mean reward on validation prompts; the earliest of equals."""
    return max(sorted(points), key=lambda step: metrics(points[step])["eval/validation_reward"])


def joined(points: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """`evaluations.parquet`: the rows of every point, without texts."""
    return pd.concat([points[step][COLUMNS] for step in sorted(points)], ignore_index=True)
