"""A run's folder: the files that it holds, and when it is refused."""

import json
import shutil

import pandas as pd
import pytest
from omegaconf import OmegaConf

from imdb_rlhf.artifacts.files import check_manifest, in_use
from imdb_rlhf.tracking.jsonl import read
from tests.experiments import (
    REWARD,
    files,
    one_line,
    runs,
    stages_made,
    well,
)

# --- what a run leaves


def test_the_stages_are_made_in_order(first):
    assert list(stages_made(first.answer).items()) == [(name, True) for name in ("data", "sft", "groups", "reference")]
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
        "report.html",
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


def test_evaluations_have_a_row_per_sample_of_every_point(first):
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


def test_metrics_have_a_row_per_step(first):
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
    assert "\nlibrary_name: transformers\n" in card and "- type: reward" in card


# --- folders that are in use, or not what they were


def test_a_folder_in_use_is_refused(first):
    before = files(first.folder)
    with in_use(first.folder):
        message = one_line(first(), 1, f"failed: {first.folder} is in use by another process")
    assert "wait" in message and files(first.folder) == before


def test_a_finished_folder_that_was_changed_is_told(first, tmp_path):
    shutil.copytree(first.outputs, tmp_path / "outputs")
    copy = tmp_path / "outputs" / "runs" / first.folder.name
    with (copy / "summary.json").open("a") as file:
        file.write(" ")
    message = one_line(
        first(f"paths.outputs={tmp_path}/outputs"), 1, f"failed: {copy} was changed after it was finished"
    )
    assert "summary.json has" in message and "move it away" in message


def test_a_damaged_artifact_is_made_again(first, tmp_path):
    shutil.copytree(first.outputs / "artifacts", tmp_path / "artifacts")
    key = json.loads((first.folder / "artifacts.json").read_text())["groups"]
    (tmp_path / "artifacts" / "groups" / key / "groups.parquet").write_bytes(b"")
    answer = well(first(f"paths.outputs={tmp_path}"))
    assert stages_made(answer) == {"data": False, "sft": False, "groups": True, "reference": False}
    assert (tmp_path / "artifacts" / "groups" / f"{key}.damaged-1").is_dir()
    (again,) = runs(tmp_path)
    assert (again / "samples.parquet").read_bytes() == (first.folder / "samples.parquet").read_bytes()
