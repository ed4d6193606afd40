"""What a person reads while a run goes on and when it ends: stages, progress, samples, the result.

On a terminal progress is a live bar; in a pipe or a log file it is a line now and then. Every text passes `_clean`:
sampled bytes cannot move the cursor, and a stream whose encoding knows no Unicode gets ASCII.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import IO, Any

import rich.console
from rich import box
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100  # columns, where there is no terminal to ask
FIRST_LINE_AFTER = 5.0  # seconds until the first progress line where there is no terminal
LINE_EVERY = 15.0  # seconds between the later ones
SAMPLES_SHOWN = 6
TEXT_SHOWN = 600  # characters of a prompt or completion
STAGE_WIDTH = 12  # columns; "reward_model" fits

_now = time.monotonic


class Console:
    """Writes to one stream; `quiet=True` (every rank but the first) leaves only warnings."""

    def __init__(self, file: IO[str] | None = None, quiet: bool = False) -> None:
        """Write to `file`, or to whatever `sys.stdout` is at the time."""
        self.quiet = quiet
        self._out = rich.console.Console(file=file, highlight=False, markup=False, emoji=False)
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        # FORCE_COLOR makes rich see a terminal in any stream: colour then, but no moving cursor.
        self._live = self._out.is_interactive and (file or sys.stdout).isatty()

    def stage(self, name: str, *, reused: bool, seconds: float, path: str, note: str = "") -> None:
        """Tell that a stage's artifact lies at `path`: just made, or found there; `seconds` is what making it took."""
        took = duration(seconds)
        what = f"reused from {path} (made in {took})" if reused else f"made in {took:<12} {path}"
        self._stage_line(name, f"{what}  {note}" if note else what)

    def note(self, text: str) -> None:
        """Write one line."""
        if not self.quiet:
            self._line(self._clean(text))

    def warn(self, text: str) -> None:
        """Write one line that stands out, also when quiet."""
        self._line(self._clean(f"warning: {text}", "yellow"))

    @contextmanager
    def progress(self, stage: str, total: int, unit: str = "step", start: int = 0) -> Iterator["Progress"]:
        """Show how far a stage is, and one line when it ends, also by an exception.

        Args:
            stage: its name.
            total: where the position ends, in units.
            unit: what is counted, in the singular.
            start: the position at which a resumed stage begins.
        """
        bar = Progress(stage, total, unit, start, on_advance=self._plain_progress)
        live = Live(console=self._out, get_renderable=lambda: self._bar(bar), refresh_per_second=4, transient=True)
        try:
            with live if self._live and not self.quiet else nullcontext():
                yield bar
        except BaseException:
            self._stage_line(stage, f"stopped at {bar.ending()}")
            raise
        self._stage_line(stage, bar.ending())

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show completions before and after training, six at most.

        Args:
            rows: dicts with `prompt`, `reference`, `policy` (texts) and `reference_reward`, `policy_reward`.
        """
        if self.quiet or not rows:
            return
        table = Table(box=box.HORIZONTALS, expand=True, pad_edge=False, show_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, overflow="fold")
        for row in rows[:SAMPLES_SHOWN]:
            table.add_row(self._clean("prompt", "bold"), "", self._clean(_clip(row["prompt"]), "bold"))
            for who, style in (("reference", ""), ("policy", "green")):
                reward = number(row[f"{who}_reward"], ".2f")
                table.add_row(self._clean(who, style), reward, self._clean(_clip(row[who]), style))
            table.add_section()
        self._out.print()
        self._out.print(table)

    def reliability(self, bins: Sequence[Mapping[str, Any]]) -> None:
        """Show how often pairs came out as a reward model predicted.

        Args:
            bins: dicts with `lower`, `upper`, `count`, `predicted`, `observed`; the last two None in an empty one.
        """
        if self.quiet:
            return
        table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
        for name in ("p(first wins)", "pairs", "predicted", "observed"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in bins:
            shares = [number(row[name], ".3f") for name in ("predicted", "observed")]
            table.add_row(self._clean(f"{row['lower']:.1f} to {row['upper']:.1f}"), str(row["count"]), *shares)
        self._out.print()
        self._out.print(table)

    def result(self, summary: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """Show what a run found, and where everything lies.

        Args:
            summary: the keys of `summary.json`; a key that does not apply to the run may be absent or None.
            places: name -> path or command, in the order to show.
        """
        if self.quiet:
            return
        self._out.print()
        self._line(self._clean(_title(summary), "bold"))
        for name, value in _figures(summary):
            self._line(self._clean(f"  {name:<{STAGE_WIDTH}} {value}"))
        self._out.print()
        for name, place in places.items():
            self._line(self._clean(f"  {name:<{STAGE_WIDTH}} {place}"))

    def _stage_line(self, name: str, what: str) -> None:
        if not self.quiet:
            self._line(self._clean(f"{name:<{STAGE_WIDTH}} ", "bold") + self._clean(what))

    def _line(self, text: Text) -> None:
        self._out.print(text, soft_wrap=True)  # a path stays one word: the terminal may break it, we do not

    def _plain_progress(self, bar: "Progress") -> None:
        if not self._live and bar.line_is_due():
            self._stage_line(bar.stage, bar.line())

    def _bar(self, bar: "Progress") -> rich.console.RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            self._clean(f"{bar.stage:<{STAGE_WIDTH}}", "bold"),
            ProgressBar(total=max(bar.total, 1), completed=bar.position, width=16 if self._out.width < 100 else 32),
            *(self._clean(part) for part in (bar.count(), bar.rate(), bar.left()) if part),
        )
        values = self._clean(f"{'':<{STAGE_WIDTH}}  {bar.latest()}", "cyan")
        values.no_wrap, values.overflow = True, "crop"
        return rich.console.Group(grid, values)

    def _clean(self, text: str, style: str = "") -> Text:
        """Return the text literally: no markup, no control character, nothing that the stream cannot encode."""
        encoding = self._out.encoding
        shown = "".join(c if c.isprintable() else {"\n": "⏎", "\t": " ", "\r": ""}.get(c, "?") for c in text)
        try:
            shown.encode(encoding)
        except UnicodeEncodeError:
            shown = shown.replace("⏎", "\\n").encode(encoding, "replace").decode(encoding)
        return Text(shown, style)


class Progress:
    """A stage's position; `Console.progress` gives one and shows it."""

    def __init__(self, stage: str, total: int, unit: str, start: int, on_advance: Any) -> None:
        """Begin at `start` of `total`; `on_advance` is told of each move."""
        self.stage, self.total, self.unit = stage, total, unit
        self.position = self._start = start
        self._values: dict[str, float] = {}
        self._on_advance = on_advance
        self._began = _now()
        self._next_line = self._began + FIRST_LINE_AFTER

    def advance(self, n: int = 1, **values: float) -> None:
        """Move on by `n` units; a value (loss, reward, kl ...) is shown until it is replaced."""
        self.position += n
        self._values.update(values)
        self._on_advance(self)

    def line_is_due(self) -> bool:
        """Return whether it is time for a line where there is no terminal, and if so start waiting for the next."""
        due = self.position < self.total and _now() >= self._next_line
        if due:
            self._next_line = _now() + LINE_EVERY
        return due

    def count(self) -> str:
        """Return the position, such as `120/500 steps`."""
        return f"{self.position}/{self.total} {_plural(self.unit)}"

    def rate(self) -> str:
        """Return the mean speed since this process began the stage, or nothing before the first unit."""
        done, seconds = self.position - self._start, _now() - self._began
        if done <= 0 or seconds <= 0:
            return ""
        if done >= seconds:
            return f"{done / seconds:.{0 if done >= 100 * seconds else 1}f} {_plural(self.unit)}/s"
        return f"{seconds / done:.1f} s/{self.unit}"

    def left(self) -> str:
        """Return the time left at that speed."""
        done, seconds = self.position - self._start, _now() - self._began
        return f"{duration((self.total - self.position) * seconds / done)} left" if done > 0 else ""

    def latest(self) -> str:
        """Return the latest values."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self._values.items())

    def line(self) -> str:
        """Return the state as one line."""
        return "   ".join(part for part in (self.count(), self.rate(), self.left(), self.latest()) if part)

    def ending(self) -> str:
        """Return the line for the end: how much, in what time."""
        resumed = f" (resumed at {self._start})" if self._start else ""
        took = f"{self.count()} in {duration(_now() - self._began)}{resumed}"
        return "   ".join(part for part in (took, self.rate(), self.latest()) if part)


def duration(seconds: float) -> str:
    """Return `31.2 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _title(summary: Mapping[str, Any]) -> str:
    knob, variant = summary.get("knob"), summary.get("variant")
    name = str(summary["algo"]) + (f" ({variant})" if variant else "")
    parts = [name + (f" {knob['name']}={knob['value']}" if knob else "")]
    parts += [f"{name} {summary[name]}" for name in ("seed", "step") if summary.get(name) is not None]
    if summary.get("prompts") is not None:
        each = summary.get("samples_per_prompt")
        parts.append(f"{summary['prompts']} prompts" + (f" x {each} samples" if each is not None else ""))
    return ", ".join(parts)


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reference = summary.get("reference") or {}
    if summary.get("reward") is not None:
        before = _with_interval(reference.get("reward"), reference.get("reward_ci"), ".3f")
        reward = _with_interval(summary["reward"], summary.get("reward_ci"), ".3f")
        yield "reward", reward + (f"   reference {before}" if reference.get("reward") is not None else "")
    if summary.get("kl") is not None:
        k1 = f"   k1 {number(summary['kl_k1'], '.3f')}" if summary.get("kl_k1") is not None else ""
        bound = f"at most {number(summary['kl'], '.3f')}" if summary.get("kl_is") == "upper bound" else None
        yield "KL (nats)", bound or _with_interval(summary["kl"], summary.get("kl_ci"), ".3f") + k1
    for key, name in (("win_rate", "win rate"), ("win_rate_base", "against base")):
        if summary.get(key) is not None:
            yield name, _with_interval(summary[key], summary.get(f"{key}_ci"), ".3f")
    if summary.get("distinct_2") is not None:
        distinct = reference.get("distinct_2")
        known = f"   reference {number(distinct, '.3f')}" if distinct is not None else ""
        yield "distinct-2", number(summary["distinct_2"], ".3f") + known
    yield from _account(summary)
    yield from _control(summary.get("ppo") or {})
    if summary.get("seconds") is not None:
        yield "time", duration(summary["seconds"])


def _account(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of the reward model, of its own run or of one that used it."""
    model = summary if summary.get("accuracy") is not None else summary.get("reward_model") or {}
    if model.get("accuracy") is not None:
        pairs = (
            f" on {model['test_pairs']} pairs of test prompts" if model.get("test_pairs") is not None else " of pairs"
        )
        name = "accuracy" if model is summary else "reward model"
        found = _with_interval(model["accuracy"], model.get("accuracy_ci"), ".3f")
        yield name, found + pairs
    if model is summary and model.get("pearson") is not None:
        ranks = f", of ranks {number(model.get('spearman'), '.3f')}"
        yield "correlation", f"{number(model['pearson'], '.3f')} with the true log-odds{ranks}"
    if model is summary and model.get("calibration_error") is not None:
        yield "calibration", f"{number(model['calibration_error'], '.3f')} mean gap of predicted and observed"


def _control(ppo: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether PPO's controller did what it was asked."""
    if ppo.get("target_kl") is None:
        return
    reached = "within 25 %" if ppo["on_target"] else "missed by more than 25 %"
    bound = (
        ", coefficient at its floor" if ppo["at_floor"] else ", coefficient at its ceiling" if ppo["at_ceiling"] else ""
    )
    yield (
        "target KL",
        f"{ppo['target_kl']:g}, last fifth of training {ppo['kl_last_fifth']:.3f}: {reached}{bound}; "
        f"coefficient {ppo['first_kl_coefficient']:.3g} to {ppo['kl_coefficient']:.3g}",
    )


def _with_interval(value: float | None, interval: Sequence[float] | None, spec: str) -> str:
    return number(value, spec) + (f" [{interval[0]:{spec}}, {interval[1]:{spec}}]" if interval else "")


def number(value: float | None, spec: str) -> str:
    """Return a value in that format, a dash for None, and no minus before a zero."""
    text = "-" if value is None else format(value, spec)
    return text.removeprefix("-") if value is not None and float(text) == 0 else text  # no -0.000


def _clip(text: str) -> str:
    text = text.strip(" ")
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + " ..."


def _plural(unit: str) -> str:
    return unit + ("es" if unit.endswith(("s", "x", "ch", "sh")) else "s")
