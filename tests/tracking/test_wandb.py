"""The mirror, read back without network, and that it can break without anyone noticing but for one line."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.tracking.wandb import WandbTracker, run_id, sync_command

pytest.importorskip("wandb")

CONFIG = {"algo": "dpo", "beta": 0.1, "policy": {"steps": 4, "warmup": None}}
LOSSES = [0.6931471805599453, 0.5, 1 / 3]
COLUMNS = ["prompt", "policy", "policy_reward"]
TEXTS = [["This movie", " was [red]great\n", 0.9], ["I saw", " it … é", 0.25]]
SUMMARY = {"reward": 0.9, "reward_ci": [0.8, 0.95], "knob": {"name": "beta", "value": 0.1}, "kl": 3.5}
# What methods have beyond: nothing known, truth values, dicts in dicts.
NESTED: dict[str, Any] = {
    "variant": None,
    "kl_k1": None,
    "kl_is": "upper bound",
    "win_rate_ci": [0.7, 0.8],
    "ppo": {"target_kl": None, "on_target": None, "at_floor": False, "kl_last_fifth": 2.5},
    "reward_model": {"accuracy": None, "accuracy_ci": None},
    "curve": {"1": {"reward": 0.5, "kl": 0.0}, "2": {"reward": 0.75, "kl": 0.19314718055994531}},
}


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offline, and with nothing of the user's account in sight."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(home / "elsewhere"))
        patch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
        patch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
        yield


def start(folder: Path, warnings: list[str], **changes: Any) -> WandbTracker:
    arguments: dict[str, Any] = {
        "folder": folder,
        "config": CONFIG,
        "project": "imdb-rlhf",
        "entity": None,
        "group": "frontier",
        "name": "dpo-beta0.1-s0",
        "job_type": "policy",
        "run_id": "ab12cd34-00000000",
        "mode": "auto",
        "tags": ["smoke"],
        "console_warn": warnings.append,
    }
    return WandbTracker(**(arguments | changes))


def inspect(folder: Path, *flags: str) -> str:
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(run)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout


@pytest.fixture(scope="module")
def failed_run(no_network: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with curves, a table and a histogram, that ended with exit code 1."""
    folder = tmp_path_factory.mktemp("run")
    warnings: list[str] = []
    random.seed(7)
    np.random.seed(7)
    before = (random.getstate(), [str(part) for part in np.random.get_state()])
    tracker = start(folder, warnings)
    for step, loss in enumerate(LOSSES):
        tracker.log({"stage": "policy", "step": step, "train/loss": loss})
    tracker.log({"stage": "policy", "step": 2, "eval/reward": 0.9, "eval/kl": 3.5})
    tracker.histogram("eval/rewards", [0.0, 0.5, 0.5, 1.0, float("nan")], 2)
    tracker.histogram("eval/none", [], 2)
    tracker.table("samples", COLUMNS, TEXTS)
    tracker.finish(SUMMARY, exit_code=1)
    tracker.log({"stage": "policy", "step": 3})  # too late: nothing happens
    tracker.finish({})
    assert before == (random.getstate(), [str(part) for part in np.random.get_state()])
    assert warnings == [] and tracker.url is None
    return folder


@pytest.fixture(scope="module")
def records(failed_run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inspect(failed_run).splitlines()]


def test_an_offline_run_is_all_there(failed_run: Path) -> None:
    record = json.loads(inspect(failed_run, "--summary"))
    assert (record["exit_code"], record["state"]) == (1, "failed")
    assert (record["run_id"], record["name"], record["project"]) == ("ab12cd34-00000000", "dpo-beta0.1-s0", "imdb-rlhf")
    assert record["tags"] == ["smoke"]
    assert record["config"] == CONFIG
    assert {key: record["summary"][key] for key in SUMMARY} == SUMMARY
    assert record["summary"]["eval/reward"] == 0.9  # the key is not renamed
    assert record["console_lines"] == 0


def test_curves_have_our_steps_and_every_bit(records: list[dict[str, Any]]) -> None:
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == list(enumerate(LOSSES))
    assert [(row["step"], row["eval/kl"]) for row in rows if "eval/reward" in row] == [(2, 3.5)]
    (histogram,) = [row for row in rows if "eval/rewards._type" in row]
    assert histogram["step"] == 2 and sum(histogram["eval/rewards.values"]) == 4
    assert not any(key.startswith("eval/none") for row in rows for key in row)


