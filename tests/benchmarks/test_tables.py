"""Medians, ratios, shares, slopes and rates of numbers made by hand."""

from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from benchmarks import account, compare, growth, harness, hours, stages
from benchmarks.compare import Program
from benchmarks.harness import Job, Machine
from benchmarks.operations import Sizes
from benchmarks.programs.program import Record


def record(*seconds: float, gigabytes: float = 1.0, operations: float | None = None, **facts: Any) -> Record:
    return Record(list(seconds), 64.0, "pairs", operations, int(gigabytes * 1e9), facts)


def rows(
    own: list[Record], peer: list[Record], check: str = "loss", failure: str | None = None
) -> list[dict[str, Any]]:
    case = ("dpo", "mini")
    peak = Program(("peak", "mini"), "bf16", "peak.products", records=[Record([1.0, 0.5, 0.8], 4e6, "operations")])
    own_program = Program(case, "ours", "package.dpo", against="TRL", check=check, records=own)
    return compare.rows(
        [peak, own_program, Program(case, "TRL", "trl_dpo.train", records=peer, failure=failure)], "bf16"
    )[1:]


def test_medians_are_over_all_repetitions_and_memory_is_the_largest() -> None:
    first = record(1.0, 2.0, 4.0, operations=2e6, loss=0.7, distinct=44)
    peer = [record(32.0, gigabytes=6.0, loss=0.701), record(64.0, gigabytes=5.0)]
    own, peer_row = rows([first, record(8.0, 16.0, gigabytes=3.0)], peer)
    assert (own["rate"], own["low"], own["high"], own["memory"]) == (64 / 4, 64 / 16, 64, 3_000_000_000)
    assert (own["ratio"], own["memory_ratio"], own["agrees"]) == (pytest.approx(16 / 1.5), 0.5, True)
    assert own["note"] == "first loss 0.7000, the peer's 0.7010; 44 distinct completions"
    # the peak is 4e6 / 0.8 operations per second; the peer's work is ours
    assert (own["share"], peer_row["share"]) == (pytest.approx(2e6 / 4 / 5e6), pytest.approx(2e6 / 48 / 5e6))
    assert compare.cells(own)[3:9] == ["16 pairs/s", "4 - 64", "10.7 x TRL", "3.00 GB", "0.50", "10.0 %"]


def test_nothing_is_compared_with_a_failed_program() -> None:
    own, peer_row = rows([record(1.0, loss=0.7)], [record(2.0, loss=0.7)], failure="killed")
    assert own["rate"] == 64 and "ratio" not in own and own["agrees"] is None
    assert compare.cells(peer_row) == ["dpo", "mini", "TRL", *[""] * 6, "FAILED: killed"]


# losses agree within roundings, samplers within standard errors, of which the difference has hypot(1.2, 1.6) = 2
@pytest.mark.parametrize(
    ("check", "own", "peer", "agrees"),
    [
        ("loss", 0.7, 0.704, True),
        ("loss", 0.7, 0.72, False),
        ("logprob", [-100.5, 1.2], [-93.0, 1.6], True),
        ("logprob", [-100.5, 1.2], [-92.0, 1.6], False),
    ],
)
def test_programs_agree(check: str, own: Any, peer: Any, agrees: bool) -> None:
    row, _ = rows([record(1.0, **{check: own})], [record(2.0, **{check: peer})], check)
    assert row["agrees"] is agrees and row["note"].startswith("DISAGREES") is not agrees


def test_programs_take_turns_and_one_that_failed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(job: Job, machine: Machine) -> Record | str:
        ran.append(job.label)
        return "out of memory" if ran.count("peer") == 2 else record(1.0)

    monkeypatch.setattr(harness, "run_program", run)
    jobs = [Job("ours", "a"), Job("peer", "b")] * 3
    assert len(list(harness.run_all(jobs, Machine("cpu", "bf16", 1, 1), Console(quiet=True)))) == 5
    assert ran == ["ours", "peer", "ours", "peer", "ours"]
    assert harness.reason(1, "Traceback\nValueError: no\n\n") == "exit code 1: ValueError: no"
    assert harness.reason(-9, "") == "killed (signal 9): out of memory, most likely"


def times(power: float, kink: float = 1.0) -> list[dict[str, Any]]:
    """Times that grow as a power of the work; `kink` multiplies the largest batch's."""
    points = []
    for point in growth.PLANS["all"].points():
        work = 1e6 * point.batch * point.completion * point.vocabulary * len(point.model)
        seconds = 1e-12 * work**power * (kink if point.batch == 512 else 1.0)
        row = {"seconds": [3 * seconds, seconds, 0.5 * seconds], "operations": work, "parameters": len(point.model)}
        points.append({"task": "dpo", **asdict(point), **row})
    return points


@pytest.mark.parametrize(("power", "faster"), [(0.7, False), (1.09, False), (1.2, True)])
def test_slopes_are_the_powers_of_medians(power: float, faster: bool) -> None:
    frame = growth.along_axes(times(power), growth.BASE)
    assert frame.groupby("axis", sort=False)["value"].agg(tuple).to_dict()["batch"] == (16, 32, 64, 128, 256, 512)
    row = frame[(frame["axis"] == "batch") & (frame["value"] == 256)].iloc[0]
    assert row["median"] == pytest.approx(1e-12 * row["operations"] ** power) and row["low"] == 0.5 * row["median"]
    assert row["relative"] == pytest.approx(4 ** (power - 1))
    fits = growth.slopes(frame)
    assert all(s["slope"] == pytest.approx(power) for s in fits if s["axis"] != "model") and len(fits) == 4
    assert [s["faster"] for s in fits][:3] == [faster] * 3


