"""A sweep from its checked jobs to its frontier: what is finished already, what runs in which slot, how it ended."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from imdb_rlhf.artifacts.files import in_use
from imdb_rlhf.config.algos import BestOfNRun, RewardModelRun
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.errors import RunError
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.drawing import Drawing
from imdb_rlhf.sweep.jobs import Job, Machine, devices, labels, slots
from imdb_rlhf.sweep.processes import Drawn, how
from imdb_rlhf.sweep.records import Record, last_line, records, save, time_left
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole, outcome

TICK = 0.25  # seconds between looks at what runs


def run_sweep(name: str, jobs: Sequence[Job], command: str) -> int:
    """Run all jobs that are not finished, and draw the frontier of all that are.

    Args:
        name: of the folder.
        jobs: checked, none twice.
        command: that does this, for the records.

    Returns:
        0 if all is done; 1 if a job failed, or the frontier; 75 if it was stopped.

    Raises:
        ConfigError: a job is refused; nothing was written.
        RunError: something that a job needs is not there (nothing was written), or the sweep is running already.
    """
    console, first = SweepConsole(), jobs[0].run
    if first.plan:
        return _plan(jobs, console)
    if first.launcher.jobs != 1:
        for key, value in processes.PASSIVE.items():
            os.environ.setdefault(key, value)  # before the fork server loads torch
    machine, found = processes.found(jobs)
    several = max(job.run.trainer.processes for job in jobs)
    at_once = slots(first.launcher, machine, several)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    environments = [devices(slot, machine.gpus, several, visible) for slot in range(at_once)]
    folder = Path(first.paths.outputs) / "sweeps" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"paths.outputs={first.paths.outputs} cannot be made: {error}; give another") from error
    with in_use(folder):
        kept, again = records(jobs, found, folder)
        for label in again:
            console.note(f"{label} is the same run as another job: run once")
        if first.launcher.jobs is None and at_once == 1 and not machine.gpus and machine.cores > 1:
            console.note(_why_alone(first.launcher.name, machine))
        return Sweep(folder, kept, environments, console, command).run()


def _why_alone(launcher: str, machine: Machine) -> str:
    return (
        f"launcher={launcher}: one job at a time, for each computes with {machine.threads} threads and there are "
        f"{machine.cores} cores; trainer.threads=1 runs {machine.cores} at once (as runs of another name: their "
        "numbers differ in the last bits)"
    )


def _plan(jobs: Sequence[Job], console: SweepConsole) -> int:
    failed = []
    for number, (job, label) in enumerate(zip(jobs, labels([job.overrides for job in jobs]), strict=True), 1):
        console.note(f"job {number} of {len(jobs)}: {label}")
        try:
            processes.plan(job)
        except RunError as error:
            failed.append((label, str(error), ""))
        console.note("")
    if failed:
        console.failures(failed)
    return 1 if failed else 0


class Sweep:
    """The jobs of one sweep, run in slots side by side; `environments` is what a slot adds for its jobs."""

    def __init__(
        self,
        folder: Path,
        kept: list[Record],
        environments: Sequence[Mapping[str, str]],
        console: SweepConsole,
        command: str,
    ) -> None:
        self.folder, self.records, self.environments = folder, kept, environments
        self.console, self.command = console, command
        self.free = set(range(len(environments)))
        self.running: dict[ForkServerProcess, tuple[Record, int, float]] = {}  # its slot, and when it started
        self.signals = self.passed_on = 0
        self.drawing = Drawing(folder)
        self.problem: str | None = None  # why it was not drawn the last time

    def run(self) -> int:
        """Run what is waiting; returns the exit code."""
        self._begin()
        drawn = None
        with self._signals():
            try:
                with self.console.watching():
                    while self._step():
                        pass
                    if not self.signals:
                        drawn = self._draw_last()
            finally:
                for process in self.running:
                    processes.stop(process, signal.SIGKILL)
                self.drawing.stop()
        return self._end(drawn)

    def _in(self, state: str) -> list[Record]:
        return [record for record in self.records if record.state == state]

    def _begin(self) -> None:
        done, total = len(self._in("done")), len(self.records)
        self.console.note(f"{self.folder}: {total} {'job' if total == 1 else 'jobs'}")
        if done:
            self.console.note(f"{done} of {total} finished already, not run again")
        for record in self._in("failed"):
            self._say(record, record.reason or "")
        self._save()

    def _save(self) -> None:
        save(self.folder, self.command, self.records)

    def _say(self, record: Record, note: str) -> None:
        number = f"{self.records.index(record) + 1}/{len(self.records)}"
        self.console.job(number, record.state, record.label, note)

    # --- signals ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are passed on to the jobs, which write a checkpoint; a second one ends them at once."""
        before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _pass_on(self) -> None:
        if self.signals == self.passed_on:
            return
        if not self.passed_on:
            self.console.note("stopping: the jobs write a checkpoint; once more ends them at once")
        self.passed_on = self.signals
        for process in self.running:
            processes.stop(process, signal.SIGTERM if self.signals == 1 else signal.SIGKILL)

    # --- jobs ------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Start what there is room for and wait for something to end; whether there is anything to wait for."""
        for record in [] if self.signals else self._in("waiting")[: len(self.free)]:
            self._start(record)
        if not self.running:
            return False
        self._pass_on()
        self.console.update(self._state())
        wait([*(process.sentinel for process in self.running), *self.drawing.connections], TICK)
        for process in [process for process in self.running if not process.is_alive()]:
            self._ended(process)
        drawn = self.drawing.ended()
        if drawn is not None:
            if drawn.problem is not None and drawn.problem != self.problem:
                self.console.warn(f"the frontier was not drawn: {drawn.problem}")
            self.problem = drawn.problem
        if not self.signals and self.running and self._drawable():
            self.drawing.start([record.path for record in self._in("done")])
        return True

    def _start(self, record: Record) -> None:
        slot = min(self.free)
        process = processes.start(processes.work, record.job, record.path, record.log, self.environments[slot])
        self.running[process] = (record, slot, time.monotonic())
        self.free.remove(slot)
        record.state, record.exit_code, record.pid = "running", None, process.pid
        self._save()
        if not self.console.live:
            self._say(record, "")

    def _ended(self, process: ForkServerProcess) -> None:
        process.join()
        record, slot, began = self.running.pop(process)
        self.free.add(slot)
        took = time.monotonic() - began
        record.exit_code, record.pid, record.seconds = process.exitcode, None, (record.seconds or 0.0) + took
        code = process.exitcode
        record.state = "done" if code == 0 else "stopped" if code == 75 or self.signals else "failed"
        if record.state == "failed":
            said = last_line(record.log).removeprefix("failed: ").removeprefix("refused: ")
            record.reason = said if said and code is not None and code > 0 else how(code)
        self._save()
        self._say(record, outcome(record.row()) if record.state == "done" else record.reason or "")

    def _state(self) -> State:
        now = time.monotonic()
        running = [
            Running(record.label, now - began, last_line(record.log)) for record, _, began in self.running.values()
        ]
        elapsed = {record.name: now - began for record, _, began in self.running.values()}
        return State(
            jobs=len(self.records),
            done=len(self._in("done")),
            failed=len(self._in("failed")),
            waiting=len(self._in("waiting")),
            running=running,
            left=time_left(self.records, elapsed, len(self.environments)),
            stopping=bool(self.signals),
        )

    # --- the frontier ----------------------------------------------------------------------------------------------

    def _drawable(self) -> bool:
        """Whether a run that is done has a policy."""
        return any(not isinstance(record.job.run, RewardModelRun | BestOfNRun) for record in self._in("done"))

    def _draw_last(self) -> Drawn | None:
        """The frontier of all runs that are done, shown on W&B too; None where there is nothing to draw."""
        if not self._drawable():
            return None
        logger = self.records[0].job.run.logger
        mirror = (logger, self.folder.name) if isinstance(logger, WandbLogger) else None
        began = time.monotonic()
        if self.drawing.connections:  # one of fewer runs is in hand
            self._drawn(began)
        self.drawing.start([record.path for record in self._in("done")], mirror, last=True)
        return self._drawn(began)

    def _drawn(self, began: float) -> Drawn | None:
        """What was being drawn, once it is; None after a signal."""
        while (drawn := self.drawing.ended(TICK)) is None and not self.signals:
            drawing = Running("the frontier", time.monotonic() - began, "is being drawn")
            done, failed = len(self._in("done")), len(self._in("failed"))
            self.console.update(State(len(self.records), done, failed, 0, [drawing], None))
        return drawn

    def _end(self, drawn: Drawn | None) -> int:
        """Show what it all came to; returns the exit code."""
        failed = [(record.label, record.reason or "", str(record.log)) for record in self._in("failed")]
        if drawn is not None and drawn.problem is not None:
            failed.append(("the frontier", drawn.problem, str(self.folder / "logs" / "frontier.log")))
        self.console.table([record.row() for record in self.records])
        for warning in drawn.warnings if drawn is not None else []:
            self.console.warn(warning)
        if not self.signals and not self._drawable():
            self.console.note("no run that is done has a policy: there is no frontier to draw")
        places = {"sweep": str(self.folder)}
        for folder in drawn.folders if drawn is not None else []:
            world = "" if folder == self.folder else f" {folder.name}"
            places |= {f"report{world}": str(folder / "report.html"), f"figure{world}": str(folder / "frontier.svg")}
        self.console.places(places)
        if failed:
            self.console.failures(failed)
        if self.signals or (self._in("stopped") and not failed):
            self.console.note("stopped: run the same command to go on")
            return 75
        return 1 if failed else 0
