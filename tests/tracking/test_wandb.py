"""The mirror, read back without network, and that it can break without anyone noticing but for one line."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.config.machine import WandbMode
from imdb_rlhf.tracking import wandb_service
from imdb_rlhf.tracking.wandb import WandbTracker, described
from imdb_rlhf.tracking.wandb_files import offline_parts
from tests.loggers import wandb_logger

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


def start(
    folder: Path, warnings: list[str], *, truth: str = "metrics.jsonl has every row", **changes: Any
) -> WandbTracker:
    return WandbTracker(
        folder=folder,
        logger=wandb_logger(**changes),
        config=CONFIG,
        group="frontier",
        name="dpo-beta0.1-s0",
        job_type="policy",
        run_id="ab12cd34-00000000",
        console_warn=warnings.append,
        truth=truth,
    )


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
    assert any(failed_run.glob("wandb/offline-run-*/artifacts/staging/*"))
    assert not (Path.home() / ".local").exists() and "WANDB_DATA_DIR" not in os.environ


def test_nothing_of_the_machine_is_stored(failed_run: Path, records: list[dict[str, Any]]) -> None:
    assert not list(failed_run.rglob("wandb-metadata.json")) and not list(failed_run.rglob("requirements.txt"))
    assert not {"environment", "stats"} & {record["type"] for record in records}  # the command line is in the former


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


def test_a_figure_a_page_and_a_picture_lie_in_the_run_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), (255, 0, 0))
    image.save(tmp_path / "red.png")
    warnings: list[str] = []
    tracker = start(tmp_path, warnings)
    tracker.figure(
        "plane", {"data": [{"type": "scatter", "x": [2.0], "y": [0.75]}], "layout": {"title": {"text": "reward"}}}
    )
    tracker.page("report", "<p>reward over KL, hf_abcdefghijklmnopqrstu</p>")
    tracker.picture("drawn", tmp_path / "red.png")
    tracker.finish({})
    assert warnings == []
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/plotly/plane*.json")
    spec = json.loads(file.read_text())
    assert spec["data"] == [{"type": "scatter", "x": [2.0], "y": [0.75]}]
    assert spec["layout"]["title"] == {"text": "reward"}
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert file.read_text() == "<p>reward over KL, ***</p>"
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
    tracker.figure("f", {"data": [], "layout": {}})
    tracker.page("p", "<p></p>")
    tracker.artifact("a", "model", Path(__file__).parent, {})
    tracker.line("a line")
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
    dir = "wandb/offline-run/files"

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
    monkeypatch.setattr("wandb.sdk.wandb_setup.singleton", FakeSetup)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / ".netrc").write_text(f"machine wandb.example.org login user password {'b' * 40}\n")
    warnings: list[str] = []
    tracker = start(tmp_path, warnings, mode=WandbMode(mode))
    assert (given["mode"], warnings) == (expected, [])
    assert given["resume"] == ("allow" if expected == "online" else None)
    assert tracker.url == (BrokenRun.url if expected == "online" else None)


class FakeSettings:
    """A server of our own, so that the user's real one plays no part."""

    base_url = "https://wandb.example.org"


class FakeSetup:
    """What W&B keeps per process."""

    settings, most_recent_active_run = FakeSettings, None

    def remove_active_run(self, run: Any) -> None: ...


def test_importing_costs_nothing() -> None:
    code = "import sys, imdb_rlhf.tracking.wandb; sys.exit(any(m in sys.modules for m in ('wandb', 'numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


# --- what the environment says


NAMES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "second try",
    "WANDB_TAGS": "a, b",
    "WANDB_RUN_GROUP": "ablation",
    "WANDB_NOTES": "why",
}
UNSAID: dict[str, Any] = dict.fromkeys(("project", "tags"), None)


