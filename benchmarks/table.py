"""Records to rows: medians, ratios, shares of the peak, what agrees; and the rows as one table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.harness import Outcome

# How far first losses may be apart: a sequence's log-prob moves by some tenths of a nat in bf16, and a loss is a mean
# over 64 pairs of a tenth of such differences; float32 leaves far less.
LOSS_TOLERANCE = {"bf16": 5e-3, "float32": 1e-4}
# Standard errors by which two samplers' mean log-probs may be apart.
SAMPLING_TOLERANCE = 4.0
# Columns of a terminal from which on all of a table's are shown.
WIDE = 160
COLUMNS = ("", "shape", "program", "median", "min - max", "ours is", "memory", "of theirs", "of peak", "note")


@dataclass(frozen=True)
class Row:
    """A program's line of the table.

    Attributes:
        measurement, shape, program: what was measured.
        unit: of the rates, a second.
        rate: median over all repetitions of all rounds; None where the program failed.
        low, high: the slowest and the fastest repetition.
        repetitions: how many.
        seconds: median of a repetition.
        peak_bytes: the largest memory of any round's process.
        against: the program that the ratios are to.
        ratio: our rate over theirs.
        memory_ratio: our memory over theirs.
        share: of the matrix-product peak of the same precision.
        agrees: whether what has to be equal is; None where nothing has to be.
        note: what else there is to say, or why it failed.
    """

    measurement: str
    shape: str
    program: str
    unit: str = ""
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    seconds: float | None = None
    peak_bytes: int | None = None
    against: str | None = None
    ratio: float | None = None
    memory_ratio: float | None = None
    share: float | None = None
    agrees: bool | None = None
    note: str = ""


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The table's rows, a program each, in the order of the outcomes."""
    peaks = {o.records[0].precision: _rate(o) for o in outcomes if o.case.measurement == "peak" and o.records}
    return [_row(outcome, _beside(outcome, outcomes), peaks) for outcome in outcomes]


def _beside(outcome: Outcome, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [other for other in outcomes if other.case is outcome.case]


def _rates(outcome: Outcome) -> list[float]:
    return [record.work / seconds for record in outcome.records for seconds in record.seconds]


def _rate(outcome: Outcome) -> float:
    return statistics.median(_rates(outcome))


def _row(outcome: Outcome, beside: Sequence[Outcome], peaks: dict[str, float]) -> Row:
    case, program = outcome.case, outcome.program
    shape = "" if case.measurement == "peak" else case.shape.name
    if outcome.failure is not None or not outcome.records:
        return Row(case.measurement, shape, program.label, note=f"FAILED: {outcome.failure or 'never run'}")
    rates, records = _rates(outcome), outcome.records
    seconds = statistics.median(s for record in records for s in record.seconds)
    memory = max(record.peak_bytes for record in records)
    ratio = memory_ratio = agrees = None
    notes = [program.note] if program.note else []
    other = next((o for o in beside if o.program.label == program.against), None)
    if other is not None and other.records and other.failure is None:
        ratio = statistics.median(rates) / _rate(other)
        memory_ratio = memory / max(record.peak_bytes for record in other.records)
        agrees, said = _agreement(program.check, outcome, other)
        notes += [said] if said else []
    facts = records[0].facts
    if "distinct" in facts:
        notes.append(f"{facts['distinct']} distinct completions")
    return Row(
        measurement=case.measurement,
        shape=shape,
        program=program.label,
        unit=records[0].unit,
        rate=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        repetitions=len(rates),
        seconds=seconds,
        peak_bytes=memory,
        against=program.against if ratio is not None else None,
        ratio=ratio,
        memory_ratio=memory_ratio,
        share=_share(outcome, beside, seconds, peaks),
        agrees=agrees,
        note="; ".join(notes),
    )


def _share(outcome: Outcome, beside: Sequence[Outcome], seconds: float, peaks: dict[str, float]) -> float | None:
    """Model operations a second over the peak; a peer's are those of the same work done by ours."""
    peak, work = peaks.get(outcome.records[0].precision), outcome.program.work
    if peak is None or work is None:
        return None
    known = [outcome, *beside]
    facts: Any = next((o.records[0].facts for o in known if o.records and _tells_work(o.records[0].facts)), None)
    return None if facts is None else work(outcome.case.shape, facts) / seconds / peak


def _tells_work(facts: dict[str, Any]) -> bool:
    return "rows" in facts or "queries" in facts


def _agreement(check: str | None, ours: Outcome, theirs: Outcome) -> tuple[bool | None, str]:
    """Whether both computed the same, and what to say of it."""
    mine, other = ours.records[0], theirs.records[0]
    if check is None or check not in mine.facts or check not in other.facts:
        return None, ""
    if check == "loss":
        values = [float(record.facts["loss"]) for record in (mine, other)]
        agrees = abs(values[0] - values[1]) <= LOSS_TOLERANCE[mine.precision]
        said = f"first loss {values[0]:.4f}, theirs {values[1]:.4f}"
    else:
        (mean, error), (their_mean, their_error) = mine.facts["logprob"], other.facts["logprob"]
        agrees = abs(mean - their_mean) <= SAMPLING_TOLERANCE * (error**2 + their_error**2) ** 0.5
        said = f"mean log-prob of samples {mean:.1f} +- {error:.1f}, theirs {their_mean:.1f} +- {their_error:.1f}"
    return agrees, said if agrees else f"DISAGREES: {said}"


# --- as text ---------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    """A row's texts under COLUMNS."""
    return [
        row.measurement,
        row.shape,
        row.program,
        "" if row.rate is None else f"{number(row.rate)} {row.unit}/s",
        "" if row.low is None or row.high is None else f"{number(row.low)} - {number(row.high)}",
        "" if row.ratio is None else f"{row.ratio:.1f} x {row.against}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",
        "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
        "" if row.share is None else f"{100 * row.share:.1f} %",
        row.note,
    ]


def number(value: float) -> str:
    """Three digits that count, with a word for large numbers."""
    for size, word in ((1e12, " T"), (1e9, " G")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def markdown(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *(cells(row) for row in found)]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in lines) + "\n"


def terminal(found: Sequence[Row], width: int) -> Table:
    """The rows as a table for a terminal of so many columns; a narrow one is shown less, the files have it all."""
    left_out = {"min - max", "note"} if width < WIDE else set()
    shown = [place for place, name in enumerate(COLUMNS) if name not in left_out]
    table = Table(pad_edge=False)
    for place in shown:
        table.add_column(COLUMNS[place], no_wrap=COLUMNS[place] not in ("program", "ours is", "note"))
    last = None
    for row in found:
        if last is not None and (row.measurement, row.shape) != last:
            table.add_section()
        last = (row.measurement, row.shape)
        texts = cells(row)
        if row.rate is None and left_out:
            texts[COLUMNS.index("median")] = "FAILED"
        style = "red" if row.rate is None or row.agrees is False else None
        table.add_row(*(texts[place] for place in shown), style=style)
    return table
