"""Jobs in slots: so many at once, each in a process of its own."""

import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.sweep import forked, processes
from imdb_rlhf.sweep.base import TICK, Sweep
from imdb_rlhf.sweep.records import Record, last_line, reason_of, time_left
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole, outcome


class SlotSweep(Sweep):
    """A sweep whose jobs run side by side in slots; `environments` has the variables that each slot adds.

    A signal to stop is passed on to the jobs, which write a checkpoint; a second one ends them at once.
    """

    def __init__(
        self,
        folder: Path,
        all_records: list[Record],
        environments: Sequence[Mapping[str, str]],
        console: SweepConsole,
        command: str,
        part: bool = False,
    ) -> None:
        super().__init__(folder, all_records, console, command, part)
        self.environments = environments
        self.free = set(range(len(environments)))
        self.running: dict[ForkServerProcess, tuple[Record, int, float]] = {}  # its slot, and when it started
        self.passed_on = 0
        self.problem: str | None = None  # that kept the last frontier from being drawn

    def _work(self) -> None:
        while self._step():
            pass

    def _abandon(self) -> None:
        for process in self.running:
            forked.stop(process, signal.SIGKILL)

    def _pass_on(self) -> None:
        if self.signals == self.passed_on:
            return
        if not self.passed_on:
            self.console.note("stopping: the jobs write a checkpoint; once more ends them at once")
        self.passed_on = self.signals
        for process in self.running:
            forked.stop(process, signal.SIGTERM if self.signals == 1 else signal.SIGKILL)

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
        process = forked.start(processes.work, record.job, record.path, record.log, self.environments[slot])
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
            record.reason = reason_of(code, record.log)
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
