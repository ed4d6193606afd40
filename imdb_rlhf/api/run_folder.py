"""The run folder that a callback leaves: what `runs/` leaves of the project's own runs, so that a frontier reads it."""

import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from imdb_rlhf.api.world import World
from imdb_rlhf.artifacts.files import MANIFEST, hash_of, in_use, plain, write_json, write_manifest
from imdb_rlhf.artifacts.store import Store
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.errors import ConfigError, RunError, first_line
from imdb_rlhf.evaluation.results import results
from imdb_rlhf.frontier.report import run_report
from imdb_rlhf.runs import files, points, summary
from imdb_rlhf.runs.folder import OUTSIDE, SCAFFOLD
from imdb_rlhf.stages import evaluations
from imdb_rlhf.tracking.jsonl import JsonlLog

RUNS = "runs"
# Folders that this process holds: a cell of a notebook that was interrupted does not give its folder back.
_HELD: dict[Path, ExitStack] = {}


@dataclass(frozen=True)
class Training:
    """What trained a policy.

    Attributes:
        method: its name in figures and tables.
        knob: name and value of the key that a sweep varies, or None.
        every: steps between evaluations.
        seed: of the training.
        settings: the keys that set runs of one method apart.
        trainer: names and versions, for the record.
    """

    method: str
    knob: tuple[str, float] | None
    every: int
    seed: int
    settings: Mapping[str, Any]
    trainer: Mapping[str, str]


class CallbackRun:
    """The folder of one training: evaluation points while it goes on, then a finished run.

    Attributes:
        path: OUTPUTS/runs/NAME; the artifact of the reference's evaluation is in OUTPUTS/artifacts.
    """

    def __init__(self, path: str | Path, world: World) -> None:
        """Refuse a folder that a frontier would not read, or that holds a finished run.

        Raises:
            ConfigError: naming the folder and the way out.
        """
        self.path, self.world = Path(path).expanduser().resolve(), world
        self.log: JsonlLog | None = None
        if self.path.parent.name != RUNS:
            raise ConfigError(
                f"folder={path}: a run's folder is in a folder {RUNS}, beside the artifacts that it shares; give "
                f"outputs/{RUNS}/{self.path.name}"
            )
        self._refuse_finished()

    def _refuse_finished(self) -> None:
        if (self.path / MANIFEST).exists():
            raise ConfigError(f"folder={self.path} holds a finished run; give another folder, or move it away")

    def begin(self, training: Training, step: int) -> None:
        """Take the folder, and write what is known before the first step.

        Args:
            training: what trains.
            step: of the trainer's checkpoint; 0 for a fresh training.

        Raises:
            ConfigError: the folder holds a finished run, or an unfinished one of another configuration.
            RunError: another process is in it.
        """
        self.training, self.began = training, time.perf_counter()
        if self.path in _HELD:
            _HELD.pop(self.path).close()
        with ExitStack() as stack:
            stack.enter_context(in_use(self.path))
            self._refuse_finished()
            self.config = self._config()
            text = yaml.safe_dump(plain(self.config), sort_keys=False, allow_unicode=True)
            written = self.path / files.CONFIG
            if written.exists() and written.read_text(encoding="utf-8") != text:
                raise ConfigError(
                    f"folder={self.path} holds an unfinished run of other settings; give another folder, or remove it"
                )
            self.artifacts = self._artifacts()
            self.path.mkdir(parents=True, exist_ok=True)
            written.write_text(text, encoding="utf-8")
            write_json(self.path / files.ARTIFACTS, self.artifacts)
            write_json(self.path / files.OVERRIDES, [])
            points.drop(self.path, step if step else -1)
            self.log = JsonlLog(self.path / files.METRICS, step or None)
            _HELD[self.path] = stack.pop_all()

    def _config(self) -> dict[str, Any]:
        training, config = self.training, self.world.config
        return config | {
            "evaluation": config["evaluation"] | {"every": training.every},
            "algo": "own_model",
            "seed": training.seed,
            "own_model": {"path": None, "revision": None, "name": training.method},
            "training": dict(training.settings),
        }

    def _artifacts(self) -> dict[str, str]:
        """The world's artifacts; the reference's evaluation is put beside the run where it is not there yet."""
        stage, inputs = evaluations.ReferenceEvaluation.name, self.world.inputs
        store = Store(self.path.parent.parent / "artifacts")
        known = self.world.artifacts
        there = {name: key for name, key in known.items() if (store.root / name / key / MANIFEST).exists()}
        if stage in there:
            return there

        def make(folder: Path) -> None:
            write_table(folder / evaluations.FILE, self.world.reference_rows)

        return there | {stage: store.build(stage, inputs, make).key}

    def write_row(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to `metrics.jsonl`."""
        if self.log is not None:
            self.log.log({"stage": "training", "step": step} | dict(values))

    def keep(self, frame: pd.DataFrame, step: int) -> None:
        """Keep an evaluation point."""
        points.keep(self.path, frame, step)

    def finish(self) -> None:
        """Leave the results and seal the folder; without an evaluation point the run stays unfinished.

        Raises:
            RunError: nothing was evaluated.
        """
        frames = points.read(self.path)
        if not frames:
            raise RunError(f"{self.path}: the training ended before its first evaluation; train longer")
        if self.log is not None:
            self.log.finish({})
        last, reference = frames[max(frames)], self.world.reference_rows
        write_table(self.path / files.EVALUATIONS, points.joined(frames), points.UNKNOWN)
        write_table(self.path / files.SAMPLES, summary.samples(last, reference), points.UNKNOWN)
        write_json(self.path / files.SUMMARY, self._summary(last, reference))
        write_manifest(self.path, (*OUTSIDE, *SCAFFOLD))
        shutil.rmtree(self.path / points.PARTS)
        _HELD.pop(self.path, ExitStack()).close()
        try:
            run_report.write(self.path)
        except (OSError, ValueError, KeyError) as error:  # the run is finished without it
            warnings.warn(f"no {files.REPORT}: {first_line(error)}", stacklevel=2)

    def _summary(self, last: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
        training, config = self.training, self.config
        return {
            "name": self.path.name,
            "algo": config["algo"],
            "variant": training.method,
            "knob": None if training.knob is None else dict(zip(("name", "value"), training.knob, strict=True)),
            "seed": training.seed,
            "step": int(last["step"].iloc[0]),
            **results(last, reference, self.world.evaluation),
            "reward_name": config["reward"]["name"],
            "reward_range": self.world.reward_range,
            "data_name": config["data"]["name"],
            "seconds": time.perf_counter() - self.began,
            "stage_seconds": {},
            "config_hash": hash_of({"config": plain(config), "artifacts": self.artifacts}, 32),
            "trainer": dict(training.trainer),
            "command": shlex.join(["python", *sys.argv]),
        }
