import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.artifacts.files import write_manifest
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier import finished as points
from imdb_rlhf.frontier.files import SWEEP_STATE

Write = Callable[..., Path]
FLAT = {5: (np.full((3, 2), 0.7), np.full((3, 2), 1.0))}


def read(paths: list[Path]) -> list[points.FinishedRun]:
    runs, skipped = points.read(paths)
    assert not skipped
    return runs


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_run_a_sweep_and_a_folder_of_runs(write_run: Write, tmp_path: Path) -> None:
    first, second = (write_run("dpo", ("beta", beta), FLAT) for beta in (0.1, 1))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / SWEEP_STATE).write_text(json.dumps({"jobs": [{"run": str(second)}, {"run": None}]}))
    assert points.find([first]) == [first]
    assert points.find([sweep]) == [second]
    assert points.find([tmp_path / "outputs"]) == [first, second]
    assert points.find([tmp_path / "outputs" / "runs"]) == [first, second]
    assert points.find([sweep, first, tmp_path / "outputs"]) == [second, first]  # each once
    lock = sweep.with_name("sweep.lock")
    lock.touch()
    assert points.find([sweep, lock]) == [second]


@pytest.mark.parametrize("place", ["empty", "missing"])
def test_nothing_there(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"there is no (run in|folder) .*{place}"):
        points.find([tmp_path / place])


def test_what_is_not_finished_is_left_out(write_run: Write, tmp_path: Path) -> None:
    whole, half = (write_run("dpo", ("beta", beta), FLAT) for beta in (0.1, 1))
    (half / "DONE").unlink()
    runs, skipped = points.read([whole, half, tmp_path / "nowhere"])
    assert [run.path for run in runs] == [whole]
    assert [(item["path"], item["why"].partition(":")[0]) for item in skipped] == [
        (str(half), "not finished"),
        (str(tmp_path / "nowhere"), "there is no such folder"),
    ]


def test_what_was_changed_by_hand_is_told(write_run: Write) -> None:
    run = write_run("dpo", ("beta", 0.1), FLAT)
    text = (run / "summary.json").read_text()
    (run / "summary.json").write_text(text.replace("0.7", "0.9"))  # as long as before
    runs, skipped = points.read([run])
    assert not runs
    assert skipped[0]["why"] == "changed after it was finished: summary.json has other bytes than were written"


def test_a_sweep_that_was_copied_with_its_runs_names_the_copies(write_run: Write, tmp_path: Path) -> None:
    run = write_run("dpo", ("beta", 0.1), FLAT)
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    sweep.mkdir(parents=True)
    (sweep / SWEEP_STATE).write_text(json.dumps({"jobs": [{"run": str(run)}]}))
    shutil.copytree(tmp_path / "outputs", tmp_path / "copy")
    assert points.find([sweep]) == [run]
    assert points.find([tmp_path / "copy" / "sweeps" / "s"]) == [tmp_path / "copy" / "runs" / run.name]


@pytest.mark.parametrize("text", ['{"jobs": [', "{}", '{"jobs": [1]}'])
def test_what_is_no_sweeps_file(text: str, tmp_path: Path) -> None:
    (tmp_path / SWEEP_STATE).write_text(text)
    with pytest.raises(ConfigError, match="was not written by a sweep"):
        points.find([tmp_path])


@pytest.mark.parametrize("name", points.NEEDED)
def test_a_run_without_what_is_needed_is_left_out(name: str, write_run: Write) -> None:
    run = write_run("dpo", ("beta", 0.1), FLAT)
    (run / name).unlink()
    write_manifest(run)
    runs, skipped = points.read([run])
    assert not runs and skipped == [{"path": str(run), "why": f"{name} is missing"}]


def test_metrics_changed_without_a_change_of_size_are_told(write_run: Write) -> None:
    run = write_run("dpo", ("beta", 0.1), FLAT)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("1.0", "9.0"))
    assert "metrics.jsonl has other bytes" in points.read([run])[1][0]["why"]


def test_a_changed_artifact_is_refused(write_run: Write, tmp_path: Path) -> None:
    run = write_run("dpo", ("beta", 0.1), FLAT)
    table = tmp_path / "outputs" / "artifacts" / "reference" / "one" / "evaluation.parquet"
    rows = pd.read_parquet(table)
    rows.assign(reward=0.1).to_parquet(table, index=False)
    with pytest.raises(RunError, match="reference/one was changed after it was made: evaluation.parquet"):
        _ = read([run])[0].world


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_checkpoints_are_means_over_samples(write_run: Write) -> None:
    reward, kl = np.array([[0.2, 0.4], [0.6, 1.0]]), np.array([[1.0, 2.0], [3.0, 5.0]])
    run = write_run("dpo", ("beta", 0.1), {5: (reward, kl)}, validation={5: (reward * 0, kl + 1)})
    (point,) = read([run])[0].checkpoints
    assert point.reward == pytest.approx([0.3, 0.8])
    assert point.kl == pytest.approx([1.5, 4.0])
    assert (point.step, point.validation_reward, point.validation_kl) == (5, 0.0, 3.75)


def test_reference_with_and_without_its_artifact(write_run: Write, tmp_path: Path) -> None:
    reference = np.array([[0.1, 0.3], [0.5, 0.7], [0.2, 0.2]])
    run = write_run("dpo", ("beta", 0.1), FLAT, reference=reference)
    values, validation = read([run])[0].reference
    assert values == pytest.approx([0.2, 0.6, 0.2])
    assert validation == pytest.approx(1 / 3)
    (tmp_path / "outputs" / "artifacts").rename(tmp_path / "gone")
    values, validation = read([run])[0].reference
    assert values == pytest.approx([0.2, 0.6, 0.2])
    assert validation is None
