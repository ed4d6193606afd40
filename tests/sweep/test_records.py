"""What became of jobs: the time that is left, the last line of a log, exit codes in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imdb_rlhf.sweep.jobs import Job
from imdb_rlhf.sweep.processes import Found
from imdb_rlhf.sweep.records import Record, last_line, records, save, time_left


def record(name: str, algo: str, state: str, seconds: float | None = None) -> Record:
    run = SimpleNamespace(algo=algo)
    return Record(
        cast(Any, SimpleNamespace(run=run, overrides=[name])),
        name,
        name,
        Path(name),
        Path(name),
        state,
        seconds=seconds,
    )


def test_time_left_is_that_of_jobs_alike():
    sweep = [record("a", "dpo", "done", 10), record("b", "dpo", "done", 20), record("c", "dpo", "running")]
    assert time_left(sweep, {"c": 5.0}, 1) == 15 - 5
    sweep += [record("d", "dpo", "waiting"), record("e", "dpo", "waiting")]
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15
    assert time_left(sweep, {"c": 5.0}, 2) == (10 + 15 + 15) / 2
    sweep.append(record("f", "ppo", "waiting"))  # none of its kind is done: the mean of all
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15 + 15
    sweep.append(record("g", "ppo", "done", 90))
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15 + 90
    assert time_left(sweep, {"c": 5.0}, 4) == 90  # one job has one slot


def test_time_left_before_anything_is_known():
    assert time_left([record("a", "dpo", "running"), record("b", "dpo", "failed", 3)], {"a": 50.0}, 1) is None
    assert time_left([record("a", "dpo", "done", 7)], {}, 1) == 0
    late = [record("a", "dpo", "done", 7), record("b", "dpo", "running")]
    assert time_left(late, {"b": 50.0}, 1) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [("", ""), ("one\n", "one"), ("one\n\n  two   three \n\n", "two three"), ("x" * 9000 + "\nlast", "last")],
)
def test_last_line(tmp_path, text, said):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text(text)
    assert last_line(log) == said


def test_records_of_what_is_there_and_their_time_from_before(tmp_path):
    def job(*overrides: str) -> Job:
        return Job(cast(Any, SimpleNamespace(algo="dpo")), "", ["algo=dpo", *overrides], [])

    jobs = [job("beta=1"), job("beta=2"), job("beta=2", "logger=none"), job("beta=3")]
    found = [
        Found("run-1", Path("/runs/run-1"), True, None),
        Found("run-2", Path("/runs/run-2"), False, None),
        Found("run-2", Path("/runs/run-2"), False, None),
        Found("run-3", Path("/runs/run-3"), False, "was changed"),
    ]
    kept, again = records(jobs, found, tmp_path)
    assert [(one.state, one.reason) for one in kept] == [("done", None), ("waiting", None), ("failed", "was changed")]
    assert again == ["algo=dpo beta=2 logger=none"]
    assert [one.log.name for one in kept] == ["01-run-1.log", "02-run-2.log", "03-run-3.log"]
    kept[0].seconds, kept[1].seconds = 12.5, 3.0
    save(tmp_path, "python train.py", kept)
    after, _ = records(jobs, found, tmp_path)
    assert [one.seconds for one in after] == [12.5, 3.0, None]
