"""load_world: a finished run's world gives its own numbers again, and is refused where it is not what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForCausalLM

from imdb_rlhf import ConfigError, Frontier, FrontierCallback, RunError, RunWorld, load_world
from imdb_rlhf.artifacts.files import check_manifest
from tests.api.test_callback import train as train_with
from tests.command import train
from tests.experiments import REWARD, STEPS, TINY, runs, summary_of, well

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of DPO that moved, with an own reward."""
    folder = tmp_path_factory.mktemp("load")
    (folder / "my.py").write_text(REWARD)
    own = ["reward=own", f"reward.function={folder / 'my.py'}:score", f"paths.outputs={folder / 'outputs'}"]
    moving = ["policy.optim.lr=1e-2", "policy.optim.warmup_steps=0"]
    well(train(*TINY, *STEPS, *own, *moving))
    return runs(folder / "outputs")[0]


@pytest.fixture(scope="module")
def world(run: Path) -> RunWorld:
    return load_world(run)


def test_its_own_policy_has_its_own_numbers(run: Path, world: RunWorld) -> None:
    summary, found = summary_of(run), world.measure(run / "model").to_dict()
    assert summary["kl"] > 0.01
    for key in ("reward", "reward_ci", "kl", "kl_ci", "kl_k1", "kl_k1_ci", "win_rate", "win_rate_ci", "length"):
        assert found[key] == pytest.approx(summary[key], abs=1e-5), key
    assert found["reference"] == summary["reference"]
    table = pd.read_parquet(run / "samples.parquet")
    assert world.measure(run / "model").samples["policy"].tolist() == table["policy"].tolist()


def test_it_gives_what_a_trainer_needs(run: Path, world: RunWorld) -> None:
    assert world.run == run.resolve() and world.outputs == run.resolve().parent.parent
    assert {"prompt", "chosen", "rejected"} <= set(pd.read_parquet(str(world.preferences)))
    assert (Path(str(world.reference)) / "config.json").exists()
    assert world.reward(["a film"]) == [sum(map(ord, " a film"[-6:])) % 97 / 97]


def test_a_run_that_a_callback_leaves_stands_beside_it(run: Path, world: RunWorld, tmp_path: Path) -> None:
    for folder in (world.outputs / "runs" / "theirs", tmp_path / "elsewhere" / "runs" / "theirs"):
        model = AutoModelForCausalLM.from_pretrained(world.reference)
        train_with(tmp_path, [FrontierCallback(world, every=2, folder=folder, method="Theirs")], model, max_steps=2)
        assert set(Frontier.from_runs(run, folder).to_frame()["method"]) == {"DPO", "Theirs"}
        shutil.rmtree(folder)


def test_the_script_puts_trl_on_the_frontier(run: Path, world: RunWorld, tmp_path: Path) -> None:
    """`examples/trl_dpo.py`, as a user starts it."""
    options = ["--beta", "0.3", "--steps", "3", "--every", "2", "--batch-size", "8", "--learning-rate", "1e-2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")}
    script = [sys.executable, str(ROOT / "examples" / "trl_dpo.py"), str(run), *options]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (theirs,) = runs(world.outputs, "trl-dpo")
    assert theirs.name == "trl-dpo-beta0.3-s0" and check_manifest(theirs) is None
    frame = Frontier.from_runs(run, theirs).to_frame()
    points = frame[frame["method"] == "TRL DPO"]
    assert set(frame["method"]) == {"DPO", "TRL DPO"}
    assert points["step"].tolist() == [2, 3] and points["knob_value"].tolist() == [0.3, 0.3]
    assert (points["kl"] > 1e-3).all()
    # before and after are of the same prompts, with the same random numbers
    table, reference = pd.read_parquet(theirs / "samples.parquet"), world.reference_rows.query("split == 'test'")
    assert table["reference"].tolist() == reference["completion"].tolist()
    shutil.rmtree(theirs)


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a finished run: there is no such folder"):
        load_world(tmp_path / "none")
    outputs = tmp_path / "outputs"
    shutil.copytree(run.parent.parent, outputs)
    copy = outputs / "runs" / run.name
    keys = json.loads((copy / "artifacts.json").read_text())
    function = Path(config_of(copy)["reward"]["function"].partition(":")[0])
    before = function.read_text()
    try:
        function.write_text(before.replace("97", "89"))
        with pytest.raises(RunError, match="is not as .* used it"):
            load_world(copy)
    finally:
        function.write_text(before)
    model = outputs / "artifacts" / "sft" / keys["sft"] / "model" / "config.json"
    model.write_text(model.read_text() + " ")
    with pytest.raises(RunError, match="was changed after it was made"):
        load_world(copy)
    shutil.rmtree(outputs / "artifacts" / "data" / keys["data"])
    with pytest.raises(RunError, match="its artifact data/.* was removed"):
        load_world(copy)


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())
