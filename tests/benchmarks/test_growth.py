"""Slopes and verdicts of numbers made by hand; memory against a plain log-softmax; a toy run to its end."""

import argparse
import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import growth, growth_figure, growth_table
from benchmarks.growth import AXES, PLANS, Plan, Point
from benchmarks.harness import Machine
from benchmarks.programs import growth_memory, growth_time, memory
from benchmarks.programs.record import Record

BASE = Point(64, 48, 50_257, "mini")
PLAN = Plan(
    BASE,
    {
        "batch": (16, 64, 256, 1024),
        "completion": (16, 48),
        "vocabulary": (1024, 50_257),
        "model": ("tiny", "mini", "small"),
    },
    512,
    (512, 1024),
    (1000, 2000),
)


def measured(power: float, kink: float = 1.0) -> dict[str, Any]:
    """Times that grow as a power of the work; `kink` multiplies the largest batch's."""
    times = []
    for point in PLAN.points():
        work = 1e6 * point.batch * point.completion * point.parameters
        seconds = 1e-12 * work**power * (kink if point.batch == 1024 else 1.0)
        times.append(
            {
                "task": "dpo",
                "point": asdict(point) | {"parameters": point.parameters},
                "failure": None,
                "seconds": [3 * seconds, seconds, 0.5 * seconds],
                "operations": work,
                "above": 10_000_000,
                "precision": "bf16",
            }
        )
    return {"times": times, "memory": [], "failures": []}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    return growth_table.summary(found, asdict(PLAN.base), AXES)


# --- times and slopes -------------------------------------------------------------------------------------------------


def test_an_axis_is_the_points_that_differ_from_the_base_in_it_alone() -> None:
    rows = summary(measured(1.0))["rows"]
    values = {axis: [row["value"] for row in rows if row["axis"] == axis] for axis in AXES}
    assert values == {axis: list(PLAN.values[axis]) for axis in AXES}
    assert len(PLAN.points()) == 1 + 3 + 1 + 1 + 2
    assert [row["value"] for row in rows if row["base"]] == [64, 48, 50_257, "mini"]


def test_times_are_medians_and_relative_to_the_base() -> None:
    rows = summary(measured(2.0))["rows"]
    row = next(row for row in rows if row["axis"] == "batch" and row["value"] == 256)
    assert row["seconds"] == pytest.approx(1e-12 * row["operations"] ** 2)
    assert (row["low"], row["high"]) == (pytest.approx(0.5 * row["seconds"]), pytest.approx(3 * row["seconds"]))
    assert row["relative"] == pytest.approx(4.0)  # four times the work in sixteen times the time
    assert row["rate"] == pytest.approx(row["operations"] / row["seconds"])


@pytest.mark.parametrize(("power", "faster"), [(0.7, False), (1.0, False), (1.09, False), (1.2, True)])
def test_slopes_are_the_powers(power: float, faster: bool) -> None:
    found = summary(measured(power))
    assert [s["axis"] for s in found["slopes"]] == list(AXES)
    assert all(s["slope"] == pytest.approx(power) and s["end"] == pytest.approx(power) for s in found["slopes"])
    assert [s["faster"] for s in found["slopes"]] == [faster] * 4
    said = growth_table.verdict(found)
    assert said[0].startswith("GROWS FASTER THAN THE WORK: dpo over batch" if faster else "Nothing grows faster")
    assert len(said) == (4 if faster else 1)


def test_what_turns_up_at_the_large_end_alone_is_seen() -> None:
    found = summary(measured(0.9, kink=2.0))
    batch = found["slopes"][0]
    # by hand: log2 of the times are 0.9 (4, 6, 8, 10) and one more at the end; deviations -3, -1, 1, 3 and -2, 0, 2
    assert batch["slope"] == pytest.approx(0.9 + 3 / 20)
    assert batch["end"] == pytest.approx(0.9 + 2 / 8)
    assert batch["faster"] and batch["slope"] < growth_table.FASTER


