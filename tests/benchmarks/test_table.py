"""Medians, ratios, shares and failures of records made by hand."""

from typing import Any

import pytest

from benchmarks.harness import Outcome
from benchmarks.plan import Case, Program
from benchmarks.programs.record import Record
from benchmarks.table import COLUMNS, Row, cells, markdown, number, rows
from benchmarks.workload import SHAPES


def record(seconds: list[float], work: float = 64.0, gigabytes: float = 1.0, **facts: Any) -> Record:
    return Record(seconds, work, "pairs", int(gigabytes * 1e9), "bf16", 2, facts)


OURS = Program("ours", "dpo", against="TRL", work=lambda shape, facts: 1e6 * len(facts["rows"]), check="loss")
TRL = Program("TRL", "trl_dpo", environment="trl", ours=False, work=OURS.work)
CASE = Case("dpo", SHAPES["mini"], (OURS, TRL))
PEAK = Case("peak", SHAPES["mini"], (Program("bf16", "peak"),))


def both(*ours: Record, theirs: list[Record], failure: str | None = None) -> list[Row]:
    peak = Outcome(PEAK, PEAK.programs[0], [record([1.0, 0.5, 0.8], 4e6)])
    return rows([peak, Outcome(CASE, OURS, list(ours)), Outcome(CASE, TRL, theirs, failure)])[1:]


def test_medians_are_over_all_repetitions_of_all_rounds_and_memory_is_the_largest() -> None:
    mine, other = both(
        record([1.0, 2.0, 4.0], rows=[1, 2], loss=0.7, distinct=44),
        record([8.0, 16.0], gigabytes=3.0, rows=[1, 2], loss=0.7),
        theirs=[record([32.0], gigabytes=6.0, loss=0.701), record([64.0], gigabytes=5.0, loss=0.7)],
    )
    assert (mine.rate, mine.low, mine.high) == (64 / 4, 64 / 16, 64)
    assert (mine.repetitions, mine.seconds, mine.peak_bytes) == (5, 4.0, 3_000_000_000)
    assert other.rate == pytest.approx((64 / 32 + 64 / 64) / 2)
    assert (mine.against, mine.ratio, mine.memory_ratio) == ("TRL", pytest.approx(16 / 1.5), 0.5)
    assert other.ratio is None and other.memory_ratio is None
    assert mine.agrees is True
    assert mine.note == "first loss 0.7000, theirs 0.7010; 44 distinct completions"
    # the peak is 4e6 / 0.8 operations a second; the work is 2e6, the peer's too
    assert mine.share == pytest.approx(2e6 / 4 / 5e6)
    assert other.share == pytest.approx(2e6 / 48 / 5e6)


def test_a_failed_program_is_a_row_that_says_so_and_nothing_is_compared_with_it() -> None:
    mine, other = both(record([1.0], rows=[1], loss=0.7), theirs=[record([2.0], loss=0.7)], failure="killed")
    assert mine.rate == 64 and mine.ratio is None and mine.against is None and mine.agrees is None
    assert other.rate is None and other.note == "FAILED: killed"
    assert cells(other) == ["dpo", "mini", "TRL", *[""] * 6, "FAILED: killed"]
    (alone,) = rows([Outcome(CASE, OURS)])
    assert alone.note == "FAILED: never run"


def test_losses_that_differ_are_told() -> None:
    mine, _ = both(record([1.0], rows=[1], loss=0.7), theirs=[record([2.0], loss=0.72)])
    assert mine.agrees is False and mine.note == "DISAGREES: first loss 0.7000, theirs 0.7200"


@pytest.mark.parametrize(("theirs", "agrees"), [(-100.0, True), (-93.0, True), (-92.0, False)])
def test_samplers_agree_within_standard_errors(theirs: float, agrees: bool) -> None:
    ours = Program("ours", "generate", against="theirs", check="logprob")
    case = Case("generate", SHAPES["mini"], (ours, Program("theirs", "hf_generate", ours=False)))
    # the difference has a standard error of hypot(1.2, 1.6) = 2
    found = rows(
        [
            Outcome(case, ours, [record([1.0], logprob=[-100.5, 1.2])]),
            Outcome(case, case.programs[1], [record([1.0], logprob=[theirs, 1.6])]),
        ]
    )
    assert found[0].agrees is agrees


def test_without_a_peak_there_is_no_share() -> None:
    (mine,) = rows([Outcome(CASE, OURS, [record([1.0], rows=[1])])])
    assert mine.share is None and mine.rate == 64


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (5.678, "5.68"), (54.04, "54"), (1234.5, "1,234"), (2.9e12, "2.9 T"), (3.3e11, "330 G")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown_has_a_line_a_row() -> None:
    text = markdown(
        [Row("dpo", "mini", "a|b", "pairs", 54.0, 50.0, 60.0, 3, 1.2, 1_300_000_000, "TRL", 11.5, 0.25, 0.14)]
    )
    assert text.splitlines() == [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        "| dpo | mini | a/b | 54 pairs/s | 50 - 60 | 11.5 x TRL | 1.30 GB | 0.25 | 14.0 % |  |",
    ]
