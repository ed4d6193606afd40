"""The whole way, tiny: what a run leaves, what is reused, and every failure as one line."""

import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from imdb_rlhf import cli
from imdb_rlhf.artifacts.files import check_manifest, in_use
from imdb_rlhf.tracking.jsonl import read

# The last token decides: so small a policy says nothing that the lexicon knows.
REWARD = """
def score(texts):
    return [sum(map(ord, text[-8:])) % 97 / 97 for text in texts]
"""
TINY = [
    "experiment=smoke",
    "trainer.threads=1",
    "trainer.device=cpu",
    "generation.max_new_tokens=8",
    "data.sft_reviews=200",
    "data.prompts.train=12",
    "data.prompts.validation=4",
    "data.prompts.test=8",
    "evaluation.bootstrap=100",
]
STEPS = ["policy.steps=3", "evaluation.every=2"]


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str


def train(*arguments: str) -> Answer:
    """`python train.py ARGUMENTS`, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; gone again afterwards
        patch.setattr(sys, "argv", ["train.py", *arguments])
        patch.setattr(cli, "_OUTCOMES", [])
        try:
            cli.main()
        except SystemExit as left:
            assert left.code is None or isinstance(left.code, int)
            code = left.code or 0
    return Answer(code, out.getvalue(), err.getvalue())


def well(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    return answer


def one_line(answer: Answer, code: int, start: str) -> str:
    assert answer.code == code, answer
    assert answer.err.startswith(start), answer.err
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n")
    return answer.err


def made(answer: Answer) -> dict[str, bool]:
    """Stage -> whether it was made, as a run says it; the others were reused."""
    words = [line.split()[:2] for line in answer.out.splitlines() if len(line.split()) > 1]
    return {stage: what == "made" for stage, what in words if what in ("made", "reused")}


def files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def runs(outputs: Path, start: str = "") -> list[Path]:
    return sorted(path for path in (outputs / "runs").glob(f"{start}*") if path.is_dir())


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def keys_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "artifacts.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics without the time that they took."""
    lines = read(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


@dataclass(frozen=True)
class First:
    """A finished run and the command that made it."""

    outputs: Path
    values: list[str]
    answer: Answer
    folder: Path

    def __call__(self, *more: str, algo: str = "dpo") -> Answer:
        """Another run beside it, which may reuse what it made."""
        steps = STEPS if algo in ("dpo", "unlikelihood", "preferred_ft") else []
        return train(*self.values, f"algo={algo}", *steps, *more)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> First:
    base = tmp_path_factory.mktemp("first")
    (base / "mine.py").write_text(REWARD)
    own = ["reward=own", f"reward.function={base}/mine.py:score"]
    values = [*TINY, *own, f"paths.outputs={base}/outputs"]
    answer = well(train(*values, *STEPS))
    (folder,) = runs(base / "outputs")
    return First(base / "outputs", values, answer, folder)


@pytest.fixture
def beside(first) -> Iterator[First]:
    """The same, and what a test adds to it is removed: artifacts that are there already stay."""
    yield first
    for folder in [*runs(first.outputs), *(first.outputs / "artifacts").glob("*/*")]:
        if folder.name not in {first.folder.name, *kept(first)}:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def kept(first: First) -> set[str]:
    """The keys of the artifacts that the first run uses."""
    return set(json.loads((first.folder / "artifacts.json").read_text()).values())


# --- what a run leaves


def test_the_stages_are_made_in_order(first):
    assert list(made(first.answer).items()) == [(name, True) for name in ("data", "sft", "groups", "reference")]
    assert first.answer.err == ""


def test_a_folder_is_named_by_what_it_is(first):
    summary = json.loads((first.folder / "summary.json").read_text())
    assert first.folder.name == f"dpo-beta0.1-s0-{summary['config_hash'][:8]}" == summary["name"]


def test_the_files_of_a_run(first):
    assert {path.name for path in first.folder.iterdir()} == {
        "config.yaml",
        "overrides.json",
        "artifacts.json",
        "metrics.jsonl",
        "evaluations.parquet",
        "samples.parquet",
        "summary.json",
        "model",
        "DONE",
    }
    assert check_manifest(first.folder) is None
    config = OmegaConf.load(first.folder / "config.yaml")
    assert (config.algo, config.beta, config.policy.steps, config.paths.outputs) == ("dpo", 0.1, 3, str(first.outputs))
    assert "${" not in (first.folder / "config.yaml").read_text()
    assert "policy.steps=3" in json.loads((first.folder / "overrides.json").read_text())
    keys = json.loads((first.folder / "artifacts.json").read_text())
    assert set(keys) == {"data", "sft", "groups", "reference"}
    assert all(check_manifest(first.outputs / "artifacts" / name / key) is None for name, key in keys.items())


def test_evaluations_have_a_row_a_sample_of_every_point(first):
    table = pd.read_parquet(first.folder / "evaluations.parquet")
    columns = "step split prompt_id sample_id reward reward_logit kl kl_k1 length finished"
    assert list(table.columns) == columns.split()
    sizes = table.groupby(["step", "split"]).size().to_dict()
    steps = sorted(table["step"].unique())
    assert steps[-2:] == [2, 3]  # every 2, and the last
    assert sizes == {(step, split): 4 * size for step in steps for split, size in (("test", 8), ("validation", 4))}
    assert table["length"].between(1, 8).all() and (table["kl"] >= -1e-3).all()


def test_samples_are_of_the_last_point_with_texts(first):
    table = pd.read_parquet(first.folder / "samples.parquet")
    last = pd.read_parquet(first.folder / "evaluations.parquet").query("step == 3 and split == 'test'")
    texts = {"prompt", "reference", "policy"}
    numbers = {"reference_reward", "policy_reward", "reference_reward_logit", "policy_reward_logit", "kl", "log_ratio"}
    assert set(table.columns) == texts | numbers | {"prompt_id", "sample_id"}
    assert table["policy_reward"].tolist() == last["reward"].tolist()
    assert table["log_ratio"].tolist() == last["kl_k1"].tolist()
    namespace: dict = {}
    exec(REWARD, namespace)
    for kind in ("reference", "policy"):
        whole = (table["prompt"] + table[kind]).tolist()
        plain = [index for index, text in enumerate(whole) if "\ufffd" not in text]  # no character cut in two
        scores = namespace["score"](whole)
        assert [table[f"{kind}_reward"][i] for i in plain] == pytest.approx([scores[i] for i in plain])


def test_the_summary_is_what_the_rows_say(first):
    summary = json.loads((first.folder / "summary.json").read_text())
    rows = pd.read_parquet(first.folder / "evaluations.parquet").query("step == 3 and split == 'test'")
    assert (summary["algo"], summary["knob"], summary["seed"]) == ("dpo", {"name": "beta", "value": 0.1}, 0)
    assert (summary["step"], summary["prompts"], summary["samples_per_prompt"]) == (3, 8, 4)
    for key in ("reward", "reward_logit", "kl", "kl_k1", "length"):
        assert summary[key] == pytest.approx(rows[key].mean())
    for key in ("reward", "kl"):
        low, high = summary[f"{key}_ci"]
        assert low <= summary[key] <= high
    assert 0 <= summary["win_rate"] <= 1 and summary["seconds"] > 0
    low, high = summary["reference"]["reward_ci"]
    assert low <= summary["reference"]["reward"] <= high


def test_metrics_have_a_row_a_step(first):
    rows = read(first.folder / "metrics.jsonl")
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3]
    assert training[0]["train/loss"] == pytest.approx(0.693147, abs=1e-3)  # log 2 while policy and reference are one
    evaluated = [row for row in rows if "eval/reward" in row]
    assert [row["step"] for row in evaluated][-2:] == [2, 3]
    summary = json.loads((first.folder / "summary.json").read_text())
    assert evaluated[-1]["eval/reward"] == pytest.approx(summary["reward"])
    for key in ("eval/kl", "eval/kl_k1", "eval/kl_per_token", "eval/length", "eval/eos_rate", "eval/distinct_2"):
        assert key in evaluated[-1]
    assert all(any(key.startswith("time/") for key in row) for row in training)


