"""The files that docs/recipes.md shows are made as it says, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.experiments import TINY

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The text under a heading."""
    parts = re.split(r"^## (.+)\n", TEXT, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def pieces() -> dict[str, str]:
    """File -> its block of the worked example; the line before a block begins with the file's name."""
    text = section("Adding an algorithm")
    files = re.findall(r"^`([\w/.]+)`[,:] [^\n]*\n\n```(?:python|yaml)\n(.*?)^```", text, re.S | re.M)
    assert len(files) == len(blocks(text, r"(?:python|yaml)"))
    return dict(files)


def run(folder: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a folder, which is also where its packages are looked for first."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )
    assert ended.returncode == code, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended


def train(folder: Path, *arguments: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a run and its summary."""
    before = set((folder / "outputs" / "runs").glob("*-s*[0-9a-f]"))
    run(folder, "train.py", *TINY, *arguments)
    (result,) = set((folder / "outputs" / "runs").glob("*-s*[0-9a-f]")) - before
    return result, json.loads((result / "summary.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the package, to which tests add files."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("imdb_rlhf", "conf", "hydra_plugins", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def add(tree: Path, name: str, text: str) -> None:
    """Make a file of this text, or put the text where the documentation says that it belongs in an existing one."""
    file = tree / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    elif name == "imdb_rlhf/algos/__init__.py":
        imported, entry = text.split("\n", 1)
        code = file.read_text()
        code = code.replace("from imdb_rlhf.algos.ppo ", f"{imported}\nfrom imdb_rlhf.algos.ppo ")
        file.write_text(code.replace('    "dpo": DPO,\n', f'    "dpo": DPO,\n{entry}'))
    else:
        file.write_text(f"{file.read_text()}\n\n{text}")


def test_the_worked_algorithm_runs_through_the_loop(tree):
    files = pieces()
    assert {name for name in files if not (ROOT / name).exists()} == {
        "imdb_rlhf/algos/slic.py",
        "conf/algo/slic.yaml",
        "tests/algos/test_slic.py",
    }
    for name, text in files.items():
        add(tree, name, text)
    for experiment in ("default", "smoke"):  # as the recipe says
        sections = tree / "conf" / "experiment_algo" / f"{experiment}.yaml"
        sections.write_text(
            sections.read_text().replace("\nunlikelihood: *pairs", "\nslic: *pairs\nunlikelihood: *pairs")
        )
    run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/algos/test_slic.py")
    values = ["algo=slic", "policy.optim.lr=1e-2"]
    values += ["policy.optim.warmup_steps=0", "keep_model=none"]
    folder, summary = train(tree, *values)
    assert folder.name.startswith("slic-delta2-s0-")
    assert (summary["algo"], summary["knob"], summary["step"]) == ("slic", {"name": "delta", "value": 2.0}, 4)
    assert summary["kl"] > 0.01  # it was trained
    refused = run(tree, "train.py", "algo=slic", "weight=-1", code=2)
    assert refused.stderr == "refused: weight=-1.0 is out of range; give a number of at least 0 and at most 1000000\n"


def test_the_own_reward_is_what_is_reported(tree):
    (code,) = blocks(section("Own reward"))
    (tree / "my_reward.py").write_text(code)
    space: dict[str, Any] = {}
    exec(code, space)
    # of 4 words all but one; none at all; 5 letters and a full stop
    assert space["plainness"](["A film without peer", "", "Plain."]) == [0.75, 0, 0]
    assert code.startswith('"""my_reward.py: ')
    assert "reward.function=my_reward.py:plainness" in section("Own reward")
    folder, summary = train(tree, "algo=sft", "reward=own", "reward.function=my_reward.py:plainness", "keep_model=none")
    rows = pd.read_parquet(folder / "samples.parquet")
    texts = [f"{prompt}{completion}" for prompt, completion in zip(rows["prompt"], rows["policy"], strict=True)]
    assert rows["policy_reward"].tolist() == pytest.approx(space["plainness"](texts))
    assert 0 < summary["reward"] < 1 and rows["policy_reward"].nunique() > 3


def test_the_own_preferences_are_trained_on(tree):
    code, load = blocks(section("Own preferences"))
    (tree / "make_pairs.py").write_text(code)
    run(tree, "make_pairs.py")
    folder, summary = train(
        tree, "data.preferences=pairs.parquet", "policy.steps=2", "policy.batch_size=2", "keep_model=none"
    )
    key = json.loads((folder / "artifacts.json").read_text())["groups"]
    groups = pd.read_parquet(tree / "outputs" / "artifacts" / "groups" / key / "groups.parquet")
    assert sorted(groups["completion"]) == sorted(
        [" is a delight.", " is a bore.", " shines in every scene.", " is lost in every scene."]
    )
    assert (summary["algo"], summary["step"]) == ("dpo", 2)
    (tree / "load.py").write_text(
        load.replace("preferences.parquet", "pairs.parquet") + "\nprint(sorted(train_dataset.features))\n"
    )
    assert run(tree, "load.py").stdout == "['chosen', 'prompt', 'rejected']\n"


@pytest.mark.slow
def test_the_own_sweep_has_the_jobs_that_its_lines_multiply_out_to(tree):
    (text,) = blocks(section("An own sweep"), "yaml")
    (tree / "sweeps" / "mine.yaml").write_text(text)
    command = ["train.py", "-m", "sweep=mine", "plan=true", f"paths.outputs={tree}/none"]
    # 3 betas x 2 seeds, 2 learning rates, best-of-N
    assert len(set(re.findall(r"runs/(\S+)", run(tree, *command).stdout))) == 9
    # a seed of the command line takes the place of the file's two
    assert len(set(re.findall(r"runs/(\S+)", run(tree, *command, "seed=3").stdout))) == 6
    assert not (tree / "none").exists()
