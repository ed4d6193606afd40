"""Sweeps by a sweeper of Hydra's that is not ours (basic, optuna, ...): their records, and their end.

Such a sweeper hands over jobs in batches, to our launcher or to another one, and none of them knows which is the last.
So each job's record is added to `sweep.json` as it ends, and the end is shown when the sweeper has returned.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.config.machine import WandbLogger, WandbMode
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.frontier.files import SWEEP_STATE
from imdb_rlhf.runs import files
from imdb_rlhf.sweep import handed
from imdb_rlhf.sweep.base import TICK, show_results
from imdb_rlhf.sweep.drawing import Drawing
from imdb_rlhf.sweep.jobs import Job
from imdb_rlhf.sweep.processes import RunStatus
from imdb_rlhf.sweep.records import Record, log_of, save_entries
from imdb_rlhf.tracking import wandb_files
from imdb_rlhf.tracking.sweep_console import SweepConsole

OPTUNA_RESULTS = "optimization_results.yaml"  # Optuna's sweeper and those that follow it leave the best values there


def work(job: Job, folder: Path, status: RunStatus) -> None:
    """Run one job in a launcher's worker, and record it in the sweep's folder, whatever becomes of it.

    Raises:
        RunError, Stopped: as `handed.work`.
    """
    record = Record(job, status.name, status.name, status.path, log_of(folder, status.name), "failed")
    record.reason = "its process was ended"
    try:
        handed.work(job, status, record.log)
        record.state, record.reason = "done", None
    except Stopped:
        record.state, record.reason = "stopped", None
        raise
    except RunError as error:
        record.reason = str(error)
        raise
    finally:
        _add(folder, record.to_json())


def _add(folder: Path, entry: Mapping[str, Any]) -> None:
    """Put a job's entry into `sweep.json`, in place of an earlier one of the same run."""
    with FileLock(folder / f"{SWEEP_STATE}.lock"):
        entries = [other for other in _entries(folder) if other["name"] != entry["name"]]
        save_entries(folder, "", [*entries, dict(entry)])


def _entries(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError, KeyError):
        return list(json.loads((folder / SWEEP_STATE).read_text())["jobs"])
    return []


def finish(folder: Path) -> int:
    """Draw the frontier of a sweep's finished runs and show its results; returns the exit code."""
    console, entries = SweepConsole(), _entries(folder)
    if not entries:
        return 0
    finished = [Path(entry["run"]) for entry in entries if entry["state"] == "done"]
    drawing, logger = Drawing(folder), _wandb(finished)
    group = (logger, logger.group or folder.name) if logger is not None else None
    drawing.start([path for path in finished if (path / files.EVALUATIONS).is_file()], group, last=True)
    result = None
    try:
        while drawing.connections and result is None:
            result = drawing.ended(TICK)
    finally:
        drawing.stop()
    place = None if logger is None else wandb_files.place_of_sweep(folder, finished, logger.group or folder.name)
    places = {} if place is None else {"W&B": place}
    failed = [
        (" ".join(entry["overrides"]), entry["reason"] or "", entry["log"])
        for entry in entries
        if entry["state"] == "failed"
    ]
    show_results(console, folder, [_row(entry) for entry in entries], failed, result, places)
    best = folder / OPTUNA_RESULTS
    if best.is_file():
        console.note(f"{best}: {json.dumps(yaml.safe_load(best.read_text()))}")
    if any(entry["state"] == "stopped" for entry in entries) and not failed:
        console.note("stopped: run the same command to go on")
        return 75
    return 1 if failed or (result is not None and result.problem is not None) else 0


def _wandb(finished: Sequence[Path]) -> WandbLogger | None:
    """W&B's settings of the finished runs; None where they have none."""
    for run in finished:
        values = yaml.safe_load((run / files.CONFIG).read_text())["logger"]
        if "project" in values:
            return WandbLogger(**{**values, "mode": WandbMode(values["mode"])})
    return None


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of jobs."""
    summary: dict[str, Any] = {}
    if entry["state"] == "done" and (Path(entry["run"]) / MANIFEST).is_file():
        summary = json.loads((Path(entry["run"]) / files.SUMMARY).read_text())
    knob = summary.get("knob")
    return {
        "method": summary.get("algo", " ".join(entry["overrides"])),
        "knob": f"{knob['name']}={knob['value']:g}" if knob else None,
        "seed": summary.get("seed", ""),
        "reward": summary.get("reward"),
        "kl": summary.get("kl"),
        "kl_bound": summary.get("kl_is") == "upper bound",
        "seconds": summary.get("seconds"),
        "state": entry["state"],
    }