def test_the_model_loads_in_transformers(first):
    from transformers import pipeline

    generate = pipeline("text-generation", str(first.folder / "model"), device="cpu")
    (answer,) = generate("The film", max_new_tokens=4)
    assert answer["generated_text"].startswith("The film")
    assert generate.model.generation_config.top_k in (0, None)
    card = (first.folder / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "reward" in card


# --- again


def test_the_same_command_runs_nothing(first):
    before = files(first.outputs)
    answer = well(first())
    assert "finished already, not run again" in answer.out and not made(answer)
    assert files(first.outputs) == before


def test_a_plan_says_that_everything_is_there(first):
    before = files(first.outputs)
    answer = well(first("plan=true"))
    assert made(answer) == dict.fromkeys(("data", "sft", "groups", "reference"), False)
    assert "finished, would not be run again" in answer.out
    assert files(first.outputs) == before


def test_another_folder_gets_the_same_numbers(first, tmp_path):
    well(first(f"paths.outputs={tmp_path}"))
    (again,) = runs(tmp_path)
    assert again.name == first.folder.name
    assert rows_of(again) == rows_of(first.folder)
    for name in ("evaluations.parquet", "samples.parquet", "model/model.safetensors", "artifacts.json"):
        assert (again / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_a_sweep_remakes_nothing_upstream(beside):
    well(train("-m", *beside.values, *STEPS, "beta=0.5,2"))
    logs = [log.read_text() for log in sorted(beside.outputs.glob("sweeps/beta-*/logs/*beta*.log"))]
    assert [(log.count(" reused "), log.count(" made in ")) for log in logs] == [(4, 0), (4, 0)]
    assert [path.name.rpartition("-s0")[0] for path in runs(beside.outputs)] == [
        "dpo-beta0.1",
        "dpo-beta0.5",
        "dpo-beta2",
    ]
    numbers = [json.loads((path / "summary.json").read_text()) for path in runs(beside.outputs)]
    assert len({summary["kl"] for summary in numbers}) == 3
    assert len({summary["reference"]["reward"] for summary in numbers}) == 1


def test_another_seed_of_the_policy_keeps_what_is_upstream(beside):
    answer = well(beside("seed=1"))
    assert set(made(answer)) == {"data", "sft", "groups", "reference"} and not any(made(answer).values())
    (other,) = runs(beside.outputs, "dpo-beta0.1-s1-")
    assert (other / "metrics.jsonl").read_text() != (beside.folder / "metrics.jsonl").read_text()


def test_sft_is_the_reference_evaluated(beside):
    answer = well(beside(algo="sft"))
    assert made(answer) == {"data": False, "sft": False, "reference": False}
    (folder,) = runs(beside.outputs, "sft-s0-")
    summary, dpo = summary_of(folder), summary_of(beside.folder)
    assert set(dpo) - set(summary) == set() and not {"win_rate_base", "base", "ppo", "reward_model"} & set(dpo)
    assert (summary["algo"], summary["knob"], summary["step"]) == ("sft", None, 0)
    assert summary["kl"] == pytest.approx(0, abs=1e-6)
    assert summary["reward"] == dpo["reference"]["reward"] == summary["reference"]["reward"]
    assert check_manifest(folder) is None and (folder / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("keep", ["best", "none"])
def test_which_model_is_kept(beside, keep):
    well(beside(f"keep_model={keep}", "seed=2"))
    (folder,) = runs(beside.outputs, "dpo-beta0.1-s2-")
    assert (folder / "model").exists() is (keep == "best") and not (folder / "best").exists()
    if keep == "best":
        table = pd.read_parquet(folder / "evaluations.parquet").query("split == 'validation'")
        step = json.loads((folder / "summary.json").read_text())["step"]
        rewards = table.groupby("step")["reward"].mean()
        assert rewards[step] == pytest.approx(rewards.max())


# --- folders that are in use, or not what they were


def test_a_folder_in_use_is_refused(first):
    before = files(first.folder)
    with in_use(first.folder):
        said = one_line(first(), 1, f"failed: {first.folder} is in use by another process")
    assert "wait" in said and files(first.folder) == before


def test_a_finished_folder_that_was_changed_is_told(first, tmp_path):
    shutil.copytree(first.outputs, tmp_path / "outputs")
    copy = tmp_path / "outputs" / "runs" / first.folder.name
    with (copy / "summary.json").open("a") as file:
        file.write(" ")
    said = one_line(first(f"paths.outputs={tmp_path}/outputs"), 1, f"failed: {copy} was changed after it was finished")
    assert "summary.json has" in said and "move it away" in said


def test_a_damaged_artifact_is_made_again(first, tmp_path):
    shutil.copytree(first.outputs / "artifacts", tmp_path / "artifacts")
    key = json.loads((first.folder / "artifacts.json").read_text())["groups"]
    (tmp_path / "artifacts" / "groups" / key / "groups.parquet").write_bytes(b"")
    answer = well(first(f"paths.outputs={tmp_path}"))
    assert made(answer) == {"data": False, "sft": False, "groups": True, "reference": False}
    assert (tmp_path / "artifacts" / "groups" / f"{key}.damaged-1").is_dir()
    (again,) = runs(tmp_path)
    assert (again / "samples.parquet").read_bytes() == (first.folder / "samples.parquet").read_bytes()


# --- own rewards


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [float('nan')] * len(texts)", "reward.function score gave nan for the text "),
        ("return [1.0]", "reward.function score gave shape (1,) for "),
        ("raise ValueError('two\\nlines')", "reward.function score raised ValueError: two lines"),
    ],
)
def test_an_own_reward_that_is_wrong(beside, tmp_path, body, said):
    (tmp_path / "mine.py").write_text(f"def score(texts):\n    {body}\n")
    one_line(beside(f"reward.function={tmp_path}/mine.py:score"), 1, f"failed: {said}")
    assert {path.name for path in (beside.outputs / "artifacts" / "groups").iterdir() if path.is_dir()} <= kept(beside)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("none.py:score", "reward.function=none.py:score: no file none.py"),
        ("mine", "reward.function=mine is not of the form file.py:name"),
    ],
)
def test_an_own_reward_that_is_not_there(first, tmp_path, function, said):
    one_line(first(f"reward.function={function}", f"paths.outputs={tmp_path}/new"), 1, f"failed: {said}")
    assert not (tmp_path / "new").exists()


