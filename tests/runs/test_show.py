"""What W&B is told of a run, while it works and when it is finished."""

import json
import shutil
from typing import Any

import pytest

from tests.experiments import (
    rows_of,
    well,
)


class FakeWandbRun:
    """Records what a run tells W&B."""

    url, lacks_the_past = None, True

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.summary = arguments, dict[str, Any]()
        self.rows: list[dict[str, Any]] = []
        self.tables: dict[str, tuple[Any, Any]] = {}
        self.histograms: dict[str, tuple[Any, int]] = {}
        WANDB_RUNS.append(self)

    def log(self, row: Any) -> None:
        self.rows.append(row)

    def replay(self, rows: Any) -> None:
        self.rows += list(rows)

    def histogram(self, key: str, values: Any, step: int) -> None:
        self.histograms[key] = (values, step)

    def table(self, key: str, columns: Any, rows: Any) -> None:
        self.tables[key] = (columns, rows)

    def line(self, text: str) -> None:
        assert "\n" not in text

    def artifact(self, *_: Any, **__: Any) -> None: ...

    def finish(self, summary: Any, exit_code: int = 0) -> None:
        self.summary = summary


WANDB_RUNS: list[FakeWandbRun] = []


@pytest.mark.parametrize("name", ["unlikelihood", "ppo", "best_of_n", "reward_model"])
def test_wandb_is_told_the_same_now_and_later(methods, tmp_path, monkeypatch, name):
    done = methods[name]
    WANDB_RUNS.clear()
    monkeypatch.setattr("imdb_rlhf.runs.trackers.WandbTracker", FakeWandbRun)
    shutil.copytree(done.outputs / "artifacts", tmp_path / "artifacts")
    well(done.again("logger=wandb", f"paths.outputs={tmp_path}"))  # as it runs
    well(done.again("logger=wandb"))  # a finished one
    stages = [told for told in WANDB_RUNS if told.arguments["job_type"] == "sft"]
    now, later = [told for told in WANDB_RUNS if told not in stages]
    for wandb_run in (now, later):
        assert (
            wandb_run.arguments["name"] == done.folder.name and wandb_run.arguments["job_type"] == done.summary["algo"]
        )
        assert [{k: v for k, v in row.items() if not k.startswith("time/")} for row in wandb_run.rows] == rows_of(
            done.folder
        )
        expected = {key: value for key, value in done.summary.items() if key != "reliability"}
        same = {key for key in expected if not key.endswith("seconds")}
        assert {key: wandb_run.summary[key] for key in same} == {key: expected[key] for key in same}
        json.dumps(wandb_run.arguments["config"])
    assert {key: len(rows) for key, (_, rows) in now.tables.items()} == (
        {"reliability": 10} if name == "reward_model" else {"samples": 8}
    )
    assert {key: columns for key, (columns, _) in now.tables.items()} == {k: c for k, (c, _) in later.tables.items()}
    assert set(later.histograms) <= set(now.histograms)
    for key, (values, step) in later.histograms.items():
        assert now.histograms[key][1] == step and sorted(now.histograms[key][0]) == sorted(values)
