"""Hydra's other launchers and sweepers, the real ones: no override is lost, nothing repeated, failures are listed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import Answer, run

COMMON = ["-m", "experiment=smoke", "logger=none", "trainer.threads=1", "baselines=false"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps below write, so that what is upstream is made once."""
    return tmp_path_factory.mktemp("outputs")


def sweep(outputs: Path, *arguments: str) -> Answer:
    return run(*COMMON, f"paths.outputs={outputs}", *arguments, cwd=outputs, HF_HUB_OFFLINE="1")


def jobs(outputs: Path, title: str) -> list[dict[str, Any]]:
    [file] = outputs.glob(f"sweeps/{title}-????????/sweep.json")
    return list(json.loads(file.read_text())["jobs"])


def untouched(outputs: Path) -> bool:
    """Whether Hydra has left nothing where the command was run."""
    return {path.name for path in outputs.iterdir()} <= {"artifacts", "runs", "sweeps"}


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.slow), "submitit_local"])
def test_jobs_are_handed_to_a_launcher(outputs, launcher):
    diverging = ["optim@policy.optim=adamw", "policy.optim.weight_decay=100"]  # weights grow at the higher rate
    arguments = [*diverging, "policy.steps=40", "policy.optim.lr=1,1e-6", f"hydra/launcher={launcher}"]
    before = {file: file.stat().st_mtime for file in outputs.glob("runs/*/DONE")}
    answer = sweep(outputs, *arguments, f"seed={1 if launcher == 'joblib' else 2}")
    assert answer.code == 1, answer.out + answer.err
    [file] = [f for f in outputs.glob("sweeps/*/sweep.json") if f"hydra/launcher={launcher}" in f.read_text()]
    failed, done = json.loads(file.read_text())["jobs"]
    assert (failed["state"], done["state"]) == ("failed", "done")
    assert "is nan at step" in failed["reason"] and failed["reason"] in answer.out
    assert "is nan" in Path(failed["log"]).read_text() and "reward" in Path(done["log"]).read_text()
    assert (file.parent / "frontier.svg").is_file()
    assert (
        untouched(outputs)
        and before.items() <= {file: file.stat().st_mtime for file in outputs.glob("runs/*/DONE")}.items()
    )


@pytest.mark.slow
def test_a_basic_sweeper_loses_no_override(outputs):
    answer = sweep(outputs, "hydra/sweeper=basic", "algo=preferred_ft,dpo", "seed=5")
    assert answer.code == 0, answer.out + answer.err
    entries = jobs(outputs, "basic")
    assert [entry["state"] for entry in entries] == ["done", "done"]
    assert [Path(entry["run"]).name.split("-s5-")[0] for entry in entries] == ["preferred_ft", "dpo-beta0.1"]
    assert "frontier.svg" in answer.out and untouched(outputs)
    again = sweep(outputs, "hydra/sweeper=basic", "algo=preferred_ft,dpo", "seed=5")
    assert again.code == 0 and " running " not in again.out


@pytest.mark.slow
def test_optuna_gets_objectives(outputs):
    """Two objectives, by a foreign launcher: values and parameters are those of the runs."""
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    search += ["hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.sampler.seed=1", "hydra/launcher=joblib"]
    answer = sweep(outputs, *search, "algo=dpo", "beta=tag(log,interval(0.05,5))", "objective=[reward@5,kl]")
    assert answer.code == 0, answer.out + answer.err
    entries = jobs(outputs, "optuna")
    assert [entry["state"] for entry in entries] == ["done", "done"]
    [file] = outputs.glob("sweeps/optuna-*/optimization_results.yaml")
    solutions = yaml.safe_load(file.read_text())["solutions"]
    betas = {json.loads((Path(entry["run"]) / "summary.json").read_text())["knob"]["value"] for entry in entries}
    assert solutions and {solution["params"]["beta"] for solution in solutions} <= betas
    assert all(len(solution["values"]) == 2 and 0 < solution["values"][0] < 1 for solution in solutions)
    assert "frontier.svg" in answer.out and untouched(outputs)