# --- preferences and references that exist


def preferences(first: First) -> Path:
    key = json.loads((first.folder / "artifacts.json").read_text())["groups"]
    return first.outputs / "artifacts" / "groups" / key / "preferences.parquet"


def test_preferences_from_a_file(beside, tmp_path):
    table = pd.read_parquet(preferences(beside))
    assert list(table.columns) == ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert (table["score_chosen"] > table["score_rejected"]).all() and len(table) > 20
    table[["prompt", "chosen", "rejected"]].to_parquet(tmp_path / "mine.parquet")
    answer = well(beside(f"data.preferences={tmp_path}/mine.parquet"))
    assert made(answer) == {"data": False, "sft": False, "groups": True, "reference": False}
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    key = json.loads((folder / "artifacts.json").read_text())["groups"]
    report = json.loads((beside.outputs / "artifacts" / "groups" / key / "report.json").read_text())
    assert report["pairs"] + sum(report["dropped"].values()) == len(table)
    assert json.loads((folder / "summary.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (None, ": no such file; give a parquet with prompt, chosen, rejected"),
        (["prompt", "chosen"], " has no column 'rejected' (it has prompt, chosen)"),
        ([], " has no column 'prompt'"),
    ],
)
def test_preferences_that_cannot_be_used(first, tmp_path, columns, said):
    file = tmp_path / "mine.parquet"
    if columns is not None:
        pd.read_parquet(preferences(first))[columns].to_parquet(file)
    answer = first(f"data.preferences={file}", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: data.preferences={file}{said}")
    assert not (tmp_path / "new").exists()


def test_preferences_that_are_no_texts(beside, tmp_path):
    table = pd.read_parquet(preferences(beside))
    table.assign(chosen=range(len(table))).to_parquet(tmp_path / "mine.parquet")
    said = f"failed: data.preferences={tmp_path}/mine.parquet row 0: chosen is not a string"
    one_line(beside(f"data.preferences={tmp_path}/mine.parquet"), 1, said)


def test_a_reference_that_exists(beside):
    answer = well(beside(f"sft.path={beside.folder}/model"))
    assert "sft" not in made(answer) and made(answer)["groups"]
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    assert "sft" not in json.loads((folder / "artifacts.json").read_text())
    assert read(folder / "metrics.jsonl")[0]["train/loss"] == pytest.approx(0.693147, abs=1e-3)


def test_a_pretrained_model_from_a_folder(beside, tmp_path):
    model = [f"model.path={beside.folder}/model", "model.attention=eager"]
    scratch = [value for value in beside.values if not value.startswith("experiment=")]
    values = ["model=gpt2", "logger=none", "sft.epochs=1", "sft.batch_size=32", "trainer.precision=float32"]
    answer = well(train(*scratch, *values, *model, "algo=sft"))
    assert made(answer) == {"data": True, "sft": True, "reference": True, "base": True}
    (folder,) = runs(beside.outputs, "sft-s0-")
    assert json.loads((folder / "model" / "config.json").read_text())["n_embd"] == 32
    # the model before SFT is one more policy to win against
    summary, stages = summary_of(folder), {}
    for name in ("reference", "base"):
        table = pd.read_parquet(beside.outputs / "artifacts" / name / keys_of(folder)[name] / "evaluation.parquet")
        stages[name] = logits_of(table)
    wins = won(stages["reference"], stages["base"])
    assert summary["win_rate_base"] == pytest.approx(wins.mean())
    assert summary["win_rate_base_ci"][0] <= summary["win_rate_base"] <= summary["win_rate_base_ci"][1]
    assert summary["base"]["kl"] > 0 and summary["win_rate"] == pytest.approx(
        won(stages["reference"], stages["reference"]).mean()
    )
    assert "against base" in answer.out
    more = ["algo=best_of_n", "best_of_n.selector=ground_truth", "n=8", "reservoir.samples=8"]
    answer = well(train(*scratch, *values, *model, *more))
    assert made(answer) == {"data": False, "sft": False, "reference": False, "base": False, "reservoir": True}
    (best,) = runs(beside.outputs, "best_of_n-")
    table = pd.read_parquet(
        beside.outputs / "artifacts" / "reservoir" / keys_of(best)["reservoir"] / "reservoir.parquet"
    )
    highest = logits_of(table).max(1, keepdims=True)  # 8 of 8: the best of all
    assert summary_of(best)["win_rate_base"] == pytest.approx(won(highest, stages["base"]).mean())
    assert summary_of(best)["win_rate"] == pytest.approx(won(highest, stages["reference"]).mean())


# --- every method


PPO = ["ppo.episodes=16", "ppo.batch_size=8", "ppo.minibatch_size=4", "ppo.epochs=2", "evaluation.every=1"]
# The reservoir says where to begin: the smoke experiment's own reward is one that there is nothing to learn from.
PPO += ["target_kl=0.05", "ppo.normalize=true", "ppo.initial_kl_coefficient=null", "ppo.optim.lr=1e-2"]
TRUE = ["algo=best_of_n", "best_of_n.selector=ground_truth"]
MOVING = [*STEPS, "policy.optim.lr=1e-3", "policy.optim.warmup_steps=0"]
METHODS = {
    "unlikelihood": ["algo=unlikelihood", "alpha=0.1", *MOVING],
    "preferred_ft": ["algo=preferred_ft", *MOVING],
    "ipo": ["algo=dpo", "dpo.loss=ipo", "dpo.average_logprobs=true", *MOVING],
    "plackett_luce": ["algo=dpo", "dpo.loss=plackett_luce", *MOVING],
    "reward_model": ["algo=reward_model"],
    "ppo": ["algo=ppo", *PPO],
    "best_of_n": ["algo=best_of_n", "n=4"],
    "ppo_true": ["algo=ppo", "ppo.reward=ground_truth", *PPO],
    "best_of_1": [*TRUE, "n=1"],
    "best_of_2": [*TRUE, "n=2"],
    "best_of_8": [*TRUE, "n=8"],
}
LEARNED = {"reward_model", "ppo", "best_of_n"}
ALWAYS = {"config.yaml", "overrides.json", "artifacts.json", "metrics.jsonl", "summary.json", "DONE"}


@dataclass(frozen=True)
class Done:
    """A finished run of a method."""

    command: list[str]
    answer: Answer
    folder: Path
    outputs: Path

    @property
    def summary(self) -> dict[str, Any]:
        return summary_of(self.folder)

    def artifact(self, name: str) -> Path:
        """The folder of an artifact that it used."""
        return self.outputs / "artifacts" / name / keys_of(self.folder)[name]

    def again(self, *more: str) -> Answer:
        return train(*self.command, *more)


@pytest.fixture(scope="module")
def methods(first, tmp_path_factory) -> dict[str, Done]:
    """A run of every method, one after the other, on what the first run made."""
    outputs = tmp_path_factory.mktemp("methods") / "outputs"
    shutil.copytree(first.outputs / "artifacts", outputs / "artifacts")
    found = {}
    for name, values in METHODS.items():
        command, before = [*first.values, *values, f"paths.outputs={outputs}"], set(runs(outputs))
        answer = well(train(*command))
        (folder,) = set(runs(outputs)) - before
        found[name] = Done(command, answer, folder, outputs)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_files_of_every_method(methods, name):
    done = methods[name]
    own = {"evaluations.parquet", "samples.parquet", "model"}
    if name.startswith("best_of"):
        own = {"evaluations.parquet", "samples.parquet", "curve.parquet"}  # its model is the reference
    elif name == "reward_model":
        own = {"scores.parquet", "model"}
    assert {path.name for path in done.folder.iterdir()} == ALWAYS | own
    assert check_manifest(done.folder) is None
    assert done.answer.err == ""
    summary = done.summary
    assert summary["name"] == done.folder.name and summary["config_hash"].startswith(done.folder.name[-8:])
    assert str(done.folder) in done.answer.out and "nan" not in done.answer.out


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_method_is_not_run_again(methods, name):
    done = methods[name]
    before = files(done.outputs)
    answer = well(done.again())
    assert "finished already, not run again" in answer.out and not made(answer)
    assert files(done.outputs) == before
    plan = well(done.again("plan=true"))
    assert list(made(plan)) == list(made(done.answer)) and not any(made(plan).values())
    assert "finished, would not be run again" in plan.out and files(done.outputs) == before


def test_what_folders_and_variants_are_called(methods):
    found = {name: (done.folder.name.rpartition("-s0-")[0], done.summary["variant"]) for name, done in methods.items()}
    assert found == {
        "unlikelihood": ("unlikelihood-alpha0.1", None),
        "preferred_ft": ("preferred_ft", None),
        "ipo": ("dpo-beta0.1", "ipo"),
        "plackett_luce": ("dpo-beta0.1", "plackett_luce"),
        "reward_model": ("reward_model", None),
        "ppo": ("ppo-target_kl0.05", "learned, small"),
        "best_of_n": ("best_of_n-n4", "learned"),
        "ppo_true": ("ppo-target_kl0.05", "ground_truth, small"),
        "best_of_1": ("best_of_n-n1", "ground_truth"),
        "best_of_2": ("best_of_n-n2", "ground_truth"),
        "best_of_8": ("best_of_n-n8", "ground_truth"),
    }


def test_methods_share_what_is_upstream(methods):
    common = dict.fromkeys(("data", "sft", "groups", "reference"), False)
    for name in ("unlikelihood", "preferred_ft", "ipo", "plackett_luce"):
        assert made(methods[name].answer) == common
    assert made(methods["reward_model"].answer) == common | {"reward_model": True}
    more = {"reservoir": True, "learned_scores": True}
    assert made(methods["ppo"].answer) == common | {"reward_model": False} | more
    assert made(methods["best_of_n"].answer) == common | dict.fromkeys(("reward_model", *more), False)
    for name in ("ppo_true", "best_of_1", "best_of_2", "best_of_8"):  # the truth needs no model of itself
        assert made(methods[name].answer) == dict.fromkeys(("data", "sft", "reference", "reservoir"), False)
    for stage in ("reward_model", "reservoir", "learned_scores", "reference"):
        used = {keys_of(done.folder)[stage] for done in methods.values() if stage in keys_of(done.folder)}
        assert len(used) == 1, stage


@pytest.mark.parametrize("name", ["unlikelihood", "preferred_ft", "ipo", "plackett_luce", "ppo", "ppo_true"])
def test_the_summary_of_a_policy_is_what_its_rows_say(methods, name):
    done = methods[name]
    summary, table = done.summary, pd.read_parquet(done.folder / "evaluations.parquet")
    rows = table[(table["step"] == summary["step"]) & (table["split"] == "test")]
    for key in ("reward", "reward_logit", "kl", "kl_k1", "length"):
        assert summary[key] == pytest.approx(rows[key].mean())
    assert summary["kl"] > 1e-4 and 0 <= summary["win_rate"] <= 1
    assert not {"win_rate_base", "base", "curve", "kl_is"} & set(summary)
    assert ("ppo" in summary) == name.startswith("ppo")
    assert ("reward_model" in summary) == (name in LEARNED)


@pytest.mark.parametrize("name", ["unlikelihood", "preferred_ft", "ppo", "reward_model"])
def test_the_model_of_a_method_loads_in_transformers(methods, name):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = methods[name].folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The film", return_tensors="pt").input_ids
    kind = AutoModelForSequenceClassification if name == "reward_model" else AutoModelForCausalLM
    logits = kind.from_pretrained(folder)(ids).logits
    assert logits.shape == ((1, 1) if name == "reward_model" else (*ids.shape, len(tokenizer)))
    assert logits.isfinite().all()


# --- the reward model


def test_the_reward_model_is_held_to_account(methods):
    done = methods["reward_model"]
    summary, scores = done.summary, pd.read_parquet(done.folder / "scores.parquet")
    assert list(scores.columns) == ["prompt_id", "sample_id", "reward", "reward_logit", "score"]
    assert len(scores) == 8 * 4
    normalisation = json.loads((done.folder / "model" / "normalisation.json").read_text())
    assert set(normalisation) == {"mean", "std"} and normalisation["std"] > 0
    assert len(summary["reliability"]) == 10
    assert sum(cell["count"] for cell in summary["reliability"]) == 2 * summary["test_pairs"]  # in both orders
    assert summary["pearson"] == pytest.approx(np.corrcoef(scores["score"], scores["reward_logit"])[0, 1])
    # accuracy: the mean over prompts of the share of pairs that the scores put in the order of the rewards
    shares = []
    for _, group in scores.groupby("prompt_id"):
        values = group[["reward_logit", "score"]].to_numpy()
        pairs = [(a, b) for a in values for b in values if a[0] > b[0]]
        if pairs:
            shares.append(np.mean([(a[1] > b[1]) + 0.5 * (a[1] == b[1]) for a, b in pairs]))
    assert summary["accuracy"] == pytest.approx(np.mean(shares), abs=0.02)  # equal texts of other rewards are no pair
    low, high = summary["accuracy_ci"]
    assert low <= summary["accuracy"] <= high
    assert not {"reward", "kl", "win_rate", "reference"} & set(summary)
    rows = read(done.folder / "metrics.jsonl")
    assert {"train/loss", "eval/accuracy"} <= {key for row in rows for key in row}
    assert "p(first wins)" in done.answer.out and "accuracy" in done.answer.out


def test_who_uses_a_reward_model_tells_of_it(methods):
    account = methods["reward_model"].summary
    for name in ("ppo", "best_of_n"):
        told = methods[name].summary["reward_model"]
        assert told == {key: account[key] for key in ("accuracy", "accuracy_ci", "pearson")}
        assert "reward model" in methods[name].answer.out


# --- best-of-N


def logits_of(table: pd.DataFrame) -> np.ndarray:
    """(prompts, samples) true log-odds of the test prompts of a table."""
    part = table[table["split"] == "test"].sort_values(["prompt_id", "sample_id"])
    return part["reward_logit"].to_numpy().reshape(part["prompt_id"].nunique(), -1)


def won(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(prompts,) the share of all pairs of samples that the first wins; ties count half."""
    gaps = mine[:, :, None] - theirs[:, None, :]
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean((1, 2))


@pytest.mark.parametrize("name", ["best_of_n", "best_of_1", "best_of_2", "best_of_8"])
def test_the_curve_of_best_of_n(methods, name):
    done = methods[name]
    curve, summary = pd.read_parquet(done.folder / "curve.parquet"), done.summary
    assert list(curve.columns) == ["n", "prompt_id", "reward", "reward_logit", "kl", "kl_atom"]
    assert curve.groupby("n").size().to_dict() == dict.fromkeys(range(1, 9), 8)
    n = summary["knob"]["value"]
    here = curve[curve["n"] == n]
    assert summary["reward"] == pytest.approx(here["reward"].mean())
    assert summary["kl"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert set(summary["curve"]) == {"1", "2", "4", "8"} and summary["reservoir"] == 8
    assert summary["curve"][str(n)]["reward"] == pytest.approx(summary["reward"])
    assert (summary["kl_is"], summary["kl_k1"], summary["kl_per_token"]) == ("upper bound", None, None)
    assert "at most" in done.answer.out


def test_the_best_of_one_is_the_reference(methods):
    done = methods["best_of_1"]
    table = pd.read_parquet(done.artifact("reservoir") / "reservoir.parquet")
    rows, summary = table[table["split"] == "test"], done.summary
    assert summary["reward"] == pytest.approx(rows["reward"].mean())
    assert summary["reward_logit"] == pytest.approx(rows["reward_logit"].mean())
    assert summary["kl"] == 0 and summary["kl_ci"] == [0, 0] and summary["kl_atom"] == pytest.approx(0)


def test_the_best_of_all_is_the_highest(methods):
    table = pd.read_parquet(methods["best_of_8"].artifact("reservoir") / "reservoir.parquet")
    rewards = table[table["split"] == "test"].groupby("prompt_id")["reward"].max()
    assert methods["best_of_8"].summary["reward"] == pytest.approx(rewards.mean())


def test_more_to_choose_from_wins_more(methods):
    summaries = [methods[f"best_of_{n}"].summary for n in (1, 2, 8)]
    for key in ("win_rate", "reward", "reward_logit", "kl"):
        assert summaries[0][key] < summaries[1][key] < summaries[2][key], key
    reference = pd.read_parquet(methods["best_of_8"].artifact("reference") / "evaluation.parquet")
    reservoir = pd.read_parquet(methods["best_of_8"].artifact("reservoir") / "reservoir.parquet")
    mine, theirs = logits_of(reservoir), logits_of(reference)
    assert summaries[0]["win_rate"] == pytest.approx(won(mine, theirs).mean())  # any of the 8
    assert summaries[2]["win_rate"] == pytest.approx(won(mine.max(1, keepdims=True), theirs).mean())
    for summary in summaries:
        assert summary["win_rate_ci"][0] <= summary["win_rate"] <= summary["win_rate_ci"][1]


def test_draws_are_of_disjoint_blocks(methods):
    done = methods["best_of_n"]
    table = pd.read_parquet(done.folder / "evaluations.parquet")
    assert table.groupby(["split", "prompt_id"]).size().unique().tolist() == [2]  # 8 samples are two blocks of 4
    reservoir = pd.read_parquet(done.artifact("reservoir") / "reservoir.parquet")
    scores = pd.read_parquet(done.artifact("learned_scores") / "scores.parquet")
    rows = reservoir.merge(scores, on=["split", "prompt_id", "sample_id"])
    for (split, prompt), drawn in table.groupby(["split", "prompt_id"]):
        own = rows[(rows["split"] == split) & (rows["prompt_id"] == prompt)].sort_values("sample_id")
        best = [own.iloc[at : at + 4].sort_values("learned", kind="stable").iloc[-1] for at in (0, 4)]
        assert drawn["reward"].tolist() == [row["reward"] for row in best]
    samples = pd.read_parquet(done.folder / "samples.parquet")
    assert len(samples) == 8 * 2 and samples["log_ratio"].isna().all() and (samples["policy"] != "").any()


# --- PPO


@pytest.mark.parametrize("name", ["ppo", "ppo_true"])
def test_ppo_reports_what_its_controller_did(methods, name):
    done = methods[name]
    report, rows = done.summary["ppo"], rows_of(done.folder)
    assert set(report) == {
        "target_kl",
        "kl_last_fifth",
        "on_target",
        "kl_coefficient",
        "first_kl_coefficient",
        "at_floor",
        "at_ceiling",
        "episodes",
        "skipped_steps",
    }
    assert (report["target_kl"], report["episodes"], report["skipped_steps"]) == (0.05, 16, 0)
    # two batches of 8 in minibatches of 4, twice: four steps each
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8] and done.summary["step"] == 8
    assert [row["ppo/kl_coefficient"] for row in rows] == [report["first_kl_coefficient"], report["kl_coefficient"]]
    assert rows[0]["ppo/kl"] == pytest.approx(0, abs=1e-3)  # the policy is the reference yet
    assert rows[-1]["ppo/kl"] == pytest.approx(report["kl_last_fifth"])  # of two batches, one
    assert ("eval/learned_reward" in rows[0]) == (name == "ppo")
    assert "target KL" in done.answer.out


@pytest.mark.parametrize("name", ["ppo", "ppo_true"])
def test_ppo_begins_where_the_optimum_has_the_target(methods, name):
    done = methods[name]
    rows = pd.read_parquet(done.artifact("reservoir") / "reservoir.parquet")
    if name == "ppo":
        scores = pd.read_parquet(done.artifact("learned_scores") / "scores.parquet")
        rows = rows.merge(scores, on=["split", "prompt_id", "sample_id"])
    part = rows[rows["split"] == "validation"].sort_values(["prompt_id", "sample_id"])
    values = part["learned" if name == "ppo" else "reward"].to_numpy().reshape(4, 8)
    if name == "ppo_true":
        values = (values - values.mean()) / values.std()
    weights = np.exp(values / done.summary["ppo"]["first_kl_coefficient"])
    weights /= weights.sum(1, keepdims=True)
    assert (weights * np.log(8 * weights)).sum(1).mean() == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("name", ["ppo", "ppo_true"])
def test_ppo_stopped_amid_a_batch_goes_on_to_the_same_numbers(methods, tmp_path, monkeypatch, name):
    from imdb_rlhf.algos.ppo import PPO as Algorithm

    straight, elsewhere = methods[name], f"paths.outputs={tmp_path}/outputs"
    shutil.copytree(straight.outputs / "artifacts", tmp_path / "outputs" / "artifacts")
    loss, calls = Algorithm.loss, []

    def interrupted(self, module, part):
        calls.append(part)
        if len(calls) == 6:  # the second batch of episodes is half used
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, module, part)

    with monkeypatch.context() as patch:
        patch.setattr(Algorithm, "loss", interrupted)
        one_line(straight.again(elsewhere), 75, "stopped: ppo at step 6 of 8; run the same command to go on")
    (folder,) = runs(tmp_path / "outputs")
    assert (folder / "checkpoint" / "DONE").exists() and not (folder / "DONE").exists()
    answer = well(straight.again(elsewhere))
    assert "resumed at step 6" in answer.out and not any(made(answer).values())
    assert folder.name == straight.folder.name and not (folder / "checkpoint").exists()
    assert rows_of(folder) == rows_of(straight.folder)
    for file in ("evaluations.parquet", "samples.parquet", "model/model.safetensors"):
        assert (folder / file).read_bytes() == (straight.folder / file).read_bytes(), file
    assert summary_of(folder)["ppo"] == straight.summary["ppo"]


# --- what may be chosen with any method


@pytest.mark.parametrize(("name", "keep"), [("unlikelihood", "none"), ("ppo", "best"), ("reward_model", "none")])
def test_which_model_of_a_method_is_kept(methods, name, keep):
    done, before = methods[name], set(runs(methods[name].outputs))
    well(done.again(f"keep_model={keep}"))
    (folder,) = set(runs(done.outputs)) - before
    assert (folder / "model").exists() is (keep == "best")
    assert not (folder / "best").exists() and check_manifest(folder) is None
    if keep == "best":
        table = pd.read_parquet(folder / "evaluations.parquet").query("split == 'validation'")
        rewards = table.groupby("step")["reward"].mean()
        assert rewards[summary_of(folder)["step"]] == pytest.approx(rewards.max())
    else:
        assert rows_of(folder) == rows_of(done.folder)
    shutil.rmtree(folder)


def test_preferences_from_a_file_for_every_method(beside, tmp_path):
    file = tmp_path / "mine.parquet"
    pd.read_parquet(preferences(beside))[["prompt", "chosen", "rejected"]].to_parquet(file)
    groups_made = []
    for algo in ("unlikelihood", "preferred_ft", "reward_model"):
        answer = well(beside(f"data.preferences={file}", algo=algo))
        groups_made.append(made(answer)["groups"])
        (folder,) = runs(beside.outputs, algo)
        assert check_manifest(folder) is None and (folder / "model").exists()
        report = json.loads(
            (beside.outputs / "artifacts" / "groups" / keys_of(folder)["groups"] / "report.json").read_text()
        )
        if algo == "reward_model":
            pairs = summary_of(folder)["pairs"] + summary_of(folder)["validation_pairs"]
            assert pairs <= report["pairs"] and summary_of(folder)["validation_pairs"] > 0
        else:
            assert f"{report['pairs']} pairs, 3 steps" in answer.out
    assert groups_made == [True, False, False]


CONSTANT = """
def score(texts):
    return [0.25] * len(texts)
"""


def test_a_reward_that_says_nothing(beside, tmp_path):
    (tmp_path / "mine.py").write_text(CONSTANT)
    constant = [f"reward.function={tmp_path}/mine.py:score"]
    for algo in ("dpo", "unlikelihood", "preferred_ft", "reward_model", "ppo", "best_of_n"):
        said = one_line(beside(*constant, "pairs.ties=drop", algo=algo), 1, "failed: ")
        assert " no preference pair is left of " in said and " equal rewards" in said
        assert said.endswith("use more prompts or another reward\n")
    best = [*constant, "reward_model.objective=best_of_k", "pairs.ties=drop"]
    assert " no choice is left of 12 groups " in one_line(beside(*best, algo="reward_model"), 1, "failed: ")
    true = [*constant, "ppo.reward=ground_truth", *PPO]
    one_line(beside(*true, algo="ppo"), 1, "failed: ppo.normalize needs true rewards that differ; set ppo.normalize=f")
    said = one_line(beside(*true, "ppo.normalize=false", algo="ppo"), 1, "failed: ppo: all rewards of each prompt are")
    assert "set ppo.initial_kl_coefficient" in said


def test_an_account_of_a_reward_that_says_nothing(beside, tmp_path):
    (tmp_path / "mine.py").write_text(CONSTANT)
    answer = well(beside(f"reward.function={tmp_path}/mine.py:score", algo="best_of_n"))  # a coin decides who wins
    (folder,) = runs(beside.outputs, "best_of_n-")
    summary = summary_of(folder)
    assert summary["reward_model"] == {"accuracy": None, "accuracy_ci": None, "pearson": None}
    assert (summary["reward"], summary["win_rate"]) == (0.25, 0.5)
    assert "test pair accuracy undefined" in answer.out


# --- the mirror


class Mirror:
    """What a run tells W&B."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.summary = arguments, dict[str, Any]()
        self.rows: list[dict[str, Any]] = []
        self.tables: dict[str, tuple[Any, Any]] = {}
        self.histograms: dict[str, tuple[Any, int]] = {}
        MIRRORS.append(self)

    def log(self, row: Any) -> None:
        self.rows.append(row)

    def replay(self, rows: Any) -> None:
        self.rows += list(rows)

    def histogram(self, key: str, values: Any, step: int) -> None:
        self.histograms[key] = (values, step)

    def table(self, key: str, columns: Any, rows: Any) -> None:
        self.tables[key] = (columns, rows)

    def finish(self, summary: Any, exit_code: int = 0) -> None:
        self.summary = summary


MIRRORS: list[Mirror] = []


@pytest.mark.parametrize("name", ["unlikelihood", "ppo", "best_of_n", "reward_model"])
def test_a_mirror_is_told_the_same_now_and_later(methods, tmp_path, monkeypatch, name):
    done = methods[name]
    MIRRORS.clear()
    monkeypatch.setattr("imdb_rlhf.runs.show.WandbTracker", Mirror)
    shutil.copytree(done.outputs / "artifacts", tmp_path / "artifacts")
    well(done.again("logger=wandb", f"paths.outputs={tmp_path}"))  # as it runs
    well(done.again("logger=wandb"))  # a finished one
    now, later = MIRRORS
    for mirror in (now, later):
        assert mirror.arguments["name"] == done.folder.name and mirror.arguments["job_type"] == done.summary["algo"]
        assert [{k: v for k, v in row.items() if not k.startswith("time/")} for row in mirror.rows] == rows_of(
            done.folder
        )
        expected = {key: value for key, value in done.summary.items() if key != "reliability"}
        same = {key for key in expected if not key.endswith("seconds")}
        assert {key: mirror.summary[key] for key in same} == {key: expected[key] for key in same}
        json.dumps(mirror.arguments["config"])
    assert {key: len(rows) for key, (_, rows) in now.tables.items()} == (
        {"reliability": 10} if name == "reward_model" else {"samples": 8}
    )
    assert {key: columns for key, (columns, _) in now.tables.items()} == {k: c for k, (c, _) in later.tables.items()}
    assert set(later.histograms) <= set(now.histograms)
    for key, (values, step) in later.histograms.items():
        assert now.histograms[key][1] == step and sorted(now.histograms[key][0]) == sorted(values)


# --- models that cannot be used


def without_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return " holds no weights"


def without_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return " holds no tokenizer"


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return " holds no config.json"


def damaged_weights(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"no weights")
    return ": its weights cannot be loaded"


def another_vocabulary(folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    entries = len(tokenizer)
    tokenizer.add_tokens([f"another{number}" for number in range(7)])
    tokenizer.save_pretrained(folder)
    return f": the model has {entries} entries and its tokenizer {entries + 7}"


DAMAGES: list[Callable[[Path], str]] = [
    without_weights,
    without_tokenizer,
    without_config,
    damaged_weights,
    another_vocabulary,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("key", ["sft.path", "model.path"])
def test_a_model_folder_that_cannot_be_used(beside, tmp_path, damage, key):
    folder = tmp_path / "model"
    shutil.copytree(beside.folder / "model", folder)
    said = damage(folder)
    if key == "sft.path":
        answer = beside(f"sft.path={folder}")
    else:
        scratch = [value for value in beside.values if not value.startswith("experiment=")]
        answer = train(*scratch, "logger=none", "model=gpt2", "model.attention=eager", f"model.path={folder}")
    one_line(answer, 1, f"failed: {key}={folder}{said}")


def test_a_model_folder_that_is_not_there(first, tmp_path):
    answer = first(f"sft.path={tmp_path}/none", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: sft.path={tmp_path}/none: no such folder")
    assert not (tmp_path / "new").exists()


def test_rows_longer_than_a_model_reads(first, tmp_path):
    context = json.loads((first.folder / "model" / "config.json").read_text())["n_positions"]
    values = [f"sft.path={first.folder}/model", f"generation.max_new_tokens={context}"]
    said = (
        f"refused: data.prompts.max_tokens=8 + generation.max_new_tokens={context} is longer than the {context} tokens"
    )
    one_line(first(*values, f"paths.outputs={tmp_path}/new"), 2, said)
    assert not (tmp_path / "new").exists()


# --- real reviews and a reward that is trained


def review(split: str, number: int) -> str:
    opinion = "a wonderful and moving film that I loved" if number % 2 else "a dull and lifeless film that I hated"
    return f"Number {number} of {split} is {opinion}.<br /><br />The story of {number} people goes on for some time."


@pytest.fixture
def reviews(tmp_path) -> Path:
    """Parquet files in the Hub's layout."""
    folder = tmp_path / "reviews"
    (folder / "plain_text").mkdir(parents=True)
    for split in ("train", "test", "unsupervised"):
        texts = [review(split, number) for number in range(80)]
        labels = [-1] * 80 if split == "unsupervised" else [number % 2 for number in range(80)]
        frame = pd.DataFrame({"text": [*texts, texts[0], ""], "label": [*labels, labels[0], labels[0]]})
        frame.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


# The smoke experiment changes keys that generated reviews alone have.
MODEL = ["model.layers=1", "model.width=32", "model.heads=2", "model.tokenizer_size=400", "model.vocabulary=400"]
PLAIN = [value for value in TINY if not value.startswith("experiment=")]
PLAIN += [
    *MODEL,
    "logger=none",
    "trainer.precision=float32",
    "sft.epochs=1",
    "policy.batch_size=16",
    "pairs.ties=random",
    "pairs.min_margin=0",
]
REAL = [*PLAIN, "data=imdb", "data.sft_reviews=60"]


def test_real_reviews_and_a_two_label_reward(reviews, tmp_path):
    reward = ["reward=two_label", "reward.held_out=20", "reward.epochs=1", "reward.batch_size=16"]
    values = [*REAL, *reward, *STEPS, "pairs.min_margin=0", f"data.path={reviews}", f"paths.outputs={tmp_path}/outputs"]
    answer = well(train(*values))
    stages = ["data", "sft", "labelled", "two_label", "groups", "reference"]
    assert list(made(answer).items()) == [(name, True) for name in stages]
    assert "3 duplicate and 3 empty reviews left out" in answer.out
    (folder,) = runs(tmp_path / "outputs")
    assert check_manifest(folder) is None
    keys = json.loads((folder / "artifacts.json").read_text())
    artifact = tmp_path / "outputs" / "artifacts" / "two_label" / keys["two_label"]
    report = json.loads((artifact / "report.json").read_text())
    assert report["held_out"] == 20 and 0 <= report["accuracy"] <= 1 and 0 <= report["ngram_accuracy"] <= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["reward_name"], summary["data_name"]) == ("two_label", "imdb")
    assert 0 < summary["reward"] < 1
    # the folder may move: what counts is what is in it
    moved = reviews.rename(tmp_path / "moved")
    again = well(train(*values, f"data.path={moved}"))
    assert "finished already" in again.out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "data.path={path}: no such folder; give one that exists"),
        ("empty", "data.path={path} holds no parquet; expected plain_text/"),
        ("column", "{path}/plain_text/train-00000-of-00001.parquet has no column 'text' (it has "),
        (
            "label",
            "{path}/plain_text/train-00000-of-00001.parquet row 3: label 2 is not one of [-1, 0, 1]; mend the file",
        ),
        ("few", "data.prompts.test=8 is more than the 5 usable reviews left in test of {path}; ask for fewer"),
        ("blank", "data.prompts.test=8 is more than the 0 usable reviews left in test of {path}; ask for fewer"),
    ],
)
def test_a_data_folder_that_cannot_be_used(reviews, tmp_path, damage, said):
    train_file, test_file = (reviews / "plain_text" / f"{s}-00000-of-00001.parquet" for s in ("train", "test"))
    frame = pd.read_parquet(train_file)
    if damage == "missing":
        shutil.rmtree(reviews)
    elif damage == "empty":
        shutil.rmtree(reviews / "plain_text")
    elif damage == "column":
        frame.rename(columns={"text": "review"}).to_parquet(train_file)
    elif damage == "label":
        frame.assign(label=[0, 1, 0, 2, *[0] * (len(frame) - 4)]).to_parquet(train_file)
    elif damage == "few":
        frame.head(5).to_parquet(test_file)
    elif damage == "blank":
        frame.assign(text=None).to_parquet(test_file)
    answer = train(*REAL, f"data.path={reviews}", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: {said.format(path=reviews)}")
    assert not runs(tmp_path / "new") or not (runs(tmp_path / "new")[0] / "DONE").exists()


@pytest.mark.parametrize(
    ("values", "key"),
    [(["data=imdb"], "data.path"), (["model=gpt2"], "model.path"), (["reward=siebert"], "reward.path")],
)
def test_the_hub_out_of_reach(tmp_path, monkeypatch, values, key):
    nowhere = "http://127.0.0.1:9"  # nothing listens on the discard port
    for name, value in {"ENDPOINT": nowhere, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    tiny = [value for value in PLAIN if not value.startswith("model.")]
    said = one_line(train(*tiny, *values, f"paths.outputs={tmp_path}/new"), 1, "failed: the Hub cannot be reached for")
    assert f"set {key}=DIR" in said


def test_a_preset_is_chosen_and_not_named(tmp_path):
    one_line(
        train("algo=ppo", "ppo.preset=trl_2023", f"paths.outputs={tmp_path}/o"), 2, "refused: ppo.preset only names"
    )
    assert not list(tmp_path.iterdir())
