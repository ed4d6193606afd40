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
from tests.command import Answer, ended, run, start
from tests.experiments import rows_of, runs, well

SMOKE = ["experiment=smoke", "reward=lexicon", "trainer.threads=1"]


def offline(*overrides: str, outputs: Path) -> Answer:
    """A run that neither W&B nor the Hub is asked about."""
    home = outputs / "home"
    home.mkdir(parents=True, exist_ok=True)
    arguments = [*SMOKE, f"paths.outputs={outputs}", *overrides]
    return well(run(*arguments, HOME=str(home), WANDB_MODE="offline", HF_HUB_OFFLINE="1"))


def test_wandb_has_config_curves_and_table_of_an_offline_run(tmp_path: Path) -> None:
    offline("logger=wandb", outputs=tmp_path)
    (folder,) = runs(tmp_path)
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
