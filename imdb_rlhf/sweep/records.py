"""What became of each job of a sweep: `sweep.json`, and what logs and run folders say."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.sweep.jobs import Job, labels
from imdb_rlhf.sweep.processes import Found

STATE = "sweep.json"
TAIL = 4096  # bytes of a log that are read for its last line


@dataclass
class Record:
    """A job of a sweep, and what became of it.

    Attributes:
        job: what is run.
        label: what sets it apart from the others.
        name, path: of its run's folder.
        log: what its process writes.
        state: waiting, running, done, failed or stopped.
        reason: why it failed.
        exit_code: of its last process.
        seconds: that all its processes have taken.
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

    def kept(self) -> dict[str, Any]:
        """What `sweep.json` holds of it."""
        values = {key: getattr(self, key) for key in ("state", "reason", "exit_code", "seconds", "pid")}
        places = {"name": self.name, "run": str(self.path), "log": str(self.log)}
        return {"overrides": self.job.overrides} | places | values

    @property
    def kind(self) -> tuple[str, str | None]:
        """Jobs of one kind take about the same time."""
        run = self.job.run
        return run.algo, run.ppo.preset if isinstance(run, PPORun) else None

    def summary(self) -> dict[str, Any]:
        """What its run came to; empty where it has not ended."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.path / "summary.json").read_text()))
        return {}

    def row(self) -> dict[str, Any]:
        """Its row of the table of jobs."""
        run, found = self.job.run, self.summary() if self.state == "done" else {}
        return {
            "method": run.algo + (f" ({run.variant})" if run.variant else ""),
            "knob": f"{run.knob[0]}={run.knob[1]:g}" if run.knob else None,
            "seed": run.seed,
            "reward": found.get("reward"),
            "kl": found.get("kl"),
            "kl_bound": found.get("kl_is") == "upper bound",
            "seconds": self.seconds,
            "state": self.state,
        }


def records(jobs: Sequence[Job], found: Sequence[Found], folder: Path) -> tuple[list[Record], list[str]]:
    """A record for every run: done where it is finished, failed where it was changed by hand.

    Returns:
        The records, and the labels of jobs that are left out: they have the run folder of an earlier one.
    """
    before = _earlier(folder)
    kept: dict[Path, Record] = {}
    again = []
    for job, label, there in zip(jobs, labels([job.overrides for job in jobs]), found, strict=True):
        if there.path in kept:
            again.append(label)
            continue
        log = folder / "logs" / f"{len(kept) + 1:02d}-{there.name}.log"
        record = Record(job, label, there.name, there.path, log, seconds=before.get(there.name))
        if there.finished:
            record.state, record.exit_code = "done", 0
            if record.seconds is None:
                record.seconds = record.summary().get("seconds")
        elif there.problem is not None:
            record.state, record.reason, record.exit_code = "failed", there.problem, 1
        kept[there.path] = record
    return list(kept.values()), again


def _earlier(folder: Path) -> dict[str, float]:
    """Seconds that runs have taken so far, by name, from the last time."""
    try:
        kept = json.loads((folder / STATE).read_text())["jobs"]
        return {job["name"]: job["seconds"] for job in kept if job["seconds"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save(folder: Path, command: str, all_records: Sequence[Record]) -> None:
    """Write `sweep.json`."""
    kept = {"name": folder.name, "command": command, "jobs": [record.kept() for record in all_records]}
    atomic_write(folder / STATE, json.dumps(kept, indent=1) + "\n")


def time_left(all_records: Sequence[Record], elapsed: dict[str, float], slots: int) -> float | None:
    """Seconds until all jobs have ended, by the mean of those that are done; None before one is.

    Args:
        all_records: of the sweep.
        elapsed: seconds since a running job started, by its run's name.
        slots: jobs at once.
    """
    done = [record for record in all_records if record.state == "done" and record.seconds is not None]
    if not done:
        return None
    left = []
    for record in all_records:
        if record.state in ("waiting", "running"):
            alike = [other.seconds or 0.0 for other in done if other.kind == record.kind]
            usual = mean(alike or [other.seconds or 0.0 for other in done])
            left.append(max(0.0, usual - elapsed.get(record.name, 0.0)))
    return max(sum(left) / slots, max(left, default=0.0))


def last_line(log: Path) -> str:
    """The last line of a file that is not empty, or nothing."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return ""
