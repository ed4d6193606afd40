"""The frontier's W&B run, read back without network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.config.machine import WandbMode
from imdb_rlhf.frontier import wandb_run
from imdb_rlhf.frontier.plotly_figure import figure
from tests.loggers import wandb_logger

pytest.importorskip("wandb")

FRONTIER: dict[str, Any] = {
    "world": {"data": "embedded", "reward": "lexicon"},
    "confidence": 0.95,
    "reference": {"reward": 0.5, "reward_ci": [0.48, 0.52]},
    "budgets": [1, 2.5],
    "score_kl": 5.0,
    "methods": [
        {
            "name": "PPO-GT (TRL)",
            "knob": "target_kl",
            "seeds": [0, 1],
            "covers": "prompts",
            "score": [0.5, 0.75],
            "score_ci": [0.25, 1.0],
            "score_raw": 0.2,
            "at_budget": [
                {"kl": 1, "reward": 0.625, "reward_ci": [0.6, 0.65], "reached": True},
                {"kl": 2.5, "reward": 0.75, "reward_ci": [0.7, 0.8], "reached": False},
            ],
            "diverged": ["b"],
            "settings": [
                {
                    "knob_value": 3,
                    "seeds": [0, 1],
                    "covers": "prompts",
                    "runs": ["a"],
                    "kl": 2.0,
                    "kl_ci": [1.5, 2.75],
                    "reward": 0.75,
                    "reward_ci": [0.7, 0.875],
                    "efficiency": [0.25, 0.5],
                }
            ],
        },
        {
            "name": "DPO",
            "knob": None,
            "seeds": [0],
            "covers": "prompts",
            "score": None,
            "score_ci": None,
            "score_raw": None,
            "at_budget": [],
            "diverged": [],
            "settings": [],
        },
    ],
    "points": [
        {
            "run": "a",
            "method": "PPO-GT (TRL)",
            "knob": "target_kl",
            "knob_value": 3,
            "seed": 0,
            "step": 40,
            "last": True,
            "kl": 2.0,
            "kl_ci": [1.5, 2.5],
            "reward": 0.75,
            "reward_ci": [0.7, 0.8],
            "efficiency": [0.25, 0.5],
        },
        {
            "run": "c",
            "method": "DPO",
            "knob": None,
            "knob_value": None,
            "seed": 0,
            "step": 10,
            "last": False,
            "kl": 0.5,
            "kl_ci": [0.4, 0.6],
            "reward": 0.625,
            "reward_ci": [0.6, 0.65],
            "efficiency": None,
        },
    ],
    "runs": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
    "base": None,
    "optimum": None,
    "best_of_n": None,
}
LOGGER = wandb_logger(mode=WandbMode.offline, run_name="try {run}")
# The smallest PNG: one white pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f00010101001bb6ee560000000049454e44ae426082"
)


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
        patch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
        yield


@pytest.fixture(scope="module")
def folder(no_network: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "frontier.png").write_bytes(PNG)
    (folder / "report.html").write_text("<!doctype html><title>report</title>")
    warnings: list[str] = []
    wandb_run.frontier(FRONTIER, folder, LOGGER, "beta-sweep", warnings.append)
    assert warnings == []
    return folder


def inspect(folder: Path, *flags: str) -> str:
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout


def table(folder: Path, key: str) -> dict[str, Any]:
    (file,) = folder.glob(f"wandb/offline-run-*/files/media/table/{key}*.table.json")
    return json.loads(file.read_text())


def test_it_is_a_run_of_the_group(folder: Path) -> None:
    run_record = json.loads(inspect(folder, "--summary"))
    assert (run_record["exit_code"], run_record["name"], run_record["tags"]) == (0, "try frontier", ["smoke"])
    assert run_record["run_id"] == (folder / "wandb_id").read_text().strip()
    assert run_record["config"] == {key: FRONTIER[key] for key in ("world", "confidence", "budgets", "score_kl")}
    (run,) = [record["run"] for record in map(json.loads, inspect(folder).splitlines()) if record["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("beta-sweep", "frontier")


def test_the_summary_has_a_score_a_method(folder: Path) -> None:
    summary = json.loads(inspect(folder, "--summary"))["summary"]
    assert summary["score/PPO_GT_TRL"] == 0.625
    assert (summary["score_low/PPO_GT_TRL"], summary["score_high/PPO_GT_TRL"]) == (0.5, 0.75)
    assert (summary["reward_at_1/PPO_GT_TRL"], summary["reward_at_2.5/PPO_GT_TRL"]) == (0.625, 0.75)
    assert (summary["runs"], summary["diverged"], summary["reference_reward"]) == (3, 1, 0.5)
    assert not any(key.endswith("/DPO") for key in summary)  # it has no score


def test_every_point_is_a_row(folder: Path) -> None:
    points = table(folder, "frontier")
    rows = [dict(zip(points["columns"], row, strict=True)) for row in points["data"]]
    assert rows[0] == {
        "run": "a",
        "method": "PPO-GT (TRL)",
        "knob": "target_kl",
        "knob_value": 3,
        "seed": 0,
        "step": 40,
        "last": True,
        "kl": 2.0,
        "kl_low": 1.5,
        "kl_high": 2.5,
        "reward": 0.75,
        "reward_low": 0.7,
        "reward_high": 0.8,
        "efficiency_low": 0.25,
        "efficiency_high": 0.5,
    }
    assert (rows[1]["run"], rows[1]["knob_value"], rows[1]["efficiency_low"]) == ("c", None, None)


def test_methods_have_a_table(folder: Path) -> None:
    methods = table(folder, "methods")
    rows = [dict(zip(methods["columns"], row, strict=True)) for row in methods["data"]]
    assert [row["method"] for row in rows] == ["PPO-GT (TRL)", "DPO"]
    assert [(row["score_low"], row["score_ci_high"], row["seeds"]) for row in rows] == [(0.5, 1.0, 2), (None, None, 1)]
    assert [(row["reward_at_1"], row["reward_at_2.5"]) for row in rows] == [(0.625, 0.75), (None, None)]


def test_reward_over_kl_is_a_figure_of_plotlys(folder: Path) -> None:
    (file,) = folder.glob("wandb/offline-run-*/files/media/plotly/reward_over_kl*.json")
    spec = json.loads(file.read_text())
    expected = figure(FRONTIER)
    assert [trace["name"] for trace in spec["data"]] == [trace["name"] for trace in expected["data"]]
    assert [(trace["x"], trace["y"]) for trace in spec["data"]] == [(t["x"], t["y"]) for t in expected["data"]]
    history = [json.loads(line) for line in inspect(folder).splitlines()]
    assert any("plotly-file" in json.dumps(record) for record in history)  # a type that W&B shows by itself


def test_the_report_is_a_page(folder: Path) -> None:
    (file,) = folder.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert file.read_text() == "<!doctype html><title>report</title>"


def test_the_picture_is_there_byte_for_byte(folder: Path) -> None:
    (file,) = folder.glob("wandb/offline-run-*/files/media/images/picture*.png")
    assert file.read_bytes() == PNG


def test_home_stays_clean(folder: Path) -> None:
    assert not (Path.home() / ".local").exists() and "WANDB_DATA_DIR" not in os.environ


def test_drawing_again_is_the_same_run_with_the_new_numbers(tmp_path: Path) -> None:
    warnings: list[str] = []
    wandb_run.frontier(FRONTIER, tmp_path, LOGGER, "g", warnings.append)
    first = json.loads(inspect(tmp_path, "--summary"))
    wandb_run.frontier(FRONTIER | {"runs": []}, tmp_path, LOGGER, "g", warnings.append)
    again = json.loads(inspect(tmp_path, "--summary"))  # of the one run that is there
    assert (first["run_id"], first["summary"]["runs"]) == (again["run_id"], 3)
    assert again["summary"]["runs"] == 0 and warnings == []


def test_what_breaks_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    (tmp_path / "file").write_text("")
    wandb_run.frontier(FRONTIER, tmp_path / "file", LOGGER, "g", warnings.append)  # no folder to keep the id in
    assert len(warnings) == 1 and "frontier.json has every number" in warnings[0]

    def init(**_: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr("wandb.init", init)
    wandb_run.frontier(FRONTIER, tmp_path, LOGGER, "g", warnings.append)
    assert len(warnings) == 2 and "no route to host" in warnings[1] and "frontier.json has every number" in warnings[1]