def test_charts_are_drawn_over_our_step_and_reward_over_kl(records: list[dict[str, Any]]) -> None:
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    axes = {metric.get("name") or metric.get("glob_name"): metric.get("step_metric") for metric in metrics}
    assert axes["*"] == axes["eval/kl"] == "step"
    assert axes["eval/reward"] == axes["eval/reward_logit"] == "eval/kl"


def test_the_table_lies_in_the_run_folder(failed_run: Path) -> None:
    (file,) = failed_run.glob("wandb/offline-run-*/files/media/table/*.json")
    table = json.loads(file.read_text())
    assert (table["columns"], table["data"]) == (COLUMNS, TEXTS)
    assert any(failed_run.glob("wandb/artifacts/staging/*"))
    assert not (Path.home() / ".local").exists() and "WANDB_DATA_DIR" not in os.environ


def test_nothing_of_the_machine_is_stored(failed_run: Path, records: list[dict[str, Any]]) -> None:
    assert not list(failed_run.rglob("wandb-metadata.json")) and not list(failed_run.rglob("requirements.txt"))
    assert not {"environment", "stats"} & {record["type"] for record in records}  # the command line is in the former


def test_sync_command(failed_run: Path, tmp_path: Path) -> None:
    assert sync_command(failed_run) == f"wandb sync {failed_run}/wandb/offline-run-*"
    assert sync_command(tmp_path) is None


def test_replay_gives_the_same_curve(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = start(tmp_path, warnings)
    tracker.replay({"stage": "policy", "step": step, "train/loss": loss} for step, loss in enumerate(LOSSES))
    tracker.finish(SUMMARY)
    record = json.loads(inspect(tmp_path, "--summary"))
    assert (record["exit_code"], record["step"]) == (0, 2)
    rows = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    assert [row["history"]["item"]["train/loss"] for row in rows if row["type"] == "history"] == LOSSES
    assert warnings == []


def test_a_summary_may_be_nested_and_a_number_unknown(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = start(tmp_path, warnings)
    tracker.log({"stage": "ppo", "step": 4, "ppo/kl": 0.5, "eval/learned_reward": 1.25})
    tracker.table("samples", COLUMNS, [["This movie", " was great", float("nan")], ["I saw", " it", 0.5]])
    tracker.table("reliability", ["count", "predicted"], [[0, None], [3, 0.25]])
    tracker.finish(SUMMARY | NESTED)
    assert warnings == []
    report = inspect(tmp_path)
    for text in ("upper bound", "kl_last_fifth", "0.19314718055994", "eval/learned_reward", "ppo/kl"):
        assert text in report, text
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/reliability*.json")
    assert json.loads(file.read_text())["data"] == [[0, None], [3, 0.25]]


def test_a_chart_and_a_picture_lie_in_the_run_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), (255, 0, 0))
    image.save(tmp_path / "red.png")
    warnings: list[str] = []
    tracker = start(tmp_path, warnings)
    tracker.scatter("plane", ["method", "kl", "reward"], [["DPO", 2.0, 0.75]], "kl", "reward", "reward over KL")
    tracker.picture("drawn", tmp_path / "red.png")
    tracker.finish({})
    assert warnings == []
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/plane*.json")
    assert json.loads(file.read_text())["data"] == [["DPO", 2.0, 0.75]]
    records = inspect(tmp_path)
    assert "wandb/scatter/v0" in records and "reward over KL" in records
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/media/images/drawn*.png")
    assert copy.read_bytes() == (tmp_path / "red.png").read_bytes()
    assert not (Path.home() / ".local").exists() and "WANDB_DATA_DIR" not in os.environ


def test_a_picture_that_is_not_there_costs_one_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = start(tmp_path, warnings, truth="frontier.json has every number")
    tracker.picture("drawn", tmp_path / "nowhere.png")
    tracker.finish({})
    assert len(warnings) == 1 and "could not log a picture (FileNotFoundError" in warnings[0]
    assert warnings[0].endswith("frontier.json has every number")


