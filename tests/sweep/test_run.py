"""Whole sweeps in processes of their own: jobs that fail, are killed or stopped, and the same command again.

They are `experiment=smoke`, and share one folder of artifacts.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.command import Answer, ended, start

SMOKE = ["-m", "experiment=smoke", "reward=lexicon", "trainer.threads=1", "baselines=false"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps below write, so that what is upstream is made once."""
    return tmp_path_factory.mktemp("outputs")


def begin(outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep."""
    return start(*SMOKE, f"paths.outputs={outputs}", *arguments, HF_HUB_OFFLINE="1", HOME=str(outputs))


def whole(outputs: Path, *arguments: str) -> Answer:
    """A sweep to its end."""
    return ended(begin(outputs, *arguments))


def sweep_file(outputs: Path, title: str) -> dict[str, Any]:
    """`sweep.json` of the only sweep of that title; without jobs before it is there."""
    files = list((outputs / "sweeps").glob(f"{title}-????????/sweep.json"))
    return dict(json.loads(files[0].read_text())) if files else {"jobs": []}


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if answer := condition():
            return answer
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the sweep ended: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("it took too long")


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def running(outputs: Path, title: str) -> list[int]:
    return [job["pid"] for job in sweep_file(outputs, title)["jobs"] if job["state"] == "running"]


def test_a_job_that_fails_and_one_that_is_killed(outputs):
    """The others are run all the same; the same command then runs only those that failed."""
    diverging = ["optim@policy.optim=adamw", "policy.optim.weight_decay=100"]  # weights grow at the higher rate
    arguments = [*diverging, "beta=0.1,0.2,0.3", "policy.optim.lr=1e-4,1000"]
    title = "beta-policy.optim.lr"
    process = begin(outputs, *arguments)
    pid = until(lambda: running(outputs, title), process)[0]
    os.kill(pid, signal.SIGKILL)
    answer = ended(process)
    jobs = sweep_file(outputs, title)["jobs"]
    assert answer.code == 1, answer.err
    assert [job["state"] for job in jobs] == ["failed", "failed", "done", "failed", "done", "failed"], answer.out
    assert jobs[0]["exit_code"] == -signal.SIGKILL and jobs[0]["reason"].startswith("killed by SIGKILL")
    assert jobs[1]["exit_code"] == 1 and "lower the learning rate" in jobs[1]["reason"]
    ending = answer.out[answer.out.index("4 failed:") :]
    assert all(job["reason"] in ending and job["log"] in ending for job in jobs if job["state"] == "failed")
    assert jobs[2]["overrides"][-2:] == ["beta=0.2", "policy.optim.lr=0.0001"]

    done = Path(jobs[2]["run"], "summary.json").stat().st_mtime_ns
    answer = whole(outputs, *arguments)
    later = sweep_file(outputs, title)["jobs"]
    assert answer.code == 1 and "2 of 6 finished already, not run again" in answer.out
    assert [job["state"] for job in later] == ["done", "failed", "done", "failed", "done", "failed"]
    assert Path(later[2]["run"], "summary.json").stat().st_mtime_ns == done


@pytest.mark.slow
def test_a_run_that_was_changed_by_hand_and_a_frontier(outputs):
    arguments = ["seed=0,1", "policy.optim.lr=0.003", "policy.optim.warmup_steps=1"]  # for a KL worth drawing
    answer = whole(outputs, *arguments)
    assert answer.code == 0, answer.out + answer.err
    jobs = sweep_file(outputs, "seed")["jobs"]
    folder = Path(jobs[0]["log"]).parents[1]
    frontier = json.loads((folder / "frontier.json").read_text())
    assert sorted(run["name"] for run in frontier["runs"]) == sorted(job["name"] for job in jobs)
    assert f"report  {folder}/report.html" in answer.out
    with open(Path(jobs[1]["run"]) / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    answer = whole(outputs, *arguments)
    later = sweep_file(outputs, "seed")["jobs"]
    assert answer.code == 1 and "1 of 2 finished already, not run again" in answer.out
    assert [job["state"] for job in later] == ["done", "failed"]
    reason = later[1]["reason"]
    assert "was changed after it was finished: metrics.jsonl has" in reason and reason in answer.out


def test_a_job_that_ends_before_its_run_is_finished(outputs, tmp_path):
    """Its exit code says that all is well."""
    (tmp_path / "own.py").write_text("import os\n\ndef score(texts):\n    os._exit(0)\n")
    reward = ["reward=own", f"reward.function={tmp_path / 'own.py'}:score", "pairs.min_margin=0"]
    answer = whole(outputs, *reward, "beta=7")
    assert answer.code == 1, answer.out + answer.err
    (job,) = sweep_file(outputs, "single")["jobs"]
    assert (job["state"], job["exit_code"]) == ("failed", 0)
    assert job["reason"] == "ended with exit code 0 before its run was finished" and job["reason"] in answer.out


@pytest.mark.slow
def test_a_signal_and_the_death_of_a_sweep(outputs):
    """SIGTERM leaves a checkpoint, SIGKILL no orphan; what follows repeats nothing."""
    arguments = ["alpha=0.1,0.2", "algo=unlikelihood", "policy.steps=400", "evaluation.every=400", "launcher.jobs=2"]
    title = "alpha"
    process = begin(outputs, *arguments)
    # a first row is written in the training loop, which answers a signal with a checkpoint
    until(lambda: len([p for p in outputs.glob("runs/unlikelihood-*/metrics.jsonl") if p.stat().st_size]) == 2, process)
    process.send_signal(signal.SIGTERM)
    answer = ended(process)
    assert answer.code == 75, answer.out + answer.err
    assert "run the same command to go on" in answer.out
    assert {job["state"] for job in sweep_file(outputs, title)["jobs"]} == {"stopped"}
    assert len(list(outputs.glob("runs/unlikelihood-*/checkpoint/DONE"))) == 2

    process = begin(outputs, *arguments)
    pids = until(lambda: len(two := running(outputs, title)) == 2 and two, process)
    process.kill()
    process.communicate()
    until(lambda: not any(map(alive, pids)))
    assert not any(path.exists() for path in outputs.glob("runs/unlikelihood-*/DONE"))

    answer = whole(outputs, *arguments)
    jobs = sweep_file(outputs, title)["jobs"]
    assert answer.code == 0, answer.out + answer.err
    assert [job["state"] for job in jobs] == ["done", "done"]
    assert all("resumed at step" in Path(job["log"]).read_text() for job in jobs)
    folder = Path(jobs[0]["log"]).parents[1]
    with FileLock(f"{folder}.lock"):
        answer = whole(outputs, *arguments)
    assert (answer.code, answer.out) == (1, "") and answer.err.startswith(
        f"failed: {folder} is in use by another process"
    )


def test_what_a_job_needs_is_not_there(outputs):
    answer = whole(outputs, "beta=1,2", "data.preferences=/nowhere.parquet")
    assert answer.code == 1 and answer.out == ""
    assert answer.err.startswith("failed: job experiment=smoke ") and answer.err.count("\n") == 1
    assert "/nowhere.parquet" in answer.err
    assert not sweep_file(outputs, "beta")["jobs"]
