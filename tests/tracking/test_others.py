"""TensorBoard, MLflow and Trackio, each read back; none can fail a run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.config.machine import TRACKERS
from imdb_rlhf.tracking.others import OTHERS, OtherTracker, flat, numbers

LOSSES = [0.6931471805599453, 0.5, 0.25]
CONFIG: dict[str, Any] = {"algo": "dpo", "beta": 0.1, "policy": {"steps": 4, "warmup": None}, "hub": "hf_" + "a" * 20}


@pytest.fixture(autouse=True)
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def tracker(name: str, outputs: Path, warnings: list[str], start: int = 0) -> OtherTracker:
    folder = outputs / "runs" / "dpo-s0"
    folder.mkdir(parents=True, exist_ok=True)
    return OTHERS[name](
        folder=folder,
        outputs=outputs,
        config=CONFIG,
        group="beta",
        run_name="dpo-s0",
        start=start,
        console_warn=warnings.append,
    )


def rows(steps: range) -> list[dict[str, Any]]:
    return [{"stage": "policy", "step": step, "train/loss": LOSSES[step]} for step in steps]


def told(name: str, outputs: Path) -> list[str]:
    """A run that is stopped after its checkpoint at step 1, and goes on."""
    warnings: list[str] = []
    stopped = tracker(name, outputs, warnings)
    assert stopped.lacks_the_past
    stopped.replay(rows(range(2)))
    stopped.finish({}, exit_code=75)
    again = tracker(name, outputs, warnings, start=1)
    assert not again.lacks_the_past  # it has them
    again.replay(rows(range(2, 3)))
    again.histogram("eval/rewards", [0.0, 0.5, 1.0], 2)
    again.table("samples", ["prompt", "reward"], [["a|b\nc", 0.5]])
    again.finish({"reward": 0.9, "step": 2, "knob": {"name": "beta", "value": 0.1}, "variant": None})
    again.log({"stage": "policy", "step": 3, "train/loss": 1.0})  # too late: nothing happens
    return warnings


def test_tensorboard_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert told("tensorboard", tmp_path) == []
    folder = tmp_path / "runs" / "dpo-s0" / "tensorboard"
    events = EventAccumulator(str(folder))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(LOSSES)]
    assert [event.value for event in events.Scalars("summary/reward")] == [pytest.approx(0.9)]
    assert [event.value for event in events.Scalars("summary/knob.value")] == [pytest.approx(0.1)]
    assert "a\\|b c" in events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert events.Tags()["histograms"] == ["eval/rewards"]
    (config,) = folder.rglob("hparams.yml")
    assert "policy.steps: 4" in config.read_text() and "hf_" not in config.read_text()


def test_mlflow_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")

    assert told("mlflow", tmp_path) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("imdb_rlhf")
    (run,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in losses] == list(enumerate(LOSSES))
    assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("dpo-s0", "FINISHED", "beta")
    assert run.data.metrics["summary/reward"] == 0.9
    assert (run.data.params["policy.steps"], run.data.params["hub"]) == ("4", "***")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["samples.json"]


def test_trackio_is_read_back(tmp_path: Path) -> None:
    """In a process of its own, which reads TRACKIO_DIR when it starts."""
    pytest.importorskip("trackio")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.tracking.test_others import LOSSES, told
assert told("trackio", Path({str(tmp_path)!r})) == []
import trackio
(run,) = trackio.Api().runs("imdb_rlhf")
assert run.name == "dpo-s0"
from trackio.sqlite_storage import SQLiteStorage
logs = SQLiteStorage.get_logs("imdb_rlhf", "dpo-s0")
assert [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row] == list(enumerate(LOSSES)), logs
assert [row["summary/reward"] for row in logs if "summary/reward" in row] == [0.9]
print("read back")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "read back\n"), ran.stderr


class Broken:
    """One of accelerate's trackers, whose calls raise."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def start(self) -> None:
        raise ConnectionError("no route to host\nsecond line")


class BrokenLater(Broken):
    """One that starts."""

    writer = None

    def start(self) -> None: ...

    def store_init_configuration(self, values: Any) -> None: ...

    def log(self, values: Any, step: int) -> None:
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("kind", "reason"), [(Broken, "ConnectionError: no route to host"), (BrokenLater, "disk full")]
)
def test_what_breaks_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, reason: str
) -> None:
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker", kind)
    warnings: list[str] = []
    broken = tracker("tensorboard", tmp_path, warnings)
    broken.replay(rows(range(3)))
    broken.histogram("h", [1.0], 1)
    broken.table("t", ["a"], [["b"]])
    broken.finish({"reward": 0.5})
    assert len(warnings) == 1 and reason in warnings[0] and "\n" not in warnings[0]
    assert warnings[0].endswith("the run goes on without it, metrics.jsonl has every row")


def test_every_tracker_of_the_configuration_is_one() -> None:
    assert set(OTHERS) == set(TRACKERS)


def test_numbers_and_flat() -> None:
    assert numbers({"stage": "p", "step": 1, "a": 1, "b": 0.5, "c": True, "d": None}) == {"a": 1, "b": 0.5}
    assert flat({"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2], "f": None, "g": True}) == {
        "a.b": 1,
        "a.c.d": "x",
        "e": "[1, 2]",
        "f": "null",
        "g": True,
    }


def test_importing_costs_nothing() -> None:
    heavy = ("accelerate", "torch", "numpy", "mlflow", "trackio", "tensorboard", "wandb")
    code = f"import sys, imdb_rlhf.tracking.others; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