def use_everything(tracker: WandbTracker) -> None:
    tracker.log({"stage": "policy", "step": 1, "train/loss": 0.5})
    tracker.histogram("h", [1.0], 1)
    tracker.table("t", ["a"], [["b"]])
    tracker.scatter("s", ["x", "y"], [[1, 2]], "x", "y", "title")
    tracker.replay([{"stage": "policy", "step": 2}])
    tracker.finish({"reward": 1.0}, exit_code=1)


def test_init_that_raises_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        random.random()
        raise RuntimeError("no route to host\nsecond line")

    monkeypatch.setattr("wandb.init", init)
    warnings: list[str] = []
    before = random.getstate()
    use_everything(start(tmp_path, warnings))
    assert len(warnings) == 1 and "could not start (RuntimeError: no route to host)" in warnings[0]
    assert random.getstate() == before


def test_wandb_that_is_not_installed_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    use_everything(start(tmp_path, warnings))
    assert len(warnings) == 1 and "ModuleNotFoundError" in warnings[0]


class BrokenRun:
    """A run whose calls raise, all but `fine` of them."""

    url = "https://example.org/run"

    def __init__(self, *fine: str) -> None:
        self.fine = fine
        self.calls: list[tuple[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name not in self.fine:
            raise ConnectionError(f"{name} is broken")

    def define_metric(self, name: str, **_: Any) -> None:
        self._call("define_metric", name)

    def log(self, row: dict[str, Any]) -> None:
        self._call("log", row)

    def finish(self, exit_code: int) -> None:
        self._call("finish", exit_code)


@pytest.mark.parametrize("fine", [("define_metric", "finish"), ("define_metric",), ("define_metric", "log"), ()])
def test_a_run_that_breaks_midway_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fine: tuple[str, ...]
) -> None:
    run = BrokenRun(*fine)
    monkeypatch.setattr("wandb.init", lambda **_: run)
    warnings: list[str] = []
    use_everything(start(tmp_path, warnings))
    assert len(warnings) == 1 and "is broken" in warnings[0] and "\n" not in warnings[0]
    assert run.calls[-1] == ("finish", 1)  # how it ended is still told
    if "log" not in fine:
        assert sum(name == "log" for name, _ in run.calls) == ("define_metric" in fine)  # off after the first


@pytest.mark.parametrize(
    "mode, env, netrc, expected",
    [
        ("auto", {}, False, "offline"),
        ("auto", {"WANDB_API_KEY": "a" * 40}, False, "online"),
        ("auto", {}, True, "online"),
        ("auto", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, True, "offline"),
        ("online", {}, False, "online"),
        ("offline", {"WANDB_API_KEY": "a" * 40}, True, "offline"),
    ],
)
def test_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, env: dict[str, str], netrc: bool, expected: str
) -> None:
    given: dict[str, Any] = {}

    def init(**arguments: Any) -> BrokenRun:
        given.update(arguments)
        return BrokenRun("define_metric", "finish")

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("wandb.sdk.wandb_setup.singleton", lambda: type("S", (), {"settings": FakeSettings}))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / ".netrc").write_text(f"machine wandb.example.org login user password {'b' * 40}\n")
    warnings: list[str] = []
    tracker = start(tmp_path, warnings, mode=mode)
    assert (given["mode"], warnings) == (expected, [])
    assert given["resume"] == ("allow" if expected == "online" else None)
    assert tracker.url == (BrokenRun.url if expected == "online" else None)


class FakeSettings:
    """A server of our own, so that the user's real one plays no part."""

    base_url = "https://wandb.example.org"


def test_run_id_is_kept_and_unique(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a", "ab12cd34")
    assert first.startswith("ab12cd34-") and run_id(tmp_path / "a", "ab12cd34") == first
    assert run_id(tmp_path / "b", "ab12cd34") != first
    (tmp_path / "a" / "wandb_id").write_text("")  # a crash while it was written
    assert run_id(tmp_path / "a", "ab12cd34") != first


def test_importing_costs_nothing() -> None:
    code = "import sys, imdb_rlhf.tracking.wandb; sys.exit(any(m in sys.modules for m in ('wandb', 'numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
