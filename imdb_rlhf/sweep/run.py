"""A sweep from its checked jobs to its frontier: skip the finished ones, run the others in slots, show the results."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from imdb_rlhf.artifacts.files import MANIFEST, in_use
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier import files
from imdb_rlhf.signals import stopping
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.drawing import Drawing
from imdb_rlhf.sweep.jobs import Job, Machine, devices, labels, slots
from imdb_rlhf.sweep.processes import FrontierResult, describe_exit
from imdb_rlhf.sweep.records import Record, last_line, records, save, time_left
from imdb_rlhf.tracking import wandb_files
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole, outcome

TICK = 0.25  # seconds between two updates of the display


def run_sweep(name: str, jobs: Sequence[Job], command: str) -> int:
    """Run all jobs that are not finished, and draw the frontier of all that are.

    Args:
        name: of the folder.
        jobs: checked, none twice.
        command: that the user typed, for `sweep.json`.

    Returns:
        The exit code: 0 all done, 1 a job or the frontier failed, 75 stopped by a signal.

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
    machine, statuses = processes.inspect(jobs)
    per_job = max(job.run.trainer.processes for job in jobs)
    at_once = slots(first.launcher, machine, per_job)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    environments = [devices(slot, machine.gpus, per_job, visible) for slot in range(at_once)]
    folder = Path(first.paths.outputs) / "sweeps" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"paths.outputs={first.paths.outputs} cannot be made: {error}; give another") from error
    with in_use(folder):
        all_records, repetitions = records(jobs, statuses, folder)
        for label in repetitions:
            console.note(f"{label} is the same run as another job: run once")
        if first.launcher.jobs is None and at_once == 1 and not machine.gpus and machine.cores > 1:
            console.note(_why_alone(first.launcher.name, machine))
        return Sweep(folder, all_records, environments, console, command).run()


