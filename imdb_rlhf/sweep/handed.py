"""Jobs that are handed to a launcher of Hydra's (SLURM, joblib, ...), and what its workers do with them.

The launcher's worker may be on another machine. What became of a job is read from the files that it leaves: its log
grows while it runs, and its run's folder is sealed when it is done.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.signals import describe_exit, stopping
from imdb_rlhf.sweep import forked, processes
from imdb_rlhf.sweep.base import TICK, Sweep
from imdb_rlhf.sweep.jobs import Job
from imdb_rlhf.sweep.processes import RunStatus
from imdb_rlhf.sweep.records import Record, last_line, reason_of, time_left
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole, outcome

# Runs jobs, given by their overrides, and returns what each raised; None is a job that succeeded.
Launch = Callable[[Sequence[list[str]]], Sequence[BaseException | None]]
KILL_WAIT = 60.0  # seconds within which a scheduler that has asked for an end kills


class HandedSweep(Sweep):
    """A sweep whose jobs a launcher runs."""

    def __init__(
        self, folder: Path, all_records: list[Record], launch: Launch, console: SweepConsole, command: str
    ) -> None:
        super().__init__(folder, all_records, console, command)
        self.launch = launch
        self.began: dict[str, float] = {}  # when a job's log was first seen to grow, by its run's name

    def _caught(self, number: int, frame: FrameType | None) -> NoReturn:
        self.signals += 1
        raise KeyboardInterrupt

    def _work(self) -> None:
        handed = self._in("waiting")
        if not handed:
            return
        start, over = time.time(), threading.Event()
        watching = threading.Thread(target=self._watch, args=(handed, start, over), daemon=True)
        watching.start()
        errors: Sequence[BaseException | None] = []
        try:
            errors = self.launch([record.job.overrides for record in handed])
        except KeyboardInterrupt:
            self.console.note("stopped waiting: jobs that another machine runs, or will run, go on there")
        except Exception as problem:  # the launcher's own, whatever it is
            errors = [problem] * len(handed)
        finally:
            over.set()
            watching.join()
        self._look(handed, start)
        for record, error in zip(handed, errors, strict=False):
            self._ended(record, error)
        if not self.signals:  # else they go on elsewhere
            for record in self._in("running"):
                record.state = "stopped"
        self._save()

    def _abandon(self) -> None:
        """What is left to others is theirs to end."""

    def _watch(self, handed: Sequence[Record], start: float, over: threading.Event) -> None:
        while not over.wait(TICK):
            self._look(handed, start)
            self.console.update(self._state())

    def _look(self, handed: Sequence[Record], start: float) -> None:
        """Read what became of the jobs so far."""
        for record in handed:
            if record.state == "waiting" and _changed_since(record.log, start):
                record.state = "running"
                self.began[record.name] = time.monotonic()
                if not self.console.live:
                    self._show(record, "")
                self._save()
            if record.state in ("waiting", "running") and (record.path / MANIFEST).is_file():
                record.state, record.exit_code = "done", 0
                record.seconds = record.summary().get("seconds")
                self._save()
                self._show(record, outcome(record.row()))

    def _ended(self, record: Record, error: BaseException | None) -> None:
        if record.state == "done":
            return
        record.state, record.exit_code = ("stopped", 75) if isinstance(error, Stopped) else ("failed", 1)
        if record.state == "failed":
            record.reason = " ".join(str(error or describe_exit(0)).split()) or type(error).__name__
        self._show(record, record.reason or "")

    def _state(self) -> State:
        now = time.monotonic()
        elapsed = {record.name: now - self.began[record.name] for record in self._in("running")}
        running = [Running(record.label, elapsed[record.name], last_line(record.log)) for record in self._in("running")]
        done, failed, waiting = (len(self._in(state)) for state in ("done", "failed", "waiting"))
        left = time_left(self.records, elapsed, max(1, len(running)))
        return State(len(self.records), done, failed, waiting, running, left)


def _changed_since(file: Path, start: float) -> bool:
    with suppress(OSError):
        return file.stat().st_mtime >= start
    return False


# --- in a launcher's worker -------------------------------------------------------------------------------------------


def work(job: Job, status: RunStatus, log: Path) -> None:
    """Run one job in a process of its own; a finished run is not run again.

    The job's process holds its run's folder: where another one does, it waits.

    Args:
        job: checked.
        status: of its run's folder.
        log: takes its output.

    Raises:
        RunError: it failed.
        Stopped: a signal came and a checkpoint is written.
    """
    if status.problem is not None:
        raise RunError(status.problem)
    if status.finished:
        return
    process = forked.start(processes.work, job, status.path, log, {}, None)
    with _passed_on(process) as answer:
        process.join()
    code = process.exitcode
    if code == 75:
        answer()
        raise Stopped(f"{status.name}; run the same command to go on")
    if code != 0 or not (status.path / MANIFEST).is_file():
        raise RunError(reason_of(code, log))


@contextmanager
def _passed_on(process: ForkServerProcess) -> Iterator[Callable[[], None]]:
    """Pass signals to stop on to a job's process; yields what answers the first of them once the job has stopped.

    The answer is the launcher's own handler: submitit's hands the job in again.
    """
    caught: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        forked.stop(process, signal.SIGTERM)

    numbers = stopping() if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, pass_on) for number in numbers}

    def answer() -> None:
        if not caught:
            return
        handler = before[signal.Signals(caught[0])]
        if callable(handler):
            handler(caught[0], None)
        if "SLURM_JOB_ID" in os.environ:
            time.sleep(KILL_WAIT)  # it kills what it has asked to end, and may start the job again by itself

    try:
        yield answer
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
