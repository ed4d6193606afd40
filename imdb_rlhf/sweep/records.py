"""The state of each job of a sweep, kept in `sweep.json`, with what its log and its run folder add."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier.files import SWEEP_STATE
from imdb_rlhf.runs import files
from imdb_rlhf.signals import describe_exit
from imdb_rlhf.sweep.jobs import Job, labels
from imdb_rlhf.sweep.processes import RunStatus
from imdb_rlhf.tracking.formats import seconds_left

TAIL = 4096  # bytes of a log that are read for its last line


@dataclass
class Record:
    """A job of a sweep, and its state.

    Attributes:
        job: that is run.
        label: its name among the others.
        name, path: of its run's folder.
        log: the output of its process.
        state: waiting, running, done, failed or stopped.
        reason: why it failed.
        exit_code: of its last process.
        seconds: that all its processes took together.
        pid: of the process that runs it now.
    """

    job: Job
    label: str
    name: str
    path: Path
    log: Path
    state: str = "waiting"
    reason: str | None = None
    exit_code: int | None = None
    seconds: float | None = None
    pid: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Its entry in `sweep.json`."""
        values = {key: getattr(self, key) for key in ("state", "reason", "exit_code", "seconds", "pid")}
        places = {"name": self.name, "run": str(self.path), "log": str(self.log)}
        return {"overrides": self.job.overrides} | places | values

    @property
    def kind(self) -> tuple[str, str | None]:
        """Jobs of one kind take about the same time."""
        return self.job.run.algo, self.job.run.variant

    def summary(self) -> dict[str, Any]:
        """The summary of its run; empty where that has not ended."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.path / files.SUMMARY).read_text()))
        return {}

    def own_estimate(self) -> float | None:
        """The seconds that its training will take, as its log says; None while it does something else."""
        line = last_line(self.log)
        return seconds_left(line) if line.startswith(f"{self.job.run.algo} ") else None

    def row(self) -> dict[str, Any]:
        """Its row of the table of jobs."""
        run, summary = self.job.run, self.summary() if self.state == "done" else {}
        return {
            "method": run.algo + (f" ({run.variant})" if run.variant else ""),
            "knob": f"{run.knob[0]}={run.knob[1]:g}" if run.knob else None,
            "seed": run.seed,
            "reward": summary.get("reward"),
            "kl": summary.get("kl"),
            "kl_bound": summary.get("kl_is") == "upper bound",
            "seconds": self.seconds,
            "state": self.state,
        }


def log_of(folder: Path, name: str) -> Path:
    """The output of the job in a sweep's folder that makes the run of this name."""
    return folder / "logs" / f"{name}.log"


def records(jobs: Sequence[Job], statuses: Sequence[RunStatus], folder: Path) -> tuple[list[Record], list[str]]:
    """A record per run: done where the run is finished, failed where it was changed by hand.

    Returns:
        The records, and the labels of the jobs without one: they have the run folder of an earlier job.
    """
    seconds = _earlier_seconds(folder)
    by_path: dict[Path, Record] = {}
    repetitions = []
    for job, label, status in zip(jobs, labels([job.overrides for job in jobs]), statuses, strict=True):
        if status.path in by_path:
            repetitions.append(label)
            continue
        log = log_of(folder, status.name)
        record = Record(job, label, status.name, status.path, log, seconds=seconds.get(status.name))
        if status.finished:
            record.state, record.exit_code = "done", 0
            if record.seconds is None:
                record.seconds = record.summary().get("seconds")
        elif status.problem is not None:
            record.state, record.reason, record.exit_code = "failed", status.problem, 1
        by_path[status.path] = record
    return list(by_path.values()), repetitions


def _earlier_seconds(folder: Path) -> dict[str, float]:
    """Seconds that runs took so far, by name, from an earlier `sweep.json`."""
    try:
        jobs = json.loads((folder / SWEEP_STATE).read_text())["jobs"]
        return {job["name"]: job["seconds"] for job in jobs if job["seconds"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save(folder: Path, command: str, all_records: Sequence[Record]) -> None:
    """Write `sweep.json`."""
    save_entries(folder, command, [record.to_json() for record in all_records])


def save_entries(folder: Path, command: str, entries: Sequence[dict[str, Any]]) -> None:
    """Write `sweep.json` from the entries of jobs."""
    content = {"name": folder.name, "command": command, "jobs": entries}
    atomic_write(folder / SWEEP_STATE, json.dumps(content, indent=1, allow_nan=False) + "\n")


def time_left(all_records: Sequence[Record], elapsed: dict[str, float], slots: int) -> float | None:
    """Seconds until all jobs will have ended; None before anything is known.

    A job that trains says itself how long that takes; another one takes as long as its kind usually does, by the jobs
    that are done and those that train.

    Args:
        all_records: of the sweep.
        elapsed: seconds since each running job started, by its run's name.
        slots: jobs that run at once.
    """
    own = {record.name: record.own_estimate() for record in all_records if record.state == "running"}
    totals: list[tuple[Record, float]] = []
    for record in all_records:
        said = own.get(record.name)
        if said is not None:
            totals.append((record, elapsed.get(record.name, 0.0) + said))
        elif record.state == "done" and record.seconds is not None:
            totals.append((record, record.seconds))
    if not totals:
        return None
    left = []
    for record in all_records:
        said = own.get(record.name)
        if record.state in ("waiting", "running") and said is None:
            same_kind = [seconds for other, seconds in totals if other.kind == record.kind]
            usual = mean(same_kind or [seconds for _, seconds in totals])
            said = max(0.0, usual - elapsed.get(record.name, 0.0))
        left.append(said or 0.0)
    return max(sum(left) / slots, max(left, default=0.0))


def reason_of(code: int | None, log: Path) -> str:
    """Why a job failed: from the exit code of its process and the last line of its log."""
    line = last_line(log)
    for word in ("failed: ", "refused: "):
        if line.startswith(word) and code is not None and code > 0:
            return line.removeprefix(word)
    return describe_exit(code) + (f"; its log ends: {line}" if line and code is not None and code > 0 else "")


def last_line(log: Path) -> str:
    """The last line of a file with anything in it; empty where there is none."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return ""