def test_the_environment_names_what_the_logger_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = described(wandb_logger(**UNSAID), "g", "dpo-s0")
    assert ours == {
        "project": "imdb_rlhf",
        "entity": None,
        "group": "g",
        "name": "dpo-s0",
        "notes": None,
        "tags": [],
    }
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    assert described(wandb_logger(**UNSAID), "g", "dpo-s0") == {
        "project": "theirs",
        "entity": "team",
        "group": "ablation",
        "name": "second try",
        "notes": "why",
        "tags": ["a", "b"],
    }


def test_what_the_logger_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    given = {"project": "p", "entity": "e", "group": "x", "notes": "", "tags": []}
    told = described(wandb_logger(**given, run_name="try {run}"), "g", "dpo-s0")
    assert told == given | {"name": "try dpo-s0"}


def test_an_offline_run_is_called_as_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    start(tmp_path, warnings, **UNSAID).finish({})
    assert warnings == []
    (run,) = [record["run"] for record in map(json.loads, inspect(tmp_path).splitlines()) if record["type"] == "run"]
    told = [run[key] for key in ("project", "entity", "display_name", "run_group", "notes", "tags")]
    assert told == ["theirs", "team", "second try", "ablation", "why", ["a", "b"]]


# --- secrets, with everything on


EVERYTHING: dict[str, Any] = dict.fromkeys(("system", "console", "git", "code", "artifacts"), True)


def test_no_secret_is_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "key": "0123456789abcdef0123456789abcdef01234567",
        "hub": "hf_PLANTEDplantedPLANTEDplanted",
        "remote": "plantedremotetoken",
        "argument": "plantedargument",
    }
    monkeypatch.setenv("WANDB_API_KEY", planted["key"])
    monkeypatch.setenv("HF_TOKEN", planted["hub"])
    source = tmp_path / "source"
    source.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    remote = f"https://{planted['remote']}@example.org/a/b.git"
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "m"], ["remote", "add", "origin", remote]):
        subprocess.run([*git, *words], cwd=source, check=True)
    (source / "notes.txt").write_text(planted["hub"])  # not committed: no diff is stored
    monkeypatch.setattr(wandb_service, "PACKAGE", source)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--api-key={planted['argument']}", "beta=0.1", planted["hub"]])
    folder = tmp_path / "run"
    folder.mkdir()
    warnings: list[str] = []
    told = " ".join(planted.values())
    tracker = start(folder, warnings, **EVERYTHING, notes=f"with {planted['hub']}")
    tracker.line(f"the key is {planted['key']}, of {remote}")
    tracker.table("texts", ["text"], [[planted["hub"]]])
    tracker.page("report", f"<p>{planted['key']}</p>")
    tracker.finish({"said": [planted["hub"]], "api_key": f"token={planted['argument']} {planted['key']}"})
    assert warnings == [] and told
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert not [name for name, secret in planted.items() if secret.encode() in content], path
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert run["git"]["remote_url"] == "https://***@example.org/a/b.git" and len(run["git"]["commit"]) == 40
    arguments = [record["environment"].get("args") for record in records if record["type"] == "environment"]
    assert ["--api-key=***", "beta=0.1", "***"] in arguments
    lines = [record["output_logger"]["line"] for record in records if record["type"] == "output_logger"]
    assert lines == ["the key is ***, of https://***@example.org/a/b.git\n"]
    assert sys.argv[1] == f"--api-key={planted['argument']}"


def test_code_is_an_artifact_where_it_is_asked_for(tmp_path: Path) -> None:
    warnings: list[str] = []
    start(tmp_path, warnings, code=True).finish({})
    (artifact,) = [
        record["artifact"] for record in map(json.loads, inspect(tmp_path).splitlines()) if record["type"] == "artifact"
    ]
    assert (artifact["type"], warnings) == ("code", [])
    paths = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert {"imdb_rlhf/losses/__init__.py", "conf/config.yaml"} <= paths and not any("tests" in path for path in paths)


# --- one whole offline run


def parts(folder: Path) -> list[Path]:
    return offline_parts(folder, "ab12cd34-00000000")


