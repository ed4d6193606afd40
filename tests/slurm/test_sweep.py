"""Sweeps on a real SLURM: throttled, preempted, out of time, left alone by the process that submitted them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import Cluster, until

pytestmark = pytest.mark.slurm


def sealed(outputs: Path) -> dict[str, float]:
    """When each finished run was sealed."""
    return {file.parent.name: file.stat().st_mtime for file in outputs.glob("runs/*/DONE")}


def jobs(outputs: Path, title: str) -> list[dict[str, Any]]:
    [file] = outputs.glob(f"sweeps/{title}-????????/sweep.json")
    return list(json.loads(file.read_text())["jobs"])


def test_a_job_is_preempted_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """The signal leaves a checkpoint, SLURM runs the job again, and the run is one whole."""
    long = ["algo=unlikelihood", "alpha=0.1,0.2", "policy.steps=1500", "evaluation.every=1500"]
    sweep = cluster.submit(tmp_path, *long, "hydra.launcher.signal_delay_s=10")
    try:
        until(lambda: len([f for f in tmp_path.glob("runs/*/metrics.jsonl") if f.stat().st_size]) == 2)
        cluster.ask("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        logs = until(lambda: [f for f in tmp_path.glob("sweeps/*/logs/*.log") if "stopped at" in f.read_text()])
        out, err = sweep.communicate(timeout=600)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, out + err
    assert [job["state"] for job in jobs(tmp_path, "alpha")] == ["done", "done"]
    resumed = [re.search(r"resumed at step (\d+)", log.read_text()) for log in logs]
    assert all(found is not None and int(found[1]) > 0 for found in resumed)
    assert re.search(r"frontier\.svg", out)


def test_a_job_over_its_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    """It leaves a checkpoint and is listed as failed, and the same command goes on from there."""
    endless = ["algo=unlikelihood", "alpha=0.3", "policy.steps=100000", "evaluation.every=100000"]
    answer = cluster.whole(tmp_path, *endless, "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=20")
    assert answer.code == 1, answer.out + answer.err
    [job] = jobs(tmp_path, "single")
    assert job["state"] == "failed" and "timed-out" in job["reason"]
    assert job["reason"] in answer.out
    assert list(tmp_path.glob("runs/*/checkpoint/DONE"))


def test_the_frontier_whose_sweep_is_taken_up_again(cluster: Cluster, tmp_path: Path) -> None:
    """All 22 runs, two at a time; the process that submitted them is killed on the way."""
    command = ["sweep=frontier", "baselines=false", "hydra.launcher.array_parallelism=2"]
    sweep = cluster.submit(tmp_path, *command)
    most = 0
    try:
        while len(sealed(tmp_path)) < 4:
            assert sweep.poll() is None, sweep.communicate()
            most = max(most, len(until(cluster.running)))
    finally:
        sweep.kill()
        sweep.communicate()
    assert most == 2
    before = sealed(tmp_path)
    answer = cluster.whole(tmp_path, *command)
    assert answer.code == 0, answer.out + answer.err
    assert f"{len(before)} of 22 finished already" in answer.out or "finished already, not run again" in answer.out
    after = sealed(tmp_path)
    assert len(after) == 22 and before.items() <= after.items()
    logs = [log.read_text() for log in tmp_path.glob("sweeps/frontier-*/logs/*-s?-*.log")]
    assert len(logs) == 22 and not any("Traceback" in log for log in logs)
    assert list(tmp_path.glob("sweeps/frontier-*/frontier.svg"))
