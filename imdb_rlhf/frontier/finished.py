"""Finished runs as points of reward over KL, read from their folders.

Nothing is computed again: `evaluations.parquet` has every evaluated checkpoint, the artifacts that a run names have the
reference's samples. A run that is half-written or was changed by hand is left out, and said so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from imdb_rlhf.artifacts.files import MANIFEST, check_manifest, hash_of
from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation.stats import prompt_means

# The files that a run must have to be drawn, and those that are read besides. They are compared byte for byte with the
# manifest; the others, a model's weights among them, by their size.
NEEDED = ("config.yaml", "summary.json", "evaluations.parquet", "artifacts.json", "overrides.json")
READ = (*NEEDED, "samples.parquet", "metrics.jsonl", "curve.parquet")
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Checkpoint:
    """One evaluated checkpoint of a run.

    Attributes:
        step: of the run's training.
        reward: (prompts,) mean true reward of each test prompt.
        kl: (prompts,) mean exact KL to the reference, nats a sequence.
        validation_reward: mean over validation prompts.
        validation_kl: likewise.
    """

    step: int
    reward: np.ndarray
    kl: np.ndarray
    validation_reward: float
    validation_kl: float


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of any algorithm; read when it is asked for."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    artifacts: Mapping[str, str]
    overrides: Sequence[str]

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.path.name

    @property
    def algo(self) -> str:
        """Its algorithm."""
        return str(self.summary["algo"])

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.summary["seed"])

    @property
    def knob(self) -> tuple[str, float] | None:
        """Name and value of what a sweep varies."""
        knob = self.summary["knob"]
        return None if knob is None else (str(knob["name"]), float(knob["value"]))

    @property
    def largest_reward(self) -> float:
        """The supremum of its true reward, as its summary records it; infinite where nothing is known."""
        _, largest = self.summary.get("reward_range", (None, None))
        return np.inf if largest is None else float(largest)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration with dotted keys."""
        return dict(_flat(self.config))

    def artifact(self, stage: str) -> Path | None:
        """The folder of an artifact that the run names; None if it names none or it was removed.

        Raises:
            RunError: it was changed after it was made.
        """
        key = self.artifacts.get(stage)
        folder = self.path.parent.parent / "artifacts" / stage / str(key)
        if key is None or not (folder / MANIFEST).exists():
            return None
        problem = check_manifest(folder)
        if problem is not None:
            raise RunError(f"{folder} was changed after it was made: {problem}; restore it, or make its runs again")
        return folder

    @cached_property
    def world(self) -> str | None:
        """A hash of what the axes depend on: reward, prompts, sampling, reference; None without the artifact."""
        folder = self.artifact("reference")
        if folder is None:
            return None
        inputs = dict(json.loads((folder / INPUTS).read_text())["inputs"])
        evaluation = {k: v for k, v in inputs["evaluation"].items() if k != "batch_size"}
        others = {k: inputs[k] for k in ("reference", "reward", "data", "generation")}
        return hash_of(others | {"evaluation": evaluation})

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every evaluated checkpoint, in the order of its training."""
        rows = pd.read_parquet(self.path / "evaluations.parquet")
        checkpoints = []
        for step, point in rows.groupby("step", sort=True):
            test, validation = (point[point["split"] == split] for split in ("test", "validation"))
            reward, kl = (float(prompt_means(validation, column).mean()) for column in ("reward", "kl"))
            rewards, kls = (prompt_means(test, column) for column in ("reward", "kl"))
            checkpoints.append(Checkpoint(int(str(step)), rewards, kls, reward, kl))
        return tuple(checkpoints)

    @cached_property
    def reference(self) -> tuple[np.ndarray, float | None]:
        """(prompts,) the reference's mean reward of each test prompt, and its mean over validation prompts."""
        folder = self.artifact("reference")
        if folder is not None:
            rows = pd.read_parquet(folder / "evaluation.parquet", columns=["split", "prompt_id", "reward"])
            test, validation = (rows[rows["split"] == split] for split in ("test", "validation"))
            return prompt_means(test, "reward"), float(prompt_means(validation, "reward").mean())
        rows = pd.read_parquet(self.path / "samples.parquet", columns=["prompt_id", "reference_reward"])
        return prompt_means(rows, "reference_reward"), None


# --- from folders to runs ---------------------------------------------------------------------------------------------


def find(places: Sequence[Path]) -> list[Path]:
    """The run folders that some places hold: a run, a sweep, a folder of outputs or of runs.

    Raises:
        ConfigError: a place that is not there, or that holds no run.
    """
    folders: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"there is no folder {place}; name a run, a sweep or a folder of runs")
        if (place / SWEEP).exists():
            runs = _runs_of_sweep(place)
        elif (place / "config.yaml").exists():
            runs = [place]
        else:
            runs = [file.parent for pattern in ("*", "runs/*") for file in sorted(place.glob(f"{pattern}/config.yaml"))]
        if not runs:
            raise ConfigError(
                f"there is no run in {place}; a run's folder has config.yaml, summary.json and {MANIFEST}"
            )
        folders |= dict.fromkeys(path.resolve() for path in runs)
    return list(folders)


def _runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep; those beside it come first, in case it was moved or copied together with them."""
    try:
        recorded = [Path(job["run"]) for job in json.loads((folder / SWEEP).read_text())["jobs"] if job["run"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / SWEEP} is not what a sweep writes; name the runs themselves") from error
    beside = folder.resolve().parent.parent / "runs"
    return [beside / run.name if (beside / run.name).is_dir() else run for run in recorded]


def read(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[dict[str, str]]]:
    """The finished runs among some folders, and what was left out: dicts of `path` and `why`."""
    runs, skipped = [], []
    for path in paths:
        why = _unusable(path)
        if why is not None:
            skipped.append({"path": str(path), "why": why})
            continue
        summary, artifacts, overrides = (
            json.loads((path / f"{name}.json").read_text()) for name in ("summary", "artifacts", "overrides")
        )
        config = yaml.safe_load((path / "config.yaml").read_text())
        runs.append(FinishedRun(path, config, summary, artifacts, overrides))
    return runs, skipped


def _unusable(path: Path) -> str | None:
    if not path.is_dir():
        return "there is no such folder: the run was not begun"
    if not (path / MANIFEST).exists():
        return "not finished: run its command again to go on"
    missing = next((name for name in NEEDED if not (path / name).is_file()), None)
    if missing is not None:
        return f"{missing} is missing"
    problem = check_manifest(path, READ)
    return None if problem is None else f"changed after it was finished: {problem}"


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
