"""Finished runs as points of reward over KL: what is read from their folders, and whether they may be compared.

Nothing is computed again: `evaluations.parquet` has every evaluated checkpoint, the artifacts that a run names have the
reference's samples. A run that is half-written or was changed by hand is left out, and said so.
"""

import json
import re
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

# What a run must have to be drawn, and what is read besides: compared byte for byte with the manifest. The rest, a
# model's weights, is compared by its size.
NEEDED = ("config.yaml", "summary.json", "evaluations.parquet", "artifacts.json", "overrides.json")
READ = (*NEEDED, "samples.parquet", "metrics.jsonl", "curve.parquet")
SWEEP = "sweep.json"
# Keys of a configuration that do not make another method of one.
NO_METHOD = re.compile(
    r"(seed|plan|algo|keep_model|ppo\.preset|target_kl|own_model\.path|own_model\.revision)$"
    r"|(logger|paths|trainer|launcher|evaluation|reservoir)\."
)
# Keys of a configuration that the axes depend on: runs that differ in one of them are of two worlds.
WORLD = re.compile(
    r"(data|model|reward|generation|sft)\.|evaluation\.(seed|samples)$|trainer\.(threads|device|precision|processes)$"
)
NO_WORLD = re.compile(r"data\.(path|preferences|preferences_eos)$|.*batch_size$|(model|reward|sft)\.path$")
NAMES = {"dpo": "DPO", "unlikelihood": "Unlikelihood", "preferred_ft": "Preferred-FT", "sft": "SFT"}


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
        kept = {k: inputs[k] for k in ("reference", "reward", "data", "generation")}
        return hash_of(kept | {"evaluation": evaluation})

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every evaluated checkpoint, in the order of its training."""
        rows = pd.read_parquet(self.path / "evaluations.parquet")
        found = []
        for step, point in rows.groupby("step", sort=True):
            test, validation = (point[point["split"] == split] for split in ("test", "validation"))
            reward, kl = (float(prompt_means(validation, column).mean()) for column in ("reward", "kl"))
            found.append(Checkpoint(int(str(step)), prompt_means(test, "reward"), prompt_means(test, "kl"), reward, kl))
        return tuple(found)

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
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"there is no folder {place}; name a run, a sweep or a folder of runs")
        if (place / SWEEP).exists():
            here = _runs_of_sweep(place)
        elif (place / "config.yaml").exists():
            here = [place]
        else:
            here = [file.parent for pattern in ("*", "runs/*") for file in sorted(place.glob(f"{pattern}/config.yaml"))]
        if not here:
            raise ConfigError(
                f"there is no run in {place}; a run's folder has config.yaml, summary.json and {MANIFEST}"
            )
        found |= dict.fromkeys(path.resolve() for path in here)
    return list(found)


def _runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep: those beside it, where it was moved or copied together with them."""
    try:
        named = [Path(job["run"]) for job in json.loads((folder / SWEEP).read_text())["jobs"] if job["run"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / SWEEP} is not what a sweep writes; name the runs themselves") from error
    beside = folder.resolve().parent.parent / "runs"
    return [beside / run.name if (beside / run.name).is_dir() else run for run in named]


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


def worlds(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Run folders by the world that they belong to, under a name of what differs that may name a folder.

    Runs of one world share reward, prompts, sampling and reference, so they may stand on one pair of axes. The name is
    "" where there is one world only. What is not finished belongs to none.
    """
    runs, _ = read(paths)
    groups: dict[str, list[FinishedRun]] = {}
    for run, world in zip(runs, _worlds(runs), strict=True):
        groups.setdefault(world, []).append(run)
    if len(groups) <= 1:
        return {"": [run.path for run in runs]}
    first = [members[0] for members in groups.values()]
    names = [",".join(f"{key.rpartition('.')[2]}={run.flat.get(key)}" for key in _differing(first)) for run in first]
    names = [re.sub(r"[^\w.,=-]+", "_", name)[:60] for name in names]
    if len(set(names)) < len(names):
        names = [f"{name}-{world[:8]}".removeprefix("-") for name, world in zip(names, groups, strict=True)]
    return {name: [run.path for run in members] for name, members in zip(names, groups.values(), strict=True)}


def _worlds(runs: Sequence[FinishedRun]) -> list[str]:
    """The world of each run; one whose artifacts were removed is of the world of others with the same reference."""
    known = {run.artifacts.get("reference"): run.world for run in runs if run.world is not None}
    return [known.get(run.artifacts.get("reference")) or str(run.artifacts.get("reference")) for run in runs]


def check_one_world(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that cannot stand on one pair of axes.

    Raises:
        ConfigError: naming what differs, and in which runs.
    """
    found = _worlds(runs)
    other = next((run for run, world in zip(runs, found, strict=True) if world != found[0]), None)
    if other is None:
        return
    first, keys = runs[0], _differing([runs[0], other])
    what = ", ".join(f"{key} ({first.flat.get(key)} and {other.flat.get(key)})" for key in keys[:3])
    if not what:
        what = f"the reference, its prompts or the reward (artifacts reference/{first.artifacts.get('reference')} and "
        what += f"{other.artifacts.get('reference')}; their {INPUTS} say what made them)"
    raise ConfigError(
        f"{first.name} and {other.name} cannot be compared: they differ in {what}; draw them into two frontiers"
    )


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys of the world that differ among runs."""
    keys = sorted({key for run in runs for key in run.flat if WORLD.match(key) and not NO_WORLD.match(key)})
    return [key for key in keys if len({repr(run.flat.get(key)) for run in runs}) > 1]


# --- methods ----------------------------------------------------------------------------------------------------------


def method_names(runs: Sequence[FinishedRun]) -> dict[Path, str]:
    """The method of each run, as figures and tables call it.

    Runs of one algorithm that differ in a key besides knob and seed are methods of their own, with that key in the
    name.
    """
    named = {run.path: _plain_name(run) for run in runs}
    found: dict[Path, str] = {}
    for name in dict.fromkeys(named.values()):
        members = [run for run in runs if named[run.path] == name]
        keys = sorted({key for run in members for key in run.flat if not NO_METHOD.match(key)})
        knobs = {run.knob[0] for run in members if run.knob is not None}
        keys = [key for key in keys if key.rpartition(".")[2] not in knobs]
        differing = [key for key in keys if len({repr(run.flat.get(key)) for run in members}) > 1]
        for run in members:
            said = ", ".join(f"{_short(key, differing)}={run.flat.get(key)}" for key in differing)
            found[run.path] = f"{name} ({said})" if said else name
    return found


def _plain_name(run: FinishedRun) -> str:
    config = run.config
    if run.algo == "own_model":
        return str(run.summary["variant"])
    if run.algo == "ppo":
        ppo = config["ppo"]
        name = "PPO" if ppo["reward"] == "learned" else "PPO-GT"
        own = {"trl_2023": " (TRL)", "ziegler": " (Ziegler)"}
        return name + own.get(str(ppo["preset"]), "") + (" (fixed)" if ppo["kl_coefficient"] is not None else "")
    variant = run.summary["variant"]
    return NAMES.get(run.algo, run.algo) + ("" if variant is None else f" ({variant})")


def _short(key: str, among: Sequence[str]) -> str:
    """The last word of a key, where that says which."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else key


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
