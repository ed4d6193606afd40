"""Runs of policies that are decoded from several models, from the command line to `load_policy`."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from imdb_rlhf import load_policy
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows
from tests.command import train
from tests.experiments import REWARD, TINY, keys_of, one_line, runs, stages_made, summary_of, well

VALUE = ["value.reward=ground_truth", "value.batch_size=8", "value.epochs=3.0"]
GUIDED = ["algo=guided", *VALUE]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What all runs here share."""
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "own.py").write_text(REWARD)
    return [*TINY, f"paths.outputs={folder / 'outputs'}", "reward=own", f"reward.function={folder / 'own.py'}:score"]


@pytest.fixture(scope="module")
def outputs(command: list[str]) -> Path:
    return Path(next(word for word in command if word.startswith("paths.outputs=")).partition("=")[2])


@pytest.fixture(scope="module")
def guided(command: list[str], outputs: Path) -> Path:
    well(train(*command, *GUIDED, "beta=0.2"))
    (folder,) = runs(outputs, "guided-beta0.2")
    return folder


def test_one_value_serves_every_beta(command: list[str], outputs: Path, guided: Path) -> None:
    made = stages_made(well(train(*command, *GUIDED, "beta=2")))
    assert made == dict.fromkeys(("data", "sft", "groups", "reference", "value"), False) | {"guided": True}
    (mild,) = runs(outputs, "guided-beta2-")
    strong, weak = summary_of(guided), summary_of(mild)
    assert strong["knob"] == {"name": "beta", "value": 0.2} and strong["variant"] == "ground_truth, 4 samples"
    assert 0 < weak["kl"] < 0.1 * strong["kl"]
    assert strong["value"].keys() == {"completions", "steps", "held_out_loss", "constant_loss"}
    assert strong["value"]["completions"] == 48 and strong["value"]["steps"] == 18


def test_the_seed_is_the_values_and_more_samples_are_its_own(command: list[str], outputs: Path, guided: Path) -> None:
    made = stages_made(well(train(*command, *GUIDED, "beta=0.2", "seed=1", "value.samples=6", "keep_model=none")))
    assert made["value"] and made["value_samples"] and "groups" not in made
    (folder,) = runs(outputs, "guided-beta0.2-s1")
    assert summary_of(folder)["variant"] == "ground_truth, 6 samples" and not (folder / "model").exists()
    tables = [
        pd.read_parquet(outputs / "artifacts" / stage / keys_of(run)[stage] / "groups.parquet")
        for run, stage in ((guided, "groups"), (folder, "value_samples"))
    ]
    assert len(tables[1]) == 72
    first = tables[1][tables[1]["sample_id"] < 4].reset_index(drop=True)
    assert first["completion"].tolist() == tables[0]["completion"].tolist()  # the same random numbers


def test_a_shared_network_leaves_the_head_alone(command: list[str], outputs: Path, guided: Path) -> None:
    well(train(*command, *GUIDED, "beta=0.2", "value.network=shared"))
    (folder,) = [run for run in runs(outputs, "guided-beta0.2-s0") if run != guided]
    assert summary_of(folder)["variant"] == "ground_truth, 4 samples, shared"
    assert {path.name for path in (folder / "model" / "value").iterdir()} == {"value.json", "head.safetensors"}
    assert len(load_policy(folder).generate(["This"], samples=2)[0]) == 2


def assert_the_same_policy(folder: Path) -> None:
    """What `load_policy` loads has the KL that the run reports of its own samples."""
    policy = load_policy(folder / "model")
    rows = pd.read_parquet(folder / "evaluations.parquet")
    artifact = folder.parent.parent / "artifacts"
    stage = next(name for name in ("guided", "realigned") if name in keys_of(folder))
    texts = pd.read_parquet(artifact / stage / keys_of(folder)[stage] / "evaluation.parquet").head(8)
    tokens = Rows.of([list(ids) for ids in texts["prompt_ids"]], [list(ids) for ids in texts["completion_ids"]])
    compared = compare(policy.next_token, policy.next_token.models[0], tokens, policy.temperature)
    assert compared.kl.numpy() == pytest.approx(rows["kl"].head(8).to_numpy(), rel=1e-4, abs=1e-5)
    assert float(compared.kl.mean()) > 0