def test_a_run_that_goes_on_leaves_one_whole_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"stage": "policy", "step": step, "train/loss": 1.0 / (step + 1)} for step in range(4)]
    warnings: list[str] = []
    stopped = start(tmp_path, warnings)
    stopped.replay(rows[:2])
    stopped.finish({}, exit_code=75)
    (first,) = parts(tmp_path)
    first = first.rename(first.with_name(first.name.replace("offline-run-2", "offline-run-1")))  # no second passes
    again = start(tmp_path, warnings)
    assert again.lacks_the_past
    again.replay(rows[:2])
    assert first.exists()  # until the new one is whole
    for row in rows[2:]:
        again.log(row)
    again.finish(SUMMARY)
    (whole,) = parts(tmp_path)
    assert whole != first and warnings == []
    records = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(item["step"], item["train/loss"]) for item in items] == [(row["step"], row["train/loss"]) for row in rows]


def test_the_earlier_part_stays_where_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    start(tmp_path, warnings).finish({}, exit_code=75)
    (first,) = parts(tmp_path)
    first = first.rename(first.with_name(first.name.replace("offline-run-2", "offline-run-1")))
    again = start(tmp_path, warnings)
    monkeypatch.setattr("wandb.sdk.wandb_run.Run.finish", BrokenRun().finish)
    again.finish({})
    assert first in parts(tmp_path) and len(warnings) == 1


def test_online_only_an_offline_part_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", lambda **_: BrokenRun("define_metric", "finish"))
    warnings: list[str] = []
    assert not start(tmp_path, warnings, mode=WandbMode.online).lacks_the_past
    (tmp_path / "wandb" / "offline-run-20260101_000000-ab12cd34-00000000").mkdir(parents=True)
    assert start(tmp_path, warnings, mode=WandbMode.online).lacks_the_past


# --- W&B's process


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_does_not_answer_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    warnings: list[str] = []
    tracker = start(tmp_path, warnings, system=True)
    monkeypatch.setattr(wandb_service, "PATIENCE", 1.0)
    tracker.log({"stage": "policy", "step": 0, "train/loss": 0.5})
    process = wandb_service.process_id()
    assert process is not None
    time.sleep(1.2)  # W&B writes its file every second
    os.kill(process, number)
    tracker.log({"stage": "policy", "step": 1, "train/loss": 0.25})
    tracker.finish({"reward": 1.0})
    assert len(warnings) == 1 and "the run goes on without it" in warnings[0]
    if number == signal.SIGSTOP:
        assert "could not finish (its process did not answer for 1 s and was ended)" in warnings[0]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert "Traceback" not in capfd.readouterr().err
    assert '"train/loss"' in inspect(tmp_path)
    assert not left_in_temporary(process)
    monkeypatch.undo()
    start(tmp_path, warnings, mode=WandbMode.offline).finish({})  # another run is fine
    assert len(warnings) == 1


def test_a_start_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own: W&B's hook at its end has nothing to say."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from imdb_rlhf.tracking import wandb_service
wandb_service.PATIENCE, wandb_service.RETRY = 0.2, 0.01
from tests.tracking.test_wandb import start
warnings = []
start(Path(sys.argv[1]), warnings).finish({})
print(warnings)
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[2])]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    assert "W&B could not start (its process did not answer for 0.2 s and was ended)" in ran.stdout


def left_in_temporary(process: int) -> list[Path]:
    return [path for path in Path(tempfile.gettempdir()).glob("*wandb*") if str(process) in path.name]


JOB = """
import sys
from multiprocessing import get_context
from pathlib import Path
sys.path.insert(0, sys.argv[2])

def job(folder):
    from tests.tracking.test_wandb import start
    start(Path(folder), []).finish({})

if __name__ == "__main__":
    process = get_context("forkserver").Process(target=job, args=(sys.argv[1],))
    process.start()
    process.join()
    job(sys.argv[1])
"""


def test_no_temporary_folder_is_left(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path), str(Path(__file__).parents[2])]
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short: the fork server has a socket in it
        subprocess.run(command, check=True, env=os.environ | {"TMPDIR": temporary})
        assert list((tmp_path / "wandb").glob("offline-run-*")) and not os.listdir(temporary)
