"""The frontier of a sweep, redrawn in a process of its own as jobs end: one at a time, and only if there is news."""

from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.processes import Drawn, how
from imdb_rlhf.sweep.records import last_line


class Drawing:
    """What draws into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: ForkServerProcess | None = None
        self._answers: Connection | None = None
        self._seen: list[Path] = []

    @property
    def connections(self) -> list[Connection]:
        """Ready when a drawing has ended."""
        return [] if self._answers is None else [self._answers]

    def start(self, runs: Sequence[Path], mirror: tuple[WandbLogger, str] | None = None, *, last: bool = False) -> None:
        """Draw some runs, unless something is being drawn, or (but for the last time) these were drawn already."""
        if self._process is not None or not runs or (list(runs) == self._seen and not last):
            return
        self._seen = list(runs)
        self._answers, theirs = Pipe(duplex=False)
        self._process = processes.start(processes.draw, list(runs), self._folder, mirror, theirs)
        theirs.close()

    def ended(self, timeout: float = 0.0) -> Drawn | None:
        """What was drawn, where a drawing has ended."""
        if self._process is None or self._answers is None or not self._answers.poll(timeout):
            return None
        try:
            drawn: Drawn = self._answers.recv()
        except EOFError:  # the log ends with what it died of
            drawn = Drawn([], [], "")
        self._process.join()
        if not drawn.folders and not drawn.problem:
            code, said = self._process.exitcode, last_line(self._folder / "logs" / "frontier.log")
            drawn = Drawn([], drawn.warnings, said if code == 1 and said else how(code))
        self._answers.close()
        self._process, self._answers = None, None
        return drawn

    def stop(self) -> None:
        """End what is being drawn."""
        if self._process is not None:
            processes.stop(self._process)
            self._process.join()
            self._process, self._answers = None, None
