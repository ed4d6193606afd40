"""A whole run in a process of its own: read back from W&B, and resumed after a signal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = ["experiment=smoke", "reward=lexicon", "trainer.threads=1"]


def run(*overrides: str, outputs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    home = outputs / "home"
    home.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"HOME": str(home), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, "train.py", *SMOKE, f"paths.outputs={outputs}", *overrides]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def only_run(outputs: Path) -> Path:
    (folder,) = (path for path in (outputs / "runs").iterdir() if path.is_dir())
    return folder


def rows(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


def test_wandb_has_config_curves_and_table_of_an_offline_run(tmp_path: Path) -> None:
    ended = run("logger=wandb", outputs=tmp_path)
    assert ended.returncode == 0, ended.stderr
    folder = only_run(tmp_path)
    (wandb_run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    whole = subprocess.run([*command, str(wandb_run)], capture_output=True, text=True, cwd=folder, check=True).stdout
    state = subprocess.run(
        [*command, "--summary", str(wandb_run)], capture_output=True, text=True, cwd=folder, check=True
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert '"beta"' in whole and "train/loss" in whole and "eval/kl" in whole
    assert repr(summary["reward"])[:8] in state.stdout
    tables = list((wandb_run / "files" / "media" / "table").rglob("samples*.json"))
    assert tables and "prompt" in json.loads(tables[0].read_text())["columns"]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    straight = run("policy.steps=40", outputs=tmp_path / "a")
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, "train.py", *SMOKE, "policy.steps=40", f"paths.outputs={tmp_path / 'b'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # the first row is written inside the loop, which answers a signal with a checkpoint
    while process.poll() is None and not any(p.stat().st_size for p in (tmp_path / "b").glob("runs/*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert list((tmp_path / "b").glob("runs/*/checkpoint/DONE"))
    again = run("policy.steps=40", outputs=tmp_path / "b")
    assert again.returncode == 0 and "resumed at step" in again.stdout, again.stderr
    assert rows(only_run(tmp_path / "a")) == rows(only_run(tmp_path / "b"))
