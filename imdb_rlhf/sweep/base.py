"""What every sweep does around its jobs, in whatever way they are run: begin, list, draw the frontier, end."""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.frontier import files
from imdb_rlhf.signals import stopping
from imdb_rlhf.sweep.drawing import Drawing
from imdb_rlhf.sweep.processes import FrontierResult
from imdb_rlhf.sweep.records import Record, save
from imdb_rlhf.tracking import wandb_files
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole

TICK = 0.25  # seconds between two updates of the display


class Sweep(ABC):
    """The jobs of one sweep; a `part` of one has no beginning, frontier and end of its own."""

    def __init__(
        self, folder: Path, all_records: list[Record], console: SweepConsole, command: str, part: bool = False
    ) -> None:
        self.folder, self.records = folder, all_records
        self.console, self.command, self.part = console, command, part
        self.signals = 0
        self.drawing = Drawing(folder)
        self.drawn: list[Path] = []  # the folders of the last frontier, one per world

    def run(self) -> int:
        """Run the jobs that are waiting; returns the exit code."""
        self._begin()
        result = None
        with self._signals():
            try:
                with self.console.watching():
                    self._work()
                    if not self.signals:
                        result = self._draw_last()
            finally:
                self._abandon()
                self.drawing.stop()
        return self._end(result)

    @abstractmethod
    def _work(self) -> None:
        """Run the jobs that are waiting, until all have ended or a signal came."""

    @abstractmethod
    def _abandon(self) -> None:
        """End at once what is still running in this process's care."""

    def _in(self, state: str) -> list[Record]:
        return [record for record in self.records if record.state == state]

    def _begin(self) -> None:
        if self.part:
            self._save()
            return
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

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._caught) for number in stopping()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    # --- the frontier ----------------------------------------------------------------------------------------------

    def _drawable(self) -> bool:
        """Whether any run that is done has a policy."""
        return not self.part and any(record.job.run.has_policy for record in self._in("done"))

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
            drawing = Running("the frontier", time.monotonic() - began, "is being drawn", is_job=False)
            done, failed = len(self._in("done")), len(self._in("failed"))
            self.console.update(State(len(self.records), done, failed, 0, [drawing], None))
        return result

    def _end(self, result: FrontierResult | None) -> int:
        """Show the results; returns the exit code."""
        self.drawn = [] if result is None or result.problem is not None else result.folders
        failed = [(record.label, record.reason or "", str(record.log)) for record in self._in("failed")]
        if self.part:
            return 75 if self.signals or self._in("stopped") else 1 if failed else 0
        if not self.signals and not self._drawable():
            self.console.note("no run that is done has a policy: there is no frontier to draw")
        rows = [record.row() for record in self.records]
        show_results(self.console, self.folder, rows, failed, result, self._wandb_place())
        if self.signals or (self._in("stopped") and not failed):
            self.console.note("stopped: run the same command to go on")
            return 75
        return 1 if failed or (result is not None and result.problem is not None) else 0


def show_results(
    console: SweepConsole,
    folder: Path,
    rows: Sequence[dict[str, object]],
    failed: Sequence[tuple[str, str, str]],
    result: FrontierResult | None,
    more: Mapping[str, str],
) -> None:
    """Show a sweep's table, the places of its files, and what failed.

    Args:
        console: to show them on.
        folder: of the sweep.
        rows: of the table of jobs.
        failed: label, reason and log of each job that failed.
        result: of the last drawing of the frontier, where there was one.
        more: other places, name -> path or command.
    """
    failed = list(failed)
    if result is not None and result.problem is not None:
        failed.append(("the frontier", result.problem, str(folder / "logs" / "frontier.log")))
    console.table(rows)
    for warning in result.warnings if result is not None else []:
        console.warn(warning)
    places = {"sweep": str(folder)}
    for place in result.folders if result is not None else []:
        world = "" if place == folder else f" {place.name}"
        places |= {f"report{world}": str(place / files.REPORT), f"figure{world}": str(place / files.SVG)}
    console.places({**places, **more})
    if failed:
        console.failures(failed)
