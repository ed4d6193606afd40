"""Every kind of run, tiny: what it leaves, and that its numbers are what its rows say."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.kinds import kind_of
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.tracking.jsonl import read
from imdb_rlhf.training.runtime import Runtime
from tests.command import run_of
from tests.experiments import (
    ALWAYS,
    LEARNED,
    METHODS,
    PPO,
    files,
    keys_of,
    logits_of,
    one_line,
    preferences,
    rows_of,
    runs,
    stages_made,
    summary_of,
    well,
    win_rates,
)

# --- every method


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
    assert f"report       {done.folder}/report.html" in done.answer.out


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_method_is_not_run_again(methods, name):
    done = methods[name]
    before = files(done.outputs)
    answer = well(done.again())
    assert "finished already, not run again" in answer.out and not stages_made(answer)
    assert files(done.outputs) == before
    plan = well(done.again("plan=true"))
    assert list(stages_made(plan)) == list(stages_made(done.answer)) and not any(stages_made(plan).values())
    assert "finished, would not be run again" in plan.out and files(done.outputs) == before
    assert plan.out.endswith("\nabout 0 MB of disk needed for what is not there\n")


@pytest.mark.parametrize("name", ["ppo", "reward_model"])
def test_a_run_that_has_no_report_is_finished_and_gets_one(methods, tmp_path, name):
    """As one that an earlier version left, whose seal knows of none."""
    done = methods[name]
    shutil.copytree(done.outputs, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "runs" / done.folder.name
    assert "report.html" not in json.loads((folder / "DONE").read_text())["files"]
    first = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    (folder / ".report.html.1.part").write_text("a write that was killed")
    answer = well(done.again(f"paths.outputs={tmp_path}/outputs"))
    assert "finished already, not run again" in answer.out and not stages_made(answer)
    assert f"report       {folder}/report.html" in answer.out and check_manifest(folder) is None
    again = (folder / "report.html").read_text().replace(f"{tmp_path}/outputs", str(done.outputs))
    assert again == first  # but for where it is


def test_a_report_that_cannot_be_drawn_costs_a_line(methods, tmp_path, monkeypatch):
    def broken(folder):
        raise ModuleNotFoundError("No module named 'pandas.plotting'")

    done = methods["best_of_1"]
    shutil.copytree(done.outputs, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "runs" / done.folder.name
    (folder / "report.html").unlink()
    monkeypatch.setattr("imdb_rlhf.frontier.report.run_report.write", broken)
    answer = well(done.again(f"paths.outputs={tmp_path}/outputs"))
    assert "no report.html: ModuleNotFoundError: No module named" in answer.out + answer.err
    assert not (folder / "report.html").exists() and f"report       {folder}" not in answer.out


def test_what_folders_and_variants_are_called(methods):
    names = {name: (done.folder.name.rpartition("-s0-")[0], done.summary["variant"]) for name, done in methods.items()}
    assert names == {
        "unlikelihood": ("unlikelihood-alpha0.1", None),
        "preferred_ft": ("preferred_ft", None),
        "ipo": ("dpo-beta0.1", "ipo"),
        "plackett_luce": ("dpo-beta0.1", "plackett_luce"),
        "kto": ("kto-beta0.1", None),
        "bon_sft": ("bon_sft-n4", "learned"),
        "reinforce": ("reinforce-beta0.1", "learned"),
        "rloo": ("rloo-beta0.1", "learned"),
        "grpo": ("grpo-beta0.1", "learned"),
        "online_dpo": ("online_dpo-beta0.1", "learned"),
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
    for name in ("unlikelihood", "preferred_ft", "ipo", "plackett_luce", "kto"):
        assert stages_made(methods[name].answer) == common
    assert stages_made(methods["reward_model"].answer) == common | {"reward_model": True}
    assert stages_made(methods["bon_sft"].answer) == common | {"reward_model": False}
    more = {"reservoir": True, "learned_scores": True}
    assert stages_made(methods["ppo"].answer) == common | {"reward_model": False} | more
    assert stages_made(methods["best_of_n"].answer) == common | dict.fromkeys(("reward_model", *more), False)
    for name in ("ppo_true", "best_of_1", "best_of_2", "best_of_8"):  # the truth needs no model of itself
        assert stages_made(methods[name].answer) == dict.fromkeys(("data", "sft", "reference", "reservoir"), False)
    for stage in ("reward_model", "reservoir", "learned_scores", "reference"):
        used = {keys_of(done.folder)[stage] for done in methods.values() if stage in keys_of(done.folder)}
        assert len(used) == 1, stage


@pytest.mark.parametrize(
    "name", ["unlikelihood", "preferred_ft", "ipo", "plackett_luce", "kto", "bon_sft", "ppo", "ppo_true"]
)
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


# --- the disk that it takes


@pytest.mark.parametrize(
    ("overrides", "final", "peak"),
    [  # bytes per parameter: 4 of a weight, 4 of each moment; two checkpoints exist while one is written
        (["algo=dpo"], 4, 2 * 8),  # RMSprop has one moment
        (["algo=dpo", "optim@policy.optim=adamw"], 4, 2 * 12),
        (["algo=dpo", "keep_model=none"], 0, 2 * 8),
        (["algo=dpo", "keep_model=best"], 4, 2 * 8 + 4),
        (["algo=dpo", "trainer.checkpoint_every=0"], 4, 4),
        (["algo=ppo", "ppo.value=own"], 4, 2 * 2 * 12),  # the value network too
        (["algo=ppo", "ppo.value=shared"], 4, 2 * 12),
        (["algo=sft"], 4, 4),
        (["algo=sft", "keep_model=none"], 0, 0),
        (["algo=reward_model"], 4, 4),
        (["algo=reward_model", "keep_model=none"], 0, 0),
        (["algo=best_of_n"], 0, 0),
    ],
)
def test_the_disk_of_a_run(tmp_path, overrides, final, peak):
    run = run_of("trainer.threads=1", f"paths.outputs={tmp_path}", *overrides)
    pipeline = Pipeline(run, Runtime(run.trainer), Console(quiet=True))
    parameters = pipeline.get(Base).parameters()
    assert kind_of(run)(RunFolder(pipeline, "", [])).size() == (final * parameters, peak * parameters)


def test_disk_adds_up_to_its_peak():
    first, second = Disk(final=10, peak=30), Disk(final=5, peak=25)
    assert first.then(second) == (15, 35)  # 10 stay while the second takes 25
    assert second.then(first) == (15, 35)
    assert Disk(1, 50).then(second) == (6, 50)


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
    best, other = logits_of(reservoir), logits_of(reference)
    assert summaries[0]["win_rate"] == pytest.approx(win_rates(best, other).mean())  # any of the 8
    assert summaries[2]["win_rate"] == pytest.approx(win_rates(best.max(1, keepdims=True), other).mean())
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
        "missed_because",
        "episodes",
        "skipped_steps",
    }
    assert (report["target_kl"], report["episodes"], report["skipped_steps"]) == (0.05, 16, 0)
    # two batches of 8 in minibatches of 4, twice: four steps each
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8] and done.summary["step"] == 8
    # the policy is the reference yet, so nothing holds it back
    assert [row["ppo/kl_coefficient"] for row in rows] == [1e-4, report["kl_coefficient"]]
    assert report["on_target"] == (report["missed_because"] is None)
    assert rows[0]["ppo/kl"] == pytest.approx(0, abs=1e-3)  # the policy is the reference yet
    assert rows[-1]["ppo/kl_cv"] == pytest.approx(report["kl_last_fifth"])  # of two batches, one
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
    assert "resumed at step 6" in answer.out and not any(stages_made(answer).values())
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
    file = tmp_path / "own.parquet"
    pd.read_parquet(preferences(beside))[["prompt", "chosen", "rejected"]].to_parquet(file)
    groups_made = []
    for algo in ("unlikelihood", "preferred_ft", "reward_model"):
        answer = well(beside(f"data.preferences={file}", algo=algo))
        groups_made.append(stages_made(answer)["groups"])
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
    (tmp_path / "own.py").write_text(CONSTANT)
    constant = [f"reward.function={tmp_path}/own.py:score"]
    for algo in ("dpo", "unlikelihood", "preferred_ft", "reward_model", "ppo", "best_of_n"):
        message = one_line(beside(*constant, "pairs.ties=drop", algo=algo), 1, "failed: ")
        assert " no preference pair is left of " in message and " equal rewards" in message
        assert message.endswith("; set pairs.ties=random pairs.min_margin=0, use more prompts or another reward\n")
    best = [*constant, "reward_model.objective=best_of_k", "pairs.ties=drop"]
    assert " no choice is left of 12 groups " in one_line(beside(*best, algo="reward_model"), 1, "failed: ")
    true = [*constant, "ppo.reward=ground_truth", *PPO]
    one_line(beside(*true, algo="ppo"), 1, "failed: ppo.normalize needs true rewards that differ; set ppo.normalize=f")
    message = one_line(
        beside(*true, "ppo.normalize=false", algo="ppo"), 1, "failed: ppo: all rewards of each prompt are"
    )
    assert "set ppo.initial_kl_coefficient" in message


def test_an_account_of_a_reward_that_says_nothing(beside, tmp_path):
    (tmp_path / "own.py").write_text(CONSTANT)
    answer = well(beside(f"reward.function={tmp_path}/own.py:score", algo="best_of_n"))  # a coin decides who wins
    (folder,) = runs(beside.outputs, "best_of_n-")
    summary = summary_of(folder)
    assert summary["reward_model"] == {"accuracy": None, "accuracy_ci": None, "pearson": None}
    assert (summary["reward"], summary["win_rate"]) == (0.25, 0.5)
    assert "test pair accuracy undefined" in answer.out
