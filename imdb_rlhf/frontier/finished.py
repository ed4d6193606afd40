"""Finished runs as points of reward over KL, read from their folders.

Nothing is computed again: `evaluations.parquet` has every evaluated checkpoint, and the artifacts that a run names have
the reference's samples. A run that is unfinished, or was changed after it was finished, is left out and listed.
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
from imdb_rlhf.frontier.files import SWEEP_STATE
from imdb_rlhf.runs import files
from imdb_rlhf.stages import evaluations

# The files that a run must have to be drawn, and the other files that are read. All of them are compared with the
# manifest byte for byte; the rest, such as a model's weights, by size.
NEEDED = (files.CONFIG, files.SUMMARY, files.EVALUATIONS, files.ARTIFACTS, files.OVERRIDES)
READ = (*NEEDED, files.SAMPLES, files.METRICS, files.CURVE)


@dataclass(frozen=True)
class Checkpoint:
    """One evaluated checkpoint of a run.

    Attributes:
        step: the training step.
        reward: (prompts,) mean true reward of each test prompt.
        kl: (prompts,) mean exact KL to the reference, nats per sequence.
        validation_reward: mean true reward over validation prompts.
        validation_kl: mean exact KL over validation prompts.
    """

    step: int
    reward: np.ndarray
    kl: np.ndarray
    validation_reward: float
    validation_kl: float


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of any algorithm; its tables are read when they are asked for."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    artifacts: Mapping[str, str]
    overrides: Sequence[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def algo(self) -> str:
        """The algorithm, as `algo=` takes it."""
        return str(self.summary["algo"])

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.summary["seed"])

    @property
    def knob(self) -> tuple[str, float] | None:
        """Name and value of the key that a sweep varies for this algorithm."""
        knob = self.summary["knob"]
        return None if knob is None else (str(knob["name"]), float(knob["value"]))

    @property
    def knob_keys(self) -> tuple[str, ...]:
        """The keys that may hold the knob: the one at the root or, where there is none, those in a section."""
        if self.knob is None:
            return ()
        name = self.knob[0]
        return (name,) if name in self.flat else tuple(f"{section}.{name}" for section in self.config)

    @property
    def largest_reward(self) -> float:
        """The supremum of its true reward, as its summary records it; infinite where nothing is known."""
        # runs from before the range was recorded: every reward but a user's own function was a probability
        before = (None, None if "function" in self.config["reward"] else 1.0)
        _, largest = self.summary.get("reward_range", before)
        return np.inf if largest is None else float(largest)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration with dotted keys."""
        return dict(_flat(self.config))

    def artifact(self, stage: str) -> Path | None:
        """The folder of an artifact that the run used; None if it used none of this stage or it was removed.

        Raises:
            RunError: the artifact was changed after it was made.
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
        """A hash of what the axes depend on: reward, prompts, sampling and reference.

        None if the artifact of the reference's evaluation was removed.
        """
        return None if self._axes is None else hash_of(self._axes)

    @cached_property
    def axes(self) -> str | None:
        """The same without the reference: runs that are equal in it may be pooled over references."""
        return None if self._axes is None else hash_of({k: v for k, v in self._axes.items() if k != "reference"})

    @cached_property
    def _axes(self) -> dict[str, Any] | None:
        folder = self.artifact(evaluations.ReferenceEvaluation.name)
        if folder is None:
            return None
        inputs = dict(json.loads((folder / INPUTS).read_text())["inputs"])
        evaluation = {k: v for k, v in inputs["evaluation"].items() if k != "batch_size"}
        return {k: inputs[k] for k in ("reference", "reward", "data", "generation")} | {"evaluation": evaluation}

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every evaluated checkpoint, in the order of training."""
        rows = pd.read_parquet(self.path / files.EVALUATIONS)
        checkpoints = []
        for step, point in rows.groupby("step", sort=True):
            test, validation = (point[point["split"] == split] for split in ("test", "validation"))
            reward, kl = (float(prompt_means(validation, column).mean()) for column in ("reward", "kl"))
            rewards, kls = (prompt_means(test, column) for column in ("reward", "kl"))
            checkpoints.append(Checkpoint(int(str(step)), rewards, kls, reward, kl))
        return tuple(checkpoints)

    @cached_property
    def reference(self) -> tuple[np.ndarray, float | None]:
        """(prompts,) the reference's mean reward of each test prompt, and its mean over validation prompts.

        The latter is None if the artifact of the reference's evaluation was removed.
        """
        folder = self.artifact(evaluations.ReferenceEvaluation.name)
        if folder is not None:
            rows = pd.read_parquet(folder / evaluations.FILE, columns=["split", "prompt_id", "reward"])
            test, validation = (rows[rows["split"] == split] for split in ("test", "validation"))
            return prompt_means(test, "reward"), float(prompt_means(validation, "reward").mean())
        rows = pd.read_parquet(self.path / files.SAMPLES, columns=["prompt_id", "reference_reward"])
        return prompt_means(rows, "reference_reward"), None