def test_growth_at_the_large_end_alone_is_seen() -> None:
    batch = growth.slopes(growth.along_axes(times(0.9, kink=2.0), growth.BASE))[0]
    # by hand: log2 of the work are 0 to 5, of the times 0.9 of it and one more at the end
    assert batch["slope"] == pytest.approx(0.9 + 2.5 / 17.5) and batch["end"] == pytest.approx(0.9 + 1 / 2)
    assert batch["faster"] and batch["slope"] < growth.FASTER


def test_memory_of_the_product_is_the_mixed_difference() -> None:
    memory = [
        {"task": "x", "tokens": t, "vocabulary": v, "above": 3 * t * v + 100 * t + 7 * v + 5}
        for t in (8, 64)
        for v in (100, 900)
    ]
    assert growth.product(memory, "x") == pytest.approx(3)
    assert "GROWS WITH" in growth.verdict([], {"memory": memory, "failures": []})[0]


def part(stage: str, seconds: float, operations: float | None = None, **known: Any) -> dict[str, Any]:
    row = {"stage": stage, "count": 1, "seconds": seconds, "amount": 500.0, "unit": "steps", "operations": operations}
    return {**row, "precision": "bf16", "threads": 2, "batch": None, "value": None, **known}


def test_an_evaluation_is_the_time_of_its_stretch_beyond_the_steps() -> None:
    ends = [(10, 20.0, False), (20, 40.0, False), (25, 57.0, True), (35, 77.0, False), (36, 84.0, True)]
    lines = [{"step": n, "time/elapsed": t} | ({"eval/reward": 0.5} if e else {}) for n, t, e in ends]
    assert account.evaluation_seconds(lines) == pytest.approx((17 - 10) + (7 - 2))
    assert account.evaluation_seconds(lines[:2]) == 0.0 and account.evaluation_seconds(lines[2:3]) is None


def test_left_to_win_is_the_time_above_the_peak() -> None:
    parts = [part("sft", 4.0, 1e12), part("sft", 6.0, 3e12), part("data", 9.99), part("the rest", 0.01)]
    lines = stages.rows(account.Account(20.0, 1, parts, []), {("bf16", 2): 2e12})
    assert [line["stage"] for line in lines] == ["sft", "data"]  # the last is a two-thousandth
    expected = {"count": 2, "seconds": 10.0, "share": 0.5, "rate": 100.0, "of_peak": 0.2, "left": 8.0}
    assert {name: lines[0][name] for name in expected} == expected
    assert (lines[1]["of_peak"], lines[1]["left"]) == (None, 9.99)


def test_a_sweeps_console_tells_start_up_and_slots() -> None:
    lines = [(6.0, "   1/2  running a=1"), (6.5, "   2/2  running a=2"), (49.0, "   1/2  done    a=1")]
    assert account._startup(lines, []) == 6.0 and account._slots(lines) == 2
    assert account._startup([(7.0, "data         made in 2.0 s   x")], [part("data", 2.0)]) == 5.0


def test_rates_are_of_the_nearest_measurements() -> None:
    parts = [part("sft", 10.0, 100.0, batch=64), part("sft", 30.0, 500.0, batch=64), part("sft", 1.0, 7.0, batch=8)]
    parts += [part("ppo: training", 2.0, 8.0, batch=64, value="own")]
    parts += [part("ppo: training", 4.0, 8.0, batch=1024, value="shared"), part("dpo: training", 2.0, 8.0)]
    measured = hours.Measured({"sizes": Sizes(1, 4, 10)}, [], pd.DataFrame([*parts, part("data", 3.0)]))
    assert measured.rate("sft", 64) == hours.Rate("sft", 15.0, 40.0, "")
    assert measured.rate("sft", 16) == hours.Rate("sft", 7.0, 1.0, "batches of 8, here 16")  # twice 8, a quarter of 64
    own = measured.rate("ppo: training", 1024, "own")  # the network counts for more than the batch
    assert own == hours.Rate("ppo: training", 4.0, 2.0, "batches of 64, here 1,024")
    assert measured.rate("ppo: training", 1024, "shared") == hours.Rate("ppo: training", 2.0, 4.0, "")
    assert measured.rate("preferred_ft: training") == hours.Rate("dpo: training", 4.0, 2.0, "")  # its like
    other = measured.rate("dpo: training", precision="float32")
    assert other == hours.Rate("dpo: training", 4.0, 2.0, "in bf16, here float32")
    both = [*parts, part("dpo: training", 4.0, 8.0, precision="float32", batch=8)]
    measured = replace(measured, parts=pd.DataFrame([*both, part("data", 3.0)]))
    exact = measured.rate("dpo: training", 64, precision="float32")  # the precision counts for more than the batch
    assert exact == hours.Rate("dpo: training", 2.0, 4.0, "batches of 8, here 64")
    assert measured.rate("reward_model") is None and measured.each("data") == 3.0
