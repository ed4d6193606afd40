"""A run's console: stages, progress, samples, the result.

Progress is a live bar on a terminal, and a line now and then in a pipe or a log file. Every text passes `_clean`, so
that sampled bytes cannot move the cursor, and a character that the stream's encoding lacks becomes a `?`.
"""

import io
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import IO, Any

import rich.console
from rich import box
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imdb_rlhf.tracking.formats import decimals, duration, number, plural
from imdb_rlhf.tracking.result import figures, title

PLAIN_WIDTH = 100  # columns, without a terminal
FIRST_LINE_AFTER = 5.0  # seconds until the first progress line, without a terminal
LINE_EVERY = 15.0  # seconds between later progress lines
SAMPLES_SHOWN = 6
TEXT_SHOWN = 600  # characters of a prompt or completion
STAGE_WIDTH = 12  # columns; "reward_model" fits

_now = time.monotonic


class Console:
    """Writes to one stream; with `quiet=True` (every rank but the first) only warnings."""

    def __init__(self, file: IO[str] | None = None, quiet: bool = False) -> None:
        """Write to `file`, or to whatever `sys.stdout` is at the time."""
        self.quiet = quiet
        self._out = rich.console.Console(file=file, highlight=False, markup=False, emoji=False)
        self._lines: list[str] = []  # written so far, for a copy that comes later
        self._copies: list[Callable[[str], None]] = []
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        # FORCE_COLOR makes rich take any stream for a terminal: it may have colour, but no moving cursor.
        self._live = self._out.is_interactive and (file or sys.stdout).isatty()

    def stage(self, name: str, *, reused: bool, seconds: float, path: str, note: str = "") -> None:
        """Show that a stage's artifact at `path` was made, or reused; `seconds` is the time that making it took."""
        took = duration(seconds)
        text = f"reused from {path} (made in {took})" if reused else f"made in {took:<12} {path}"
        self._stage_line(name, f"{text}  {note}" if note else text)

    def note(self, text: str) -> None:
        """Write one line."""
        if not self.quiet:
            self._line(self._clean(text))

    def warn(self, text: str) -> None:
        """Write one line that stands out, even if the console is quiet."""
        self._line(self._clean(f"warning: {text}", "yellow"))

    @contextmanager
    def progress(self, stage: str, total: int, unit: str = "step", start: int = 0) -> Iterator["Progress"]:
        """Show a stage's progress, and one line when it ends, by an exception too.

        Args:
            stage: its name.
            total: number of units in all.
            unit: name of the unit counted, in the singular.
            start: the position from which a resumed stage continues.
        """
        bar = Progress(stage, total, unit, start, on_advance=self._plain_progress)
        live = Live(console=self._out, get_renderable=lambda: self._bar(bar), refresh_per_second=4, transient=True)
        try:
            with live if self._live and not self.quiet else nullcontext():
                yield bar
        except BaseException:
            self._stage_line(stage, f"stopped at {bar.ending()}")
            raise
        bar.position = total
        self._stage_line(stage, bar.ending())

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show completions of reference and policy for at most six prompts.

        Args:
            rows: dicts with `prompt`, `reference`, `policy` (texts) and `reference_reward`, `policy_reward`.
        """
        if self.quiet or not rows:
            return
        table = Table(box=box.HORIZONTALS, expand=True, pad_edge=False, show_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, overflow="fold")
        shown = rows[:SAMPLES_SHOWN]
        spec = decimals([row[f"{model}_reward"] for row in shown for model in ("reference", "policy")], 2)
        for row in shown:
            table.add_row(self._clean("prompt", "bold"), "", self._clean(_clip(row["prompt"]), "bold"))
            for model, style in (("reference", ""), ("policy", "green")):
                reward = number(row[f"{model}_reward"], spec)
                table.add_row(self._clean(model, style), reward, self._clean(_clip(row[model]), style))
            table.add_section()
        self._print()
        self._print(table)

    def reliability(self, bins: Sequence[Mapping[str, Any]]) -> None:
        """Show a reward model's calibration: predicted and observed shares of pairs that the first one wins.

        Args:
            bins: dicts with `lower`, `upper`, `count`, `predicted`, `observed`; the last two are None in an empty bin.
        """
        if self.quiet:
            return
        table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
        for name in ("p(first wins)", "pairs", "predicted", "observed"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in bins:
            shares = [number(row[name], ".3f") for name in ("predicted", "observed")]
            table.add_row(self._clean(f"{row['lower']:.1f} to {row['upper']:.1f}"), str(row["count"]), *shares)
        self._print()
        self._print(table)

    def result(self, summary: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """Show a run's result, and where its files are.

        Args:
            summary: the keys of `summary.json`; a key that does not apply to the run may be absent or None.
            places: name -> path or command, in the order to show.
        """
        if self.quiet:
            return
        self._print()
        self._line(self._clean(title(summary), "bold"))
        for name, value in figures(summary):
            self._line(self._clean(f"  {name:<{STAGE_WIDTH}} {value}"))
        self._print()
        for name, place in places.items():
            self._line(self._clean(f"  {name:<{STAGE_WIDTH}} {place}"))

    def _stage_line(self, name: str, text: str) -> None:
        if not self.quiet:
            self._line(self._clean(f"{name:<{STAGE_WIDTH}} ", "bold") + self._clean(text))

    def copy_to(self, take: Callable[[str], None]) -> None:
        """Give every line to a function too, as plain text: those written so far at once, the others as they come."""
        for line in self._lines:
            take(line)
        self._copies.append(take)

    def _line(self, text: Text) -> None:
        """Write a line; a terminal gets it broken between words, and only it breaks a longer word, such as a path."""
        for line in _between_words(text, self._out.width) if self._live else [text]:
            self._out.print(line, soft_wrap=True)
        self._keep(text, soft_wrap=True)

    def _print(self, *shown: Any, soft_wrap: bool = False) -> None:
        self._out.print(*shown, soft_wrap=soft_wrap)
        self._keep(*shown, soft_wrap=soft_wrap)

    def _keep(self, *shown: Any, soft_wrap: bool) -> None:
        plain = rich.console.Console(file=io.StringIO(), width=PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
        plain.print(*shown, soft_wrap=soft_wrap)
        for line in plain.file.getvalue().splitlines():  # type: ignore[attr-defined]
            self._lines.append(line)
            for take in self._copies:
                take(line)

    def _plain_progress(self, bar: "Progress") -> None:
        if not self._live and bar.line_is_due():
            self._stage_line(bar.stage, bar.line())

    def _bar(self, bar: "Progress") -> rich.console.RenderableType:
        grid = Table.grid(padding=(0, 2))
        width = 16 if self._out.width < 100 else 32
        parts = [part for part in (bar.count(), bar.rate(), bar.left()) if part]
        if STAGE_WIDTH + width + sum(len(part) + 2 for part in parts) + 4 > self._out.width:
            parts = [bar.count(), *parts[2:]]  # a narrow terminal has no room for the rate
        grid.add_row(
            self._clean(f"{bar.stage:<{STAGE_WIDTH}}", "bold"),
            ProgressBar(total=max(bar.total, 1), completed=bar.position, width=width),
            *map(self._on_one_line, parts),
        )
        values = self._on_one_line(f"{'':<{STAGE_WIDTH}}  {bar.latest()}", "cyan")
        return rich.console.Group(grid, values)

    def _on_one_line(self, text: str, style: str = "") -> Text:
        """A text that is cropped where it would wrap."""
        line = self._clean(text, style)
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _clean(self, text: str, style: str = "") -> Text:
        """Return the text without markup, control characters, and characters that the stream cannot encode."""
        encoding = self._out.encoding
        shown = "".join(c if c.isprintable() else {"\n": "⏎", "\t": " ", "\r": ""}.get(c, "?") for c in text)
        try:
            shown.encode(encoding)
        except UnicodeEncodeError:
            shown = shown.replace("⏎", "\\n").encode(encoding, "replace").decode(encoding)
        return Text(shown, style)


class Progress:
    """A stage's position, created and shown by `Console.progress`."""

    def __init__(self, stage: str, total: int, unit: str, start: int, on_advance: Any) -> None:
        """Begin at `start` of `total`; `on_advance(self)` is called after each move."""
        self.stage, self.total, self.unit = stage, total, unit
        self.position = self._start = start
        self._values: dict[str, float] = {}
        self._on_advance = on_advance
        self._began = self._moved = _now()
        self._next_line = self._began + FIRST_LINE_AFTER

    def advance(self, n: int = 1, **values: float) -> None:
        """Move on by `n` units; a value (loss, reward, kl ...) is shown until a new one replaces it.

        Several processes share units out in pieces of unlike size, and one counts for all: it may be ahead at the end.
        """
        self.position, self._moved = min(self.position + n, self.total), _now()
        self._values.update(values)
        self._on_advance(self)

    def line_is_due(self) -> bool:
        """Return whether a plain progress line is due; if so, set the time of the next one."""
        due = self.position < self.total and _now() >= self._next_line
        if due:
            self._next_line = _now() + LINE_EVERY
        return due

    def count(self) -> str:
        """Return the position, such as `120/500 steps`."""
        return f"{self.position}/{self.total} {self.unit if self.total == 1 else plural(self.unit)}"

    def rate(self) -> str:
        """Return the mean speed since this process began the stage, or "" before the first unit."""
        done, seconds = self.position - self._start, self._moved - self._began
        if done <= 0 or seconds <= 0:
            return ""
        if done >= seconds:
            return f"{done / seconds:.{0 if done >= 100 * seconds else 1}f} {plural(self.unit)}/s"
        return f"{seconds / done:.1f} s/{self.unit}"

    def left(self) -> str:
        """Return the time left at that speed, or "" before the first unit."""
        done, seconds = self.position - self._start, self._moved - self._began
        if done <= 0:
            return ""
        left = (self.total - self.position) * seconds / done - (_now() - self._moved)
        return f"{duration(max(left, 0.0))} left"

    def latest(self) -> str:
        """Return the latest values."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self._values.items())

    def line(self) -> str:
        """Return the state as one line."""
        return "   ".join(part for part in (self.count(), self.rate(), self.left(), self.latest()) if part)

    def ending(self) -> str:
        """Return the stage's last line: units done, time, speed and values."""
        resumed = f" (resumed at {self._start})" if self._start else ""
        took = f"{self.count()} in {duration(_now() - self._began)}{resumed}"
        return "   ".join(part for part in (took, self.rate(), self.latest()) if part)


def _between_words(text: Text, width: int) -> Iterator[Text]:
    """Yield a text in lines of at most so many columns, or of one longer word."""
    at = 0
    for line in textwrap.wrap(text.plain, width, break_long_words=False, break_on_hyphens=False) or [""]:
        at = text.plain.index(line, at)
        yield text[at : at + len(line)]
        at += len(line)


def _clip(text: str) -> str:
    text = text.strip(" ")
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + " ..."