def test_a_guided_policy_is_left_as_two_models_that_load(guided: Path) -> None:
    assert {path.name for path in (guided / "model").iterdir()} == {"README.md", "decoding.json", "reference", "value"}
    facts = json.loads((guided / "model" / "decoding.json").read_text())
    assert facts == {"beta": 0.2, "temperature": 1.0, "max_new_tokens": 8}
    assert "load_policy" in (guided / "model" / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(guided / "model" / "reference")
    assert_the_same_policy(guided)


def test_it_generates_by_seed_whatever_is_beside_a_prompt(guided: Path) -> None:
    policy = load_policy(guided)  # the run's folder does as well
    both = policy.generate(["This film", "An actor who"], samples=3, seed=5)
    assert [len(texts) for texts in both] == [3, 3] and len(set(both[0])) > 1
    assert policy.generate(["This film"], samples=3, seed=5, batch_size=1)[0] == both[0]
    assert policy.generate(["This film"], samples=3, seed=6)[0] != both[0]
    with pytest.raises(ConfigError, match="samples=0 is below 1"):
        policy.generate(["This film"], samples=0)
    with pytest.raises(ConfigError, match=r"prompts\[0\] is empty"):
        policy.generate([""])


def test_a_damaged_folder_is_refused_in_one_line(guided: Path, tmp_path: Path) -> None:
    (tmp_path / "decoding.json").write_text("{}")
    with pytest.raises(RunError, match="decoding.json cannot be read"):
        load_policy(tmp_path)


def test_a_student_is_one_model_and_is_realigned(command: list[str], outputs: Path, guided: Path) -> None:
    steps = ["policy.steps=3", "policy.batch_size=8", "evaluation.every=2", "policy.optim.lr=1e-2"]
    made = stages_made(well(train(*command, "algo=distill", *VALUE, "beta=0.2", *steps)))
    assert made == dict.fromkeys(("data", "sft", "groups", "reference", "value"), False)
    (student,) = runs(outputs, "distill-")
    assert summary_of(student)["distill"] == {"divergence": "forward"}
    AutoModelForCausalLM.from_pretrained(student / "model")
    assert len(load_policy(student).generate(["This"])[0][0]) > 0
    # the run's folder, and halfway to it
    well(train(*command, "algo=realign", f"realign.path={student}", "lam=0.5"))
    well(train(*command, "algo=realign", f"realign.path={student}/model", "lam=1"))
    (half,), (whole,) = runs(outputs, "realign-lam0.5"), runs(outputs, "realign-lam1")
    assert summary_of(half)["variant"] == summary_of(whole)["variant"] == student.name
    assert 0 < summary_of(half)["kl"] < summary_of(whole)["kl"]
    assert summary_of(whole)["kl"] == pytest.approx(summary_of(student)["kl"], rel=1e-3)
    assert_the_same_policy(half)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["value.network=shared", "value.init=base"], "value.network=shared reads the reference's own states"),
        (["data.preferences=a.parquet"], "algo=guided learns its value from the reference's own completions"),
        (["groups.eos=appended"], "groups.eos=appended is not how the reference samples"),
        (["value.samples=1"], "value.samples=1 is out of range"),
        (["beta=0"], "beta=0.0 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(words: list[str], message: str, tmp_path: Path) -> None:
    answer: Any = train("experiment=smoke", "algo=guided", f"paths.outputs={tmp_path}/outputs", *words)
    assert message in one_line(answer, 2, "")
    assert not (tmp_path / "outputs").exists()


def test_rewards_that_are_all_equal_are_refused(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("def score(texts):\n    return [0.5 for text in texts]\n")
    answer = train(*command, f"reward.function={tmp_path}/same.py:score", *GUIDED)
    assert "all completions have the same reward" in one_line(answer, 1, "failed: value: ")
