"""A whole run in a process of its own: read back from W&B, and resumed after a signal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from imdb_rlhf.experiment import _check_reward
from imdb_rlhf.tracking.jsonl import read
from tests.command import Answer, ended, run, start
from tests.experiments import rows_of, runs, well

SMOKE = ["experiment=smoke", "reward=lexicon", "trainer.threads=1"]


def offline(*overrides: str, outputs: Path) -> Answer:
    """A run that neither W&B nor the Hub is asked about."""
    home = outputs / "home"
    home.mkdir(parents=True, exist_ok=True)
    arguments = [*SMOKE, f"paths.outputs={outputs}", *overrides]
    return well(run(*arguments, HOME=str(home), WANDB_MODE="offline", HF_HUB_OFFLINE="1"))


def inspected(wandb_run: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(wandb_run)]
    return subprocess.run(command, capture_output=True, text=True, cwd=wandb_run.parent, check=True).stdout


def history(wandb_run: Path, key: str) -> list[tuple[int, float]]:
    """Step and value of a metric, in the order in which W&B was told."""
    rows = [json.loads(line) for line in inspected(wandb_run).splitlines()]
    items = [row["history"]["item"] for row in rows if row["type"] == "history"]
    return [(item["step"], item[key]) for item in items if key in item]


def logged(metrics: Path, key: str) -> list[tuple[int, float]]:
    """The same of a `metrics.jsonl`."""
    return [(row["step"], row[key]) for row in read(metrics) if key in row]


def test_wandb_has_the_run_and_the_stage_that_it_trained(tmp_path: Path) -> None:
    answer = offline("logger=wandb", "logger.artifacts=true", outputs=tmp_path)
    (folder,) = runs(tmp_path)
    (stage,) = (folder / "wandb").glob("offline-run-*-sft-*")
    (wandb_run,) = set((folder / "wandb").glob("offline-run-*")) - {stage}
    assert f"W&B          offline; wandb sync {folder}/wandb/offline-run-*" in answer.out.splitlines()[-1]
    whole, summary = inspected(wandb_run), json.loads((folder / "summary.json").read_text())
    assert '"beta"' in whole and "eval/kl" in whole
    assert repr(summary["reward"])[:8] in inspected(wandb_run, "--summary")
    assert history(wandb_run, "train/loss") == logged(folder / "metrics.jsonl", "train/loss")
    tables = list((wandb_run / "files" / "media" / "table").rglob("samples*.json"))
    assert tables and "prompt" in json.loads(tables[0].read_text())["columns"]
    # the stage: a run of the same group, with its own curve
    (metrics,) = tmp_path.glob("artifacts/sft/*/metrics.jsonl")
    assert history(stage, "train/loss") == logged(metrics, "train/loss") != []
    records = [[json.loads(line) for line in inspected(part).splitlines()] for part in (stage, wandb_run)]
    told = [record["run"] for each in records for record in each if record["type"] == "run"]
    assert [run["job_type"] for run in told] == ["sft", "dpo"] and len({run["run_group"] for run in told}) == 1
    # what the console said before W&B was there, too
    lines = [record["output_logger"]["line"] for record in records[1] if record["type"] == "output_logger"]
    assert any(line.startswith("groups       made in") for line in lines)
    # the policy, and what it was made from
    artifacts = [record["artifact"] for record in records[1] if record["type"] == "artifact"]
    known = [(artifact["type"], artifact.get("use_after_commit", False)) for artifact in artifacts]
    assert [pair for pair in known if pair[0] != "run_table"] == [
        ("model", True),
        ("preferences", True),
        ("model", False),
    ]
    # a stage that is reused is not told again
    offline("logger=wandb", "beta=1", outputs=tmp_path)
    assert len(list(tmp_path.glob("runs/*/wandb/offline-run-*"))) == 3


@pytest.mark.slow
def test_a_stopped_run_leaves_one_whole_offline_run(tmp_path: Path) -> None:
    values = [*SMOKE, "logger=wandb", "policy.steps=40", f"paths.outputs={tmp_path}"]
    process = start(*values, HOME=str(tmp_path / "home"), WANDB_MODE="offline", HF_HUB_OFFLINE="1")
    while process.poll() is None and not any(p.stat().st_size for p in tmp_path.glob("runs/*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 75
    (folder,) = runs(tmp_path)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2  # the stage's too
    assert "resumed at step" in offline("logger=wandb", "policy.steps=40", outputs=tmp_path).out
    (wandb_run,) = [part for part in (folder / "wandb").glob("offline-run-*") if "-sft-" not in part.name]
    assert history(wandb_run, "train/loss") == logged(folder / "metrics.jsonl", "train/loss")
    assert history(wandb_run, "eval/kl") == logged(folder / "metrics.jsonl", "eval/kl")


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    offline("policy.steps=40", outputs=tmp_path / "a")
    process = start(*SMOKE, "policy.steps=40", f"paths.outputs={tmp_path / 'b'}")
    # the first row is written inside the loop, which answers a signal with a checkpoint
    while process.poll() is None and not any(p.stat().st_size for p in (tmp_path / "b").glob("runs/*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    answer = ended(process)
    assert answer.code == 75, answer.err
    assert list((tmp_path / "b").glob("runs/*/checkpoint/DONE"))
    again = offline("policy.steps=40", outputs=tmp_path / "b")
    assert "resumed at step" in again.out
    (straight,), (resumed,) = runs(tmp_path / "a"), runs(tmp_path / "b")
    assert rows_of(straight) == rows_of(resumed)


def test_a_finished_run_is_compared_in_texts_that_its_table_holds_whole(tmp_path: Path) -> None:
    """Where a character is split between prompt and completion, the table has a mark in its place."""
    rows = {"prompt": ["A film", "A caf\ufffd"], "policy": [" is", "é is"], "policy_reward_logit": [1.0, 2.0]}
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    compared: list[tuple[list[str], list[float]]] = []
    reward = SimpleNamespace(
        kind=SimpleNamespace(compared=True),
        compare=lambda texts, stored, folder: compared.append((texts, stored)),
    )
    folder: Any = SimpleNamespace(path=tmp_path, pipeline=SimpleNamespace(get=lambda kind: reward))
    _check_reward(folder)
    assert compared == [(["A film is"], [1.0])]