def test_a_slope_needs_two_sizes() -> None:
    assert growth_table.slope([(2.0, 1.0), (2.0, 3.0)]) is None
    assert growth_table.slope([(1.0, 5.0), (math.e, 5.0)]) == pytest.approx(0.0)


def test_a_point_that_failed_is_a_line_and_no_row() -> None:
    found = measured(1.0)
    point = found["times"][-1]["point"]
    found["times"][-1] = {"task": "dpo", "point": point, "failure": "killed (signal 9)"}
    found = summary(found)
    assert [row["value"] for row in found["rows"] if row["axis"] == "model"] == ["tiny", "mini"]
    assert "FAILED: dpo batch 64, 48 tokens, vocabulary 50257, small: killed (signal 9)" in growth_table.verdict(found)


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_has_time_and_work_over_every_axis() -> None:
    rows = summary(measured(1.5))["rows"]
    figure = growth_figure.compose(rows)
    assert [axes.get_xlabel() for axes in figure.axes] == list(growth_figure.LABELS.values())
    for axes, axis in zip(figure.axes, AXES, strict=True):
        lines = {str(line.get_gid()): line for line in axes.get_lines() if line.get_gid()}
        own = [row for row in rows if row["axis"] == axis]
        assert np.asarray(lines[f"{axis}-dpo"].get_ydata()).tolist() == [row["seconds"] for row in own]
        base = next(row for row in own if row["base"])
        expected = [base["seconds"] * row["operations"] / base["operations"] for row in own]
        assert np.asarray(lines[f"{axis}-dpo-work"].get_ydata()).tolist() == pytest.approx(expected)
        assert [text.get_text() for text in axes.texts] == ["DPO step"]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_live_bytes_are_counted_by_hand() -> None:
    def work() -> torch.Tensor:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        view = b[:10]  # no more
        del a  # 4,000
        c = view.double()  # 4,080
        return c.sum()

    found = memory.live_bytes(work)
    assert (found.most, found.largest, found.now) == (8000, 4000, 0)


def test_tensors_from_before_are_not_counted_and_changes_in_place_take_nothing() -> None:
    before = torch.zeros(100_000)
    assert memory.live_bytes(lambda: before.add_(1)).most == 0


def mixed(task: str, tokens: tuple[int, int], vocabulary: tuple[int, int]) -> float:
    """Bytes a token and entry of what neither tokens nor vocabulary explain alone."""
    options = growth_memory.arguments().parse_args(
        [".", "--task", task, "--width", "8", "--tokens", *map(str, tokens), "--vocabulary", *map(str, vocabulary)]
    )
    (found,) = growth_table.summary(
        {"times": [], "failures": [], "memory": [{"task": task} | p for p in growth_memory.points(options)]}, {}, ()
    )["memory"]
    assert [point["logits"] for point in found["points"]] == [4 * t * v for v in vocabulary for t in tokens]
    assert found["grows"] == (found["product"] > growth_table.PRODUCT)
    return float(found["product"])


@pytest.mark.parametrize("task", list(growth_memory.TASKS))
def test_memory_does_not_grow_with_tokens_times_vocabulary(task: str) -> None:
    # 400 MB of logits at the far corner
    assert mixed(task, (1024, 8192), (4096, 12_288)) < growth_table.PRODUCT


def test_whole_logits_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: None, targets: torch.Tensor) -> torch.Tensor:
        return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    monkeypatch.setattr(growth_memory, "token_logprobs", plain)
    assert mixed("token_logprobs", (64, 256), (500, 1000)) >= 8  # logits and their log-softmax, 4 bytes each


# --- the programs -----------------------------------------------------------------------------------------------------


def options(*words: str) -> argparse.Namespace:
    common = [
        ".",
        "--precision",
        "float32",
        "--threads",
        "1",
        "--repetitions",
        "2",
        "--new",
        "6",
        "--vocabulary",
        "300",
    ]
    return growth_time.arguments().parse_args([*common, *words])