def _why_alone(launcher: str, machine: Machine) -> str:
    return (
        f"launcher={launcher}: one job at a time, because each computes with {machine.threads} threads and there are "
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
    """The jobs of one sweep, run side by side in slots; `environments` has the variables that each slot adds."""

    def __init__(
        self,
        folder: Path,
        all_records: list[Record],
        environments: Sequence[Mapping[str, str]],
        console: SweepConsole,
        command: str,
    ) -> None:
        self.folder, self.records, self.environments = folder, all_records, environments
        self.console, self.command = console, command
        self.free = set(range(len(environments)))
        self.running: dict[ForkServerProcess, tuple[Record, int, float]] = {}  # its slot, and when it started
        self.signals = self.passed_on = 0
        self.drawing = Drawing(folder)
        self.problem: str | None = None  # that kept the last frontier from being drawn

    def run(self) -> int:
        """Run the jobs that are waiting; returns the exit code."""
        self._begin()
        result = None
        with self._signals():
            try:
                with self.console.watching():
                    while self._step():
                        pass
                    if not self.signals:
                        result = self._draw_last()
            finally:
                for process in self.running:
                    processes.stop(process, signal.SIGKILL)
                self.drawing.stop()
        return self._end(result)

    def _in(self, state: str) -> list[Record]:
        return [record for record in self.records if record.state == state]

    def _begin(self) -> None:
        done, total = len(self._in("done")), len(self.records)
        self.console.note(f"{self.folder}: {total} {'job' if total == 1 else 'jobs'}")
        if done:
            self.console.note(f"{done} of {total} finished already, not run again")
        for record in self._in("failed"):
            self._show(record, record.reason or "")
        self._save()

    def _save(self) -> None:
        save(self.folder, self.command, self.records)

    def _show(self, record: Record, note: str) -> None:
        number = f"{self.records.index(record) + 1}/{len(self.records)}"
        self.console.job(number, record.state, record.label, note)

    # --- signals ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal to stop is passed on to the jobs, which write a checkpoint; a second one ends them at once."""
        before = {number: signal.signal(number, self._caught) for number in stopping()}
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
        """Start jobs while there are slots, and wait for a process to end; returns whether any job is running."""
        for record in [] if self.signals else self._in("waiting")[: len(self.free)]:
            self._start(record)
        if not self.running:
            return False
        self._pass_on()
        self.console.update(self._state())
        wait([*(process.sentinel for process in self.running), *self.drawing.connections], TICK)
        for process in [process for process in self.running if not process.is_alive()]:
            self._ended(process)
        result = self.drawing.ended()
        if result is not None:
            if result.problem is not None and result.problem != self.problem:
                self.console.warn(f"the frontier was not drawn: {result.problem}")
            self.problem = result.problem
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
            self._show(record, "")

    def _ended(self, process: ForkServerProcess) -> None:
        process.join()
        record, slot, began = self.running.pop(process)
        self.free.add(slot)
        record.exit_code, record.pid = process.exitcode, None
        record.seconds = (record.seconds or 0.0) + time.monotonic() - began
        code = process.exitcode
        finished = code == 0 and (record.path / MANIFEST).is_file()  # any code may call os._exit(0)
        record.state = "done" if finished else "stopped" if code == 75 or self.signals else "failed"
        if record.state == "failed":
            message = last_line(record.log).removeprefix("failed: ").removeprefix("refused: ")
            record.reason = message if message and code is not None and code > 0 else describe_exit(code)
        self._save()
        self._show(record, outcome(record.row()) if record.state == "done" else record.reason or "")

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
        """Whether any run that is done has a policy."""
        return any(record.job.run.has_policy for record in self._in("done"))

    def _draw_last(self) -> FrontierResult | None:
        """The frontier of all runs that are done, shown on W&B too; None where there is nothing to draw."""
        if not self._drawable():
            return None
        logger = self.records[0].job.run.logger
        wandb_group = (logger, logger.group or self.folder.name) if isinstance(logger, WandbLogger) else None
        began = time.monotonic()
        if self.drawing.connections:  # a drawing of fewer runs is under way
            self._wait_for_drawing(began)
        self.drawing.start([record.path for record in self._in("done")], wandb_group, last=True)
        return self._wait_for_drawing(began)

    def _wandb_place(self) -> dict[str, str]:
        """Where W&B's copies are, the frontier's with them."""
        logger = self.records[0].job.run.logger
        if not isinstance(logger, WandbLogger):
            return {}
        runs = [record.path for record in self.records]
        place = wandb_files.place_of_sweep(self.folder, runs, logger.group or self.folder.name)
        return {} if place is None else {"W&B": place}

    def _wait_for_drawing(self, began: float) -> FrontierResult | None:
        """The result of the drawing that is under way; None after a signal."""
        while (result := self.drawing.ended(TICK)) is None and not self.signals:
            drawing = Running("the frontier", time.monotonic() - began, "is being drawn")
            done, failed = len(self._in("done")), len(self._in("failed"))
            self.console.update(State(len(self.records), done, failed, 0, [drawing], None))
        return result

    def _end(self, result: FrontierResult | None) -> int:
        """Show the results; returns the exit code."""
        failed = [(record.label, record.reason or "", str(record.log)) for record in self._in("failed")]
        if result is not None and result.problem is not None:
            failed.append(("the frontier", result.problem, str(self.folder / "logs" / "frontier.log")))
        self.console.table([record.row() for record in self.records])
        for warning in result.warnings if result is not None else []:
            self.console.warn(warning)
        if not self.signals and not self._drawable():
            self.console.note("no run that is done has a policy: there is no frontier to draw")
        places = {"sweep": str(self.folder)}
        for folder in result.folders if result is not None else []:
            world = "" if folder == self.folder else f" {folder.name}"
            places |= {f"report{world}": str(folder / files.REPORT), f"figure{world}": str(folder / files.SVG)}
        self.console.places(places | self._wandb_place())
        if failed:
            self.console.failures(failed)
        if self.signals or (self._in("stopped") and not failed):
            self.console.note("stopped: run the same command to go on")
            return 75
        return 1 if failed else 0
