"""Records of jobs: their state and time, the time that is left, the last line of a log."""

from dataclasses import replace
from pathlib import Path

import pytest

from imdb_rlhf.config.algos import DPOLoss, DPORun, PPORun
from imdb_rlhf.config.run import Run
from imdb_rlhf.sweep.jobs import Job
from imdb_rlhf.sweep.processes import RunStatus
from imdb_rlhf.sweep.records import Record, last_line, records, save, time_left
from tests import tiny

RUNS: dict[str, Run] = {
    "dpo": tiny.run(DPORun, algo="dpo"),
    "ipo": tiny.run(DPORun, algo="dpo", dpo=tiny.dpo(DPOLoss.ipo)),
    "ppo": tiny.run(PPORun, algo="ppo"),
}


def record(name: str, method: str, state: str, seconds: float | None = None) -> Record:
    job = Job(RUNS[method], "", [name], [])
    return Record(job, name, name, Path(name), Path(name), state, seconds=seconds)


def test_time_left_is_that_of_jobs_alike():
    sweep = [record("a", "dpo", "done", 10), record("b", "dpo", "done", 20), record("c", "dpo", "running")]
    assert time_left(sweep, {"c": 5.0}, 1) == 15 - 5
    sweep += [record("d", "dpo", "waiting"), record("e", "dpo", "waiting")]
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15
    assert time_left(sweep, {"c": 5.0}, 2) == (10 + 15 + 15) / 2
    variants = [record("a", "dpo", "done", 10), record("b", "ipo", "done", 90), record("c", "ipo", "waiting")]
    assert time_left(variants, {}, 1) == 90
    sweep.append(record("f", "ppo", "waiting"))  # none of its kind is done: the mean of all
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15 + 15
    sweep.append(record("g", "ppo", "done", 90))
    assert time_left(sweep, {"c": 5.0}, 1) == 10 + 15 + 15 + 90
    assert time_left(sweep, {"c": 5.0}, 4) == 90  # one job has one slot


def test_time_left_takes_the_running_jobs_own_estimates(tmp_path):
    def running(name: str, method: str, line: str) -> Record:
        log = tmp_path / name
        log.write_text(f"sft   made\n{line}\n")
        return replace(record(name, method, "running"), log=log)

    alone = running("a", "dpo", "dpo          5/50 steps   1.0 steps/s   45.0 s left   loss 0.5")
    assert time_left([alone], {"a": 10.0}, 1) == 45
    waiting = [record("b", "dpo", "waiting"), record("c", "ppo", "waiting")]
    assert time_left([alone, *waiting], {"a": 10.0}, 1) == 45 + 55 + 55
    done = [record("d", "dpo", "done", 25.0), record("e", "ppo", "done", 70.0)]
    assert time_left([alone, *waiting, *done], {"a": 10.0}, 1) == 45 + (25 + 55) / 2 + 70
    upstream = running("f", "dpo", "sft          1/2 steps   2 min 00 s left")  # of a stage before its own
    assert time_left([upstream], {"f": 10.0}, 1) is None
    assert time_left([upstream, *done], {"f": 10.0}, 1) == 25 - 10


def test_time_left_before_anything_is_known():
    assert time_left([record("a", "dpo", "running"), record("b", "dpo", "failed", 3)], {"a": 50.0}, 1) is None
    assert time_left([record("a", "dpo", "done", 7)], {}, 1) == 0
    late = [record("a", "dpo", "done", 7), record("b", "dpo", "running")]
    assert time_left(late, {"b": 50.0}, 1) == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [("", ""), ("one\n", "one"), ("one\n\n  two   three \n\n", "two three"), ("x" * 9000 + "\nlast", "last")],
)
def test_last_line(tmp_path, text, line):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text(text)
    assert last_line(log) == line


def test_records_have_the_state_of_their_runs_and_the_time_so_far(tmp_path):
    def job(*overrides: str) -> Job:
        return Job(RUNS["dpo"], "", ["algo=dpo", *overrides], [])

    jobs = [job("beta=1"), job("beta=2"), job("beta=2", "logger=none"), job("beta=3")]
    statuses = [
        RunStatus("run-1", Path("/runs/run-1"), True, None),
        RunStatus("run-2", Path("/runs/run-2"), False, None),
        RunStatus("run-2", Path("/runs/run-2"), False, None),
        RunStatus("run-3", Path("/runs/run-3"), False, "was changed"),
    ]
    all_records, repetitions = records(jobs, statuses, tmp_path)
    assert [(one.state, one.reason) for one in all_records] == [
        ("done", None),
        ("waiting", None),
        ("failed", "was changed"),
    ]
    assert repetitions == ["algo=dpo beta=2 logger=none"]
    assert [one.log.name for one in all_records] == ["run-1.log", "run-2.log", "run-3.log"]
    all_records[0].seconds, all_records[1].seconds = 12.5, 3.0
    save(tmp_path, "python train.py", all_records)
    later, _ = records(jobs, statuses, tmp_path)
    assert [one.seconds for one in later] == [12.5, 3.0, None]