def per_token(layers: int, width: int, tokens: int) -> float:
    """Operations of the layers for a token of a row of so many, written out."""
    return layers * (2 * 12 * width**2 + 4 * tokens * width)


def test_the_work_of_each_task_is_what_it_did() -> None:
    layer, logits = per_token(1, 32, 11), 2 * 32 * 300
    # 8 pairs are all 6 of one group of 4 and 2 of the next, which have 3 completions
    found = growth_time.measure(options("--task", "dpo", "--batch", "8"))
    assert found.facts["distinct"] == 7
    assert found.facts["operations"] == 3 * 7 * (11 * layer + 6 * logits)
    assert (len(found.seconds), found.work, found.unit) == (2, 8.0, "pairs")
    found = growth_time.measure(options("--task", "generate", "--batch", "3"))
    assert found.facts["operations"] == 3 * (10 * per_token(1, 32, 10) + 6 * logits)
    found = growth_time.measure(options("--task", "evaluate", "--batch", "3"))
    assert found.facts["precision"] == "float32" and found.facts["tokens"] == 18
    assert found.facts["operations"] == 3 * (10 * per_token(1, 32, 10) + 6 * logits + 2 * (11 * layer + 6 * logits))


# --- the command ------------------------------------------------------------------------------------------------------


def test_every_plan_runs_through_its_base() -> None:
    for plan in PLANS.values():
        for axis in AXES:
            assert plan.base in plan.along(axis)
        longest = max(point.completion for point in plan.points())
        assert growth_time.PROMPT + longest <= plan.context
        assert all(tokens % growth_memory.ROW == 0 for tokens in plan.tokens)


def here(module: str, folder: Path, machine: Machine, words: Sequence[str], repetitions: int) -> Record:
    """A program in this process, which costs no start."""
    program = importlib.import_module(f"benchmarks.programs.{module}")
    common = [str(folder), "--device", machine.device, "--precision", machine.precision, "--threads", "1"]
    found = program.measure(program.arguments().parse_args([*common, "--repetitions", str(repetitions), *words]))
    assert isinstance(found, Record)
    return found


def test_a_toy_run_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "run_program", here)
    words = ["growth", "--points", "toy", "--tasks", "generate", "--repetitions", "1", "--threads", "1"]
    assert command.main([*words, "--out", str(tmp_path), "--name", "one"]) == 0
    found = json.loads((tmp_path / "one" / "growth.json").read_text())
    assert [row["axis"] for row in found["summary"]["rows"]] == [axis for axis in AXES for _ in range(2)]
    assert {m["task"] for m in found["summary"]["memory"]} == set(growth_memory.TASKS)
    assert all(point.get("process") is not None for m in found["summary"]["memory"] for point in m["points"])
    text = (tmp_path / "one" / "growth.md").read_text()
    assert "| generate | batch | **12** |" in text and "| compare | 1,024 |" in text
    assert (tmp_path / "one" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "DPO step" not in (tmp_path / "one" / "growth.svg").read_text()
    with pytest.raises(SystemExit) as refused:
        command.main([*words, "--out", str(tmp_path), "--name", "one"])
    assert refused.value.code == 2 and "not overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_a_toy_run_in_processes_of_its_own(tmp_path: Path) -> None:
    assert command.main(["growth", "--points", "toy", "--threads", "1", "--out", str(tmp_path), "--name", "one"]) == 0
    found = json.loads((tmp_path / "one" / "growth.json").read_text())
    assert len(found["times"]) == 5 * 3 and all(len(time["seconds"]) == 3 for time in found["times"])


def test_programs_that_fail_are_exit_code_1(tmp_path: Path) -> None:
    words = ["growth", "--points", "toy", "--timeout", "0.01", "--out", str(tmp_path), "--name", "one"]
    assert command.main(words) == 1
    text = (tmp_path / "one" / "growth.md").read_text()
    assert "FAILED: evaluate batch 12, 8 tokens, vocabulary 300, toy: not done after 0.01 s" in text
    assert "FAILED: token_logprobs" in text
