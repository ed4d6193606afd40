"""A sweep's console: the jobs that run, the number left, and each job's result.

A terminal gets a live display under a line per finished job; a pipe gets a line when a job starts or ends, and one per
minute.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

import rich.console
from rich import box
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from imdb_rlhf.tracking.console import Console
from imdb_rlhf.tracking.formats import duration, number

LINE_EVERY = 60.0  # seconds between lines about the whole sweep, without a terminal
STYLES = {"done": "green", "failed": "bold red", "stopped": "yellow", "waiting": "dim"}

_now = time.monotonic


@dataclass(frozen=True)
class Running:
    """A running job: its name, the seconds since its start, and the last line that it wrote; or the last drawing."""

    label: str
    seconds: float
    line: str
    is_job: bool = True


@dataclass(frozen=True)
class State:
    """A sweep's state: counts of jobs, the running ones, and an estimate of the seconds left (None: not known)."""

    jobs: int
    done: int
    failed: int
    waiting: int
    running: Sequence[Running]
    left: float | None
    stopping: bool = False

    def line(self) -> str:
        """Return the numbers as one line."""
        parts = [f"{self.done} of {self.jobs} done"]
        parts += [f"{self.failed} failed"] if self.failed else []
        jobs = [running for running in self.running if running.is_job]
        if self.running and not jobs:
            return "   ".join([*parts, "drawing the frontier"])
        parts += [f"{len(jobs)} running", f"{self.waiting} left"]
        if self.stopping:
            parts.append("stopping after a checkpoint")
        elif self.left is not None:
            parts.append(f"about {_roughly(self.left)} to go")
        return "   ".join(parts)


class SweepConsole(Console):
    """Writes a sweep's progress and results to one stream."""

    def __init__(self, file: IO[str] | None = None) -> None:
        """Write to `file`, or to whatever `sys.stdout` is at the time."""
        super().__init__(file)
        self._state: State | None = None
        self._next_line = 0.0

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._live

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show the state from `update` while the context is open."""
        self._next_line = _now() + LINE_EVERY
        live = Live(console=self._out, get_renderable=self._view, refresh_per_second=4, transient=True)
        with live if self._live else nullcontext():
            yield

    def update(self, state: State) -> None:
        """Take the sweep's present state."""
        self._state = state
        if not self._live and _now() >= self._next_line:
            self._next_line = _now() + LINE_EVERY
            self.note(state.line())
            for job in state.running:
                self.note(f"  {job.label}: {job.line}")

    def job(self, number: str, verb: str, label: str, note: str = "") -> None:
        """Write one line about a job: its number (`3/22`), its new status (`done`, ...), its name, and a note."""
        line = self._clean(f"{number:>7}  ", "dim") + self._clean(f"{verb:<8}", STYLES.get(verb, ""))
        line += self._clean(f"{label}   {note}" if note else label)
        self._line(line)

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the results of all jobs.

        Args:
            rows: dicts with `method`, `knob`, `seed`, `reward`, `kl`, `kl_bound` (whether the KL is an upper bound),
                `seconds` and `state`; a missing value is None.
        """
        table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
        for name, justify in (("method", "left"), ("knob", "left"), ("seed", "right"), ("reward", "right")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name in ("KL (nats)", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for row in rows:
            cells = [
                row["method"],
                row["knob"] or "",
                str(row["seed"]),
                _reward(row),
                _kl(row),
                "" if row["seconds"] is None else duration(row["seconds"]),
            ]
            table.add_row(*map(self._clean, cells), self._clean(row["state"], STYLES.get(row["state"], "")))
        self._out.print()
        self._out.print(table)

    def failures(self, jobs: Sequence[tuple[str, str, str]]) -> None:
        """List every failed job: its name, the reason, and its log."""
        self._out.print()
        self._line(self._clean(f"{len(jobs)} failed:", "bold red"))
        for label, reason, log in jobs:
            self._line(self._clean(f"  {label}: {reason}"))
            self._line(self._clean(f"    {log}", "dim"))

    def places(self, places: Mapping[str, str]) -> None:
        """Show where the sweep's files are: name -> path, in the order to show."""
        self._out.print()
        width = max(map(len, places), default=0)
        for name, place in places.items():
            self._line(self._clean(f"  {name:<{width}}  {place}"))

    def _view(self) -> rich.console.RenderableType:
        state = self._state
        if state is None:
            return ""
        head = Table.grid(padding=(0, 2))
        ended = state.done + state.failed
        width = 8 if self._out.width < 100 else 32
        bar = ProgressBar(total=max(state.jobs, 1), completed=ended, width=width)
        head.add_row(bar, self._on_one_line(state.line()))
        jobs = Table.grid(padding=(0, 2), expand=True)
        jobs.add_column(no_wrap=True, overflow="ellipsis", max_width=self._out.width // 2)
        jobs.add_column(no_wrap=True, justify="right")
        jobs.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for job in state.running:
            jobs.add_row(self._clean(job.label, "bold"), duration(job.seconds), self._clean(job.line, "cyan"))
        return rich.console.Group("", head, jobs)


def outcome(row: Mapping[str, Any]) -> str:
    """A finished job's result as one line; `row` as in `SweepConsole.table`."""
    parts = [f"reward {_reward(row)}" if _reward(row) else "", f"KL {_kl(row)}" if _kl(row) else ""]
    parts.append("" if row["seconds"] is None else f"in {duration(row['seconds'])}")
    return "   ".join(part for part in parts if part)


def _reward(row: Mapping[str, Any]) -> str:
    return "" if row["reward"] is None else number(row["reward"], ".3f")


def _kl(row: Mapping[str, Any]) -> str:
    if row["kl"] is None:
        return ""
    return ("<= " if row["kl_bound"] else "") + number(row["kl"], ".2f")


def _roughly(seconds: float) -> str:
    """The time to go, rounded to the precision of such an estimate."""
    if seconds < 90:
        return f"{max(round(seconds / 10), 1) * 10} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else duration(round(seconds / 60) * 60)
