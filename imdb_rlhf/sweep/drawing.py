"""Redraws a sweep's frontier in a process of its own while jobs end: one drawing at a time, and only of new runs."""

from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.signals import describe_exit
from imdb_rlhf.sweep import forked, processes
from imdb_rlhf.sweep.processes import FrontierResult
from imdb_rlhf.sweep.records import last_line


class Drawing:
    """The process that draws into `folder`, where one runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: ForkServerProcess | None = None
        self._results: Connection | None = None
        self._drawn: list[Path] = []

    @property
    def connections(self) -> list[Connection]:
        """One that is ready to be read when the drawing has ended; none where nothing is being drawn."""
        return [] if self._results is None else [self._results]

    def start(
        self, runs: Sequence[Path], wandb_group: tuple[WandbLogger, str] | None = None, *, last: bool = False
    ) -> None:
        """Draw these runs, unless a drawing is under way or the last one was of the same runs.

        Args:
            runs: their folders.
            wandb_group: W&B's settings and the group, to show the frontier there too.
            last: draw even the same runs again.
        """
        if self._process is not None or not runs or (list(runs) == self._drawn and not last):
            return
        self._drawn = list(runs)
        self._results, sender = Pipe(duplex=False)
        self._process = forked.start(processes.draw, list(runs), self._folder, wandb_group, sender)
        sender.close()

    def ended(self, timeout: float = 0.0) -> FrontierResult | None:
        """The result of a drawing that has ended; None where none has within `timeout` seconds."""
        if self._process is None or self._results is None or not self._results.poll(timeout):
            return None
        try:
            result: FrontierResult = self._results.recv()
        except EOFError:  # it died; its log ends with the reason
            result = FrontierResult([], [], "")
        self._process.join()
        if not result.folders and not result.problem:
            code, line = self._process.exitcode, last_line(self._folder / "logs" / "frontier.log")
            result = FrontierResult([], result.warnings, line if code == 1 and line else describe_exit(code))
        self._results.close()
        self._process, self._results = None, None
        return result

    def stop(self) -> None:
        """End a drawing that is under way."""
        if self._process is not None:
            forked.stop(self._process)
            self._process.join()
            self._process, self._results = None, None