# --- from folders to runs ---------------------------------------------------------------------------------------------


def find(places: Sequence[Path]) -> list[Path]:
    """The run folders in some places, each of which is a run, a sweep, a folder of runs or a folder of outputs.

    Raises:
        ConfigError: a place does not exist, or has no run in it.
    """
    folders: dict[Path, None] = {}
    for place in places:
        if place.is_file() and place.suffix == ".lock":
            continue  # a shell's outputs/sweeps/NAME-* names it too
        if not place.is_dir():
            raise ConfigError(f"there is no folder {place}; name a run, a sweep or a folder of runs")
        if (place / SWEEP_STATE).exists():
            runs = _runs_of_sweep(place)
        elif (place / files.CONFIG).exists():
            runs = [place]
        else:
            configs = [file for pattern in ("*", "runs/*") for file in sorted(place.glob(f"{pattern}/{files.CONFIG}"))]
            runs = [config.parent for config in configs]
        if not runs:
            raise ConfigError(
                f"there is no run in {place}; a run's folder has {files.CONFIG}, {files.SUMMARY} and {MANIFEST}"
            )
        folders |= dict.fromkeys(path.resolve() for path in runs)
    return list(folders)


def _runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep; those beside it come first, in case it was moved or copied together with them."""
    state = folder / SWEEP_STATE
    try:
        recorded = [Path(job["run"]) for job in json.loads(state.read_text())["jobs"] if job["run"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{state} was not written by a sweep; name the runs themselves") from error
    beside = folder.resolve().parent.parent / "runs"
    return [beside / run.name if (beside / run.name).is_dir() else run for run in recorded]


def read(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[dict[str, str]]]:
    """The finished runs among some folders, and those that are left out: dicts of `path` and `why`."""
    runs, skipped = [], []
    for path in paths:
        why = _unusable(path)
        if why is not None:
            skipped.append({"path": str(path), "why": why})
            continue
        runs.append(opened(path))
    return runs, skipped


def opened(path: Path) -> FinishedRun:
    """A finished run of any kind, whose files are taken as they are.

    Raises:
        OSError: one is not there.
    """
    summary, artifacts, overrides = (
        json.loads((path / name).read_text()) for name in (files.SUMMARY, files.ARTIFACTS, files.OVERRIDES)
    )
    config = yaml.safe_load((path / files.CONFIG).read_text())
    return FinishedRun(path, config, summary, artifacts, overrides)


def _unusable(path: Path) -> str | None:
    """Why a run folder cannot be drawn; None if it can."""
    if not path.is_dir():
        return "there is no such folder: the run was not started"
    if not (path / MANIFEST).exists():
        return "not finished: run its command again to go on"
    missing = next((name for name in NEEDED if not (path / name).is_file()), None)
    if missing is not None:
        return f"{missing} is missing"
    problem = check_manifest(path, READ)
    return None if problem is None else f"changed after it was finished: {problem}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
