"""The log of a run: every bit kept, nothing half-written, resumable."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from imdb_rlhf.tracking import Trackers
from imdb_rlhf.tracking.jsonl import JsonlLog, read


def row(step: int, **metrics: float) -> dict[str, object]:
    return {"stage": "policy", "step": step, **metrics}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_floats_come_back_bit_for_bit(path: Path) -> None:
    floats = [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, math.pi * 1e-7, 1e22]
    log = JsonlLog(path)
    for step, value in enumerate(floats):
        log.log(row(step, **{"train/loss": value}))
    assert [r["train/loss"].hex() for r in read(path)] == [value.hex() for value in floats]
    assert [r["step"] for r in read(path)] == list(range(len(floats)))


def test_a_row_is_on_the_disk_when_log_returns(path: Path) -> None:
    log = JsonlLog(path)
    log.log(row(1, loss=0.5))
    assert path.read_text() == '{"stage": "policy", "step": 1, "loss": 0.5}\n'  # read while the log is open


def test_numpy_scalars_are_numbers(path: Path) -> None:
    JsonlLog(path).log(row(np.int64(3), loss=np.float32(0.5)))  # type: ignore[arg-type]
    assert read(path) == [row(3, loss=0.5)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_what_is_not_finite_is_refused_and_not_written(path: Path, bad: float) -> None:
    log = JsonlLog(path)
    log.log(row(1, loss=0.5))
    with pytest.raises(ValueError):
        log.log(row(2, loss=bad))
    assert read(path) == [row(1, loss=0.5)]


def test_the_refusal_names_metric_and_step(path: Path) -> None:
    with pytest.raises(ValueError, match="train/loss is nan at step 7 of policy"):
        JsonlLog(path).log(row(7, **{"train/loss": math.nan, "train/norm": 1.0}))


def test_a_new_log_is_empty(path: Path) -> None:
    JsonlLog(path).log(row(1))
    JsonlLog(path)
    assert read(path) == []


def test_resuming_keeps_rows_up_to_the_checkpoint(path: Path) -> None:
    log = JsonlLog(path)
    for step in (0, 1, 2, 2, 3, 4):  # a training row and an evaluation row at step 2
        log.log(row(step, loss=step / 7))
    log.finish({})
    before = path.read_text().splitlines(keepends=True)
    resumed = JsonlLog(path, keep_until=2)
    assert path.read_text() == "".join(before[:4])
    resumed.log(row(3, loss=0.25))
    assert [r["step"] for r in read(path)] == [0, 1, 2, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_resuming_where_nothing_was_written(path: Path) -> None:
    JsonlLog(path, keep_until=5).log(row(6))
    assert read(path) == [row(6)]


@pytest.mark.parametrize("torn", ['{"stage": "policy", "st', '{"stage": "policy", "step": 3, "note": "caf', "\0\0\0\n"])
def test_a_torn_last_line_is_dropped(path: Path, torn: str) -> None:
    JsonlLog(path).log(row(1))
    with path.open("a") as file:
        file.write(torn)
    assert read(path) == [row(1)]
    JsonlLog(path, keep_until=9).log(row(2))
    assert read(path) == [row(1), row(2)]


def test_a_last_line_torn_within_a_character(path: Path) -> None:
    JsonlLog(path).log(row(1))
    with path.open("ab") as file:
        file.write('{"note": "é'.encode()[:-1])
    assert read(path) == [row(1)]


def test_damage_before_the_last_line_is_an_error(path: Path) -> None:
    JsonlLog(path)
    path.write_text('{"step": 1}\nxx\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)


def test_a_crash_while_resuming_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JsonlLog(path).log(row(1))

    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="no space"):
        JsonlLog(path, keep_until=0)
    assert read(path) == [row(1)]


def test_trackers_tell_each_in_order(path: Path) -> None:
    other = path.parent / "other.jsonl"
    both = Trackers([JsonlLog(path), JsonlLog(other)])
    both.log(row(1, loss=0.5))
    both.histogram("reward", [0.1], 1)
    both.table("samples", ["text"], [["a"]])
    with pytest.raises(ValueError):
        both.log(row(2, loss=math.nan))
    both.finish({"reward": 1.0})
    assert read(path) == read(other) == [row(1, loss=0.5)]
    assert json.loads(path.read_text()) == row(1, loss=0.5)
