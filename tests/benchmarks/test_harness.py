"""The harness: turns, failures, what a program is told of the machine."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Machine, Outcome, measure, reason, run_program
from benchmarks.plan import Case, Program
from benchmarks.programs.record import Record
from benchmarks.workload import SHAPES

MACHINE = Machine("cpu", "bf16", 1, 120.0, Path("caches"))
CASE = Case("dpo", SHAPES["toy"], (Program("ours", "dpo"), Program("theirs", "trl_dpo", (), "trl", ours=False)))


def test_programs_take_turns_and_one_that_failed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, saved = [], []

    def run(
        module: str, folder: Path, machine: Machine, options: Sequence[str], repetitions: int, python: Path | None
    ) -> Record | str:
        ran.append((module, str(python)))
        return "out of memory" if ran.count(ran[-1]) == 2 and python else Record([1.0], 1.0, "pairs")

    monkeypatch.setattr(harness, "run_program", run)
    found = measure(
        [CASE],
        3,
        MACHINE,
        {"toy": Path("toy")},
        {"trl": Path("python")},
        lambda *_: None,
        lambda outcomes: saved.append([len(outcome.records) for outcome in outcomes]),
    )
    assert ran == [("dpo", "None"), ("trl_dpo", "python")] * 2 + [("dpo", "None")]
    assert [(len(outcome.records), outcome.failure) for outcome in found] == [(3, None), (1, "out of memory")]
    assert saved == [[1, 0], [1, 1], [2, 1], [2, 1], [3, 1]]


def test_a_peer_without_an_environment_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "run_program", lambda *_: Record([1.0], 1.0, "pairs"))
    told: list[Outcome | None] = []
    found = measure(
        [CASE], 1, MACHINE, {"toy": Path()}, {"trl": "no pip"}, lambda *w: told.append(w[3]), lambda _: None
    )
    assert found[0].failure is None and found[1].failure == "no pip"
    assert told == [None, found[0], None, found[1]]


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (1, "Traceback\n  File\nValueError: no\n\n", "exit code 1: ValueError: no"),
        (0, "", "exit code 0: it said nothing"),
        (-9, "", "killed (signal 9): out of memory, most likely"),
        (-11, "oh", "killed by signal 11: oh"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried ...\nmore", "out of the GPU's memory"),
        (1, "x" * 500, "exit code 1: " + "x" * 160),
    ],
)
def test_a_failure_in_one_line(code: int, errors: str, expected: str) -> None:
    assert reason(code, errors) == expected


def test_a_program_that_cannot_read_its_workload_is_a_failure(tmp_path: Path) -> None:
    found = run_program("hf_sft", tmp_path / "nowhere", MACHINE)
    assert isinstance(found, str) and found.startswith("exit code 1: FileNotFoundError") and "nowhere" in found


def test_one_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    hasty = Machine("cpu", "bf16", 1, 0.01, tmp_path)
    assert run_program("peak", tmp_path, hasty) == "not done after 0.01 s"


def test_what_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    told = Machine("cpu", "bf16", 7, 1.0, Path("caches")).environment()
    assert (told["OMP_NUM_THREADS"], told["HF_HUB_OFFLINE"], told["CUDA_VISIBLE_DEVICES"]) == ("7", "1", "")
    assert Machine("cuda", "bf16", 7, 1.0, Path("caches")).environment()["CUDA_VISIBLE_DEVICES"] == "3"
