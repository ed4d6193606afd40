"""The stages of a run: made, reused, made again; and every failure as one line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.data.preference_groups import from_preferences
from imdb_rlhf.data.preferences import PreferenceData
from imdb_rlhf.runs import folder as folders
from imdb_rlhf.tracking.jsonl import read
from tests.command import train
from tests.experiments import (
    PLAIN,
    PPO,
    STEPS,
    files,
    keys_of,
    logits_of,
    one_line,
    preferences,
    reused_keys,
    rows_of,
    runs,
    stages_made,
    summary_of,
    well,
    win_rates,
)

# --- again


def test_the_same_command_runs_nothing(first):
    before = files(first.outputs)
    answer = well(first())
    assert "finished already, not run again" in answer.out and not stages_made(answer)
    assert files(first.outputs) == before


def test_a_plan_says_that_everything_is_there(first):
    before = files(first.outputs)
    answer = well(first("plan=true"))
    assert stages_made(answer) == dict.fromkeys(("data", "sft", "groups", "reference"), False)
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
    well(train("-m", *beside.values, *STEPS, "beta=0.5,2", "baselines=false"))
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
    assert set(stages_made(answer)) == {"data", "sft", "groups", "reference"} and not any(stages_made(answer).values())
    (other,) = runs(beside.outputs, "dpo-beta0.1-s1-")
    assert (other / "metrics.jsonl").read_text() != (beside.folder / "metrics.jsonl").read_text()


def test_sft_is_the_reference_evaluated(beside):
    answer = well(beside(algo="sft"))
    assert stages_made(answer) == {"data": False, "sft": False, "reference": False}
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


# --- own rewards


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [float('nan')] * len(texts)", "reward.function score gave nan for the text "),
        ("return [1.0]", "reward.function score gave shape (1,) for "),
        ("raise ValueError('two\\nlines')", "reward.function score raised ValueError: two lines"),
    ],
)
def test_an_own_reward_that_is_wrong(beside, tmp_path, body, message):
    (tmp_path / "own.py").write_text(f"def score(texts):\n    {body}\n")
    one_line(beside(f"reward.function={tmp_path}/own.py:score"), 1, f"failed: {message}")
    assert {path.name for path in (beside.outputs / "artifacts" / "groups").iterdir() if path.is_dir()} <= reused_keys(
        beside
    )


def test_an_own_reward_that_is_not_there(first, tmp_path):
    message = "failed: reward.function=none.py:score: no file none.py"
    one_line(first("reward.function=none.py:score", f"paths.outputs={tmp_path}/new"), 1, message)
    assert not (tmp_path / "new").exists()


# --- a run is what its files hold, wherever they are


def test_a_reward_that_was_moved_is_the_same(beside, tmp_path):
    shutil.copy(beside.folder.parents[2] / "own.py", tmp_path / "moved.py")
    answer = well(beside(f"reward.function={tmp_path}/moved.py:score"))
    assert "finished already, not run again" in answer.out and not stages_made(answer)


def test_preferences_that_were_moved_are_the_same(beside, tmp_path):
    pd.read_parquet(preferences(beside)).to_parquet(tmp_path / "one.parquet")
    well(beside(f"data.preferences={tmp_path}/one.parquet"))
    shutil.move(tmp_path / "one.parquet", tmp_path / "two.parquet")
    answer = well(beside(f"data.preferences={tmp_path}/two.parquet"))
    assert "finished already, not run again" in answer.out and not stages_made(answer)
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    assert summary_of(folder)["preferences"] == PreferenceData(str(tmp_path / "two.parquet"), None, "train").content()


def test_a_reference_and_a_model_that_were_moved_are_the_same(beside, tmp_path):
    for key, algo, more in (("sft.path", "dpo", []), ("own_model.path", "own_model", ["own_model.name=mine"])):
        for place in ("one", "two"):
            shutil.copytree(beside.folder / "model", tmp_path / key / place)
            answer = well(beside(f"{key}={tmp_path}/{key}/{place}", *more, algo=algo))
            assert ("finished already, not run again" in answer.out) == (place == "two")


def test_the_batch_size_of_preferences_is_in_the_key_of_their_log_probs(beside, tmp_path):
    pd.read_parquet(preferences(beside)).to_parquet(tmp_path / "own.parquet")
    keys = set()
    for size in (2, 16):
        well(beside(f"data.preferences={tmp_path}/own.parquet", f"groups.batch_size={size}", "keep_model=none"))
        keys |= {keys_of(path)["groups"] for path in runs(beside.outputs, "dpo-")}
    assert len(keys) == 3  # the first run's, and two of the file's


# --- what a key cannot know


def test_a_module_that_an_own_reward_imports_is_in_the_keys(beside, tmp_path):
    """Another helper is another reward: nothing that the old one scored is used."""
    (tmp_path / "own.py").write_text("import own_helper\n\ndef score(texts):\n    return own_helper.score(texts)\n")
    own = f"reward.function={tmp_path}/own.py:score"
    made: list[Path] = []
    for factor in (1, 2):
        (tmp_path / "own_helper.py").write_text(
            f"def score(texts):\n    return [{factor} * (sum(map(ord, text[-8:])) % 97) / 97 for text in texts]\n"
        )
        before = set(runs(beside.outputs))
        answer = well(beside(own))
        assert stages_made(answer) == {"data": False, "sft": False, "groups": True, "reference": True}
        made += set(runs(beside.outputs)) - before
    first, second = map(summary_of, made)
    assert second["reference"]["reward"] == pytest.approx(2 * first["reference"]["reward"])


def test_an_own_reward_that_gives_other_scores_than_are_stored(beside, tmp_path):
    (tmp_path / "own.py").write_text(
        f"def score(texts):\n    factor = float(open({str(tmp_path / 'factor')!r}).read())\n"
        "    return [factor * (sum(map(ord, text[-8:])) % 97) for text in texts]\n"
    )
    own = f"reward.function={tmp_path}/own.py:score"
    (tmp_path / "factor").write_text("1")
    well(beside(own))
    assert not stages_made(well(beside(own, "beta=2")))["groups"]  # the same scores are used again
    (tmp_path / "factor").write_text("2")
    message = one_line(beside(own), 1, "failed: reward=own gives ")  # the finished run itself
    assert f"{beside.outputs}/runs/" in message
    message = one_line(beside(own, "beta=3"), 1, "failed: reward=own gives ")
    assert "artifacts/groups/" in message and message.rstrip().endswith("name the file in reward.files")
    named = f"reward.files=[{tmp_path / 'factor'}]"
    assert stages_made(well(beside(own, named, "beta=3")))["groups"]


def test_what_changes_while_it_is_read_is_not_sealed(beside, tmp_path, monkeypatch):
    file = tmp_path / "own.parquet"
    table = pd.read_parquet(preferences(beside))
    table.to_parquet(file)

    def read_late(*arguments, **others):
        found = from_preferences(*arguments, **others)
        table.iloc[::-1].to_parquet(file)
        return found

    monkeypatch.setattr("imdb_rlhf.data.preference_groups.from_preferences", read_late)
    before = set((beside.outputs / "artifacts" / "groups").iterdir())
    message = one_line(beside(f"data.preferences={file}"), 1, "failed: groups: source.file changed while it was read")
    assert message.rstrip().endswith("run again")
    left = set((beside.outputs / "artifacts" / "groups").iterdir()) - before
    assert {path.suffix for path in left} <= {".lock"}
    monkeypatch.undo()
    well(beside(f"data.preferences={file}"))


def test_a_run_whose_reward_changes_on_the_way_is_not_finished(beside, tmp_path, monkeypatch):
    own = tmp_path / "own.py"
    own.write_text("def score(texts):\n    return [sum(map(ord, text[-8:])) % 97 / 97 for text in texts]\n")
    summarised = folders.RunFolder.seal

    def sealed_late(self):
        own.write_text(own.read_text() + "# changed\n")
        summarised(self)

    monkeypatch.setattr(folders.RunFolder, "seal", sealed_late)
    one_line(beside(f"reward.function={own}:score"), 1, "failed: groups: source.reward.own changed while it was read")
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    assert not (folder / "DONE").exists()


# --- a policy that is trained in a precision of its own

BF16 = ["trainer.precision=bf16", "policy.optim.warmup_steps=1", "keep_model=none"]


def at_first(folder: Path) -> list[float]:
    """The first step's loss minus ln 2, and its log-ratios: all 0 but for rounding, as the policy is the reference."""
    row = next(row for row in rows_of(folder) if row.get("step") == 1)
    return [row["train/loss"] - math.log(2), row["train/chosen_log_ratio"], row["train/rejected_log_ratio"]]


def test_groups_are_shared_and_their_log_probs_are_those_of_the_training(beside):
    """In float32 the first loss is ln 2 within 1e-4 of beta, though the groups were sampled and scored in bf16."""
    plain = well(beside(*BF16))
    (in_bf16,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    assert "rescored" not in stages_made(plain)
    answer = well(beside(*BF16, "policy.precision=float32", "beta=1"))
    made = stages_made(answer)
    assert made == {"data": False, "sft": False, "groups": False, "rescored": True, "reference": False}
    (in_float32,) = runs(beside.outputs, "dpo-beta1-")
    assert max(map(abs, at_first(in_float32))) < 2e-5
    keys = keys_of(in_float32)
    assert keys["groups"] == keys_of(in_bf16)["groups"]
    groups, again = (
        pd.read_parquet(beside.outputs / "artifacts" / name / keys[name] / "groups.parquet")
        for name in ("groups", "rescored")
    )
    pd.testing.assert_frame_equal(groups.drop(columns="ref_logprob"), again.drop(columns="ref_logprob"))
    rounding = (groups["ref_logprob"] - again["ref_logprob"]).abs()
    assert rounding.mean() > 2e-4  # what would be a log-ratio
    # another method shares both
    answer = well(beside(*BF16, "policy.precision=float32", algo="unlikelihood"))
    assert not any(stages_made(answer).values()) and "rescored" in stages_made(answer)


def test_preferences_of_a_file_are_rescored_too(beside, tmp_path):
    pd.read_parquet(preferences(beside)).to_parquet(tmp_path / "own.parquet")
    words = [f"data.preferences={tmp_path}/own.parquet", *BF16, "policy.precision=float32", "beta=1"]
    assert stages_made(well(beside(*words)))["rescored"]
    (folder,) = runs(beside.outputs, "dpo-beta1-")
    assert max(map(abs, at_first(folder))) < 2e-5


def test_ppo_samples_scores_and_trains_in_its_own_precision(beside):
    """The groups, which it does not use here, are not rescored; its numbers are not those of bf16."""
    words = [*PPO, "ppo.reward=ground_truth", "trainer.precision=bf16", "keep_model=none"]
    well(beside(*words, algo="ppo"))
    (in_bf16,) = runs(beside.outputs, "ppo-")
    made = stages_made(well(beside(*words, "ppo.precision=float32", algo="ppo")))
    assert made == dict.fromkeys(("data", "sft", "reference", "reservoir"), False)
    (in_float32,) = set(runs(beside.outputs, "ppo-")) - {in_bf16}
    ratios = [next(row["ppo/approx_kl"] for row in rows_of(path) if row["step"] == 4) for path in (in_bf16, in_float32)]
    assert ratios[0] != ratios[1]


def test_the_trainers_own_precision_needs_no_other_log_probs(beside):
    answer = well(beside("policy.precision=float32", "plan=true"))
    assert "rescored" not in answer.out
    assert beside.folder.name not in answer.out  # a run of its own, as any key that is set makes one


# --- preferences and references that exist


def test_preferences_from_a_file(beside, tmp_path):
    table = pd.read_parquet(preferences(beside))
    assert list(table.columns) == ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert (table["score_chosen"] > table["score_rejected"]).all() and len(table) > 20
    table[["prompt", "chosen", "rejected"]].to_parquet(tmp_path / "own.parquet")
    answer = well(beside(f"data.preferences={tmp_path}/own.parquet"))
    assert stages_made(answer) == {"data": False, "sft": False, "groups": True, "reference": False}
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    key = json.loads((folder / "artifacts.json").read_text())["groups"]
    report = json.loads((beside.outputs / "artifacts" / "groups" / key / "report.json").read_text())
    assert report["pairs"] + sum(report["dropped"].values()) == len(table)
    assert json.loads((folder / "summary.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "data.preferences={file}: no such file; give one that holds chosen and rejected"),
        (["prompt", "chosen"], "{file} has no column 'rejected' (it has prompt, chosen)"),
        (["prompt"], "{file} has no column 'chosen' (it has prompt)"),
    ],
)
def test_preferences_that_cannot_be_used(first, tmp_path, columns, message):
    file = tmp_path / "own.parquet"
    if columns is not None:
        pd.read_parquet(preferences(first))[columns].to_parquet(file)
    answer = first(f"data.preferences={file}", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: {message.format(file=file)}")
    assert not (tmp_path / "new").exists()


def test_preferences_of_which_no_pair_is_left(first, tmp_path):
    """Before any training: with a tokenizer that exists before the first stage, else as soon as it is trained."""
    (tmp_path / "own.jsonl").write_text('{"prompt": "A film", "chosen": " is", "rejected": " is"}\n')
    values = [f"data.preferences={tmp_path}/own.jsonl", f"paths.outputs={tmp_path}/new"]
    one_line(first(*values, f"sft.path={first.folder / 'model'}"), 1, "failed: data.preferences=")
    assert not (tmp_path / "new").exists()
    answer = first(*values)
    assert answer.code == 1 and "no pair is left of 1 (1 same completion" in answer.err
    assert {path.name for path in (tmp_path / "new" / "artifacts").iterdir()} == {"data"}


def test_sft_that_diverged_is_called_that(first, tmp_path):
    answer = first("sft.optim.lr=1000", f"paths.outputs={tmp_path}/new")
    assert answer.code == 1 and "nats per token, and guessing has " in answer.err
    assert not list((tmp_path / "new" / "artifacts").glob("sft/*/DONE"))


def test_preferences_that_are_no_texts(beside, tmp_path):
    table = pd.read_parquet(preferences(beside))
    table.assign(chosen=range(len(table))).to_parquet(tmp_path / "own.parquet")
    message = f"failed: {tmp_path}/own.parquet row 0: chosen is not a string"
    one_line(beside(f"data.preferences={tmp_path}/own.parquet"), 1, message)


def test_a_reference_that_exists(beside):
    answer = well(beside(f"sft.path={beside.folder}/model"))
    assert "sft" not in stages_made(answer) and stages_made(answer)["groups"]
    (folder,) = [path for path in runs(beside.outputs, "dpo-") if path != beside.folder]
    assert "sft" not in json.loads((folder / "artifacts.json").read_text())
    assert read(folder / "metrics.jsonl")[0]["train/loss"] == pytest.approx(0.693147, abs=1e-3)


def test_a_pretrained_model_from_a_folder(beside, tmp_path):
    model = [f"model.path={beside.folder}/model", "model.attention=eager"]
    scratch = [value for value in beside.values if not value.startswith("experiment=")]
    values = ["model=gpt2", "logger=none", "sft.epochs=1", "sft.batch_size=32", "trainer.precision=float32"]
    answer = well(train(*scratch, *values, *model, "algo=sft"))
    assert stages_made(answer) == {"checked": True, "data": True, "sft": True, "reference": True, "base": True}
    (folder,) = runs(beside.outputs, "sft-s0-")
    assert json.loads((folder / "model" / "config.json").read_text())["n_embd"] == 32
    # the model before SFT is one more policy to win against
    summary, stages = summary_of(folder), {}
    for name in ("reference", "base"):
        table = pd.read_parquet(beside.outputs / "artifacts" / name / keys_of(folder)[name] / "evaluation.parquet")
        stages[name] = logits_of(table)
    wins = win_rates(stages["reference"], stages["base"])
    assert summary["win_rate_base"] == pytest.approx(wins.mean())
    assert summary["win_rate_base_ci"][0] <= summary["win_rate_base"] <= summary["win_rate_base_ci"][1]
    assert summary["base"]["kl"] > 0 and summary["win_rate"] == pytest.approx(
        win_rates(stages["reference"], stages["reference"]).mean()
    )
    assert "against base" in answer.out
    more = ["algo=best_of_n", "best_of_n.selector=ground_truth", "n=8", "reservoir.samples=8"]
    answer = well(train(*scratch, *values, *model, *more))
    upstream = dict.fromkeys(("checked", "data", "sft", "reference", "base"), False)
    assert stages_made(answer) == upstream | {"reservoir": True}
    (best,) = runs(beside.outputs, "best_of_n-")
    table = pd.read_parquet(
        beside.outputs / "artifacts" / "reservoir" / keys_of(best)["reservoir"] / "reservoir.parquet"
    )
    highest = logits_of(table).max(1, keepdims=True)  # 8 of 8: the best of all
    assert summary_of(best)["win_rate_base"] == pytest.approx(win_rates(highest, stages["base"]).mean())
    assert summary_of(best)["win_rate"] == pytest.approx(win_rates(highest, stages["reference"]).mean())


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
    message = damage(folder)
    if key == "sft.path":
        answer = beside(f"sft.path={folder}")
    else:
        scratch = [value for value in beside.values if not value.startswith("experiment=")]
        answer = train(*scratch, "logger=none", "model=gpt2", "model.attention=eager", f"model.path={folder}")
    one_line(answer, 1, f"failed: {key}={folder}{message}")


def test_a_model_folder_that_is_not_there(first, tmp_path):
    answer = first(f"sft.path={tmp_path}/none", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: sft.path={tmp_path}/none: no such folder")
    assert not (tmp_path / "new").exists()


def test_rows_longer_than_a_model_reads(first, tmp_path):
    context = json.loads((first.folder / "model" / "config.json").read_text())["n_positions"]
    values = [f"sft.path={first.folder}/model", f"generation.max_new_tokens={context}"]
    message = (
        f"refused: data.prompts.max_tokens=8 + generation.max_new_tokens={context} is longer than the {context} tokens"
    )
    one_line(first(*values, f"paths.outputs={tmp_path}/new"), 2, message)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("values", "key"),
    [(["data=imdb"], "data.path"), (["model=gpt2"], "model.path"), (["reward=siebert"], "reward.path")],
)
def test_the_hub_out_of_reach(tmp_path, monkeypatch, values, key):
    nowhere = "http://127.0.0.1:9"  # nothing listens on the discard port
    for name, value in {"ENDPOINT": nowhere, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    tiny = [value for value in PLAIN if not value.startswith("model.")]
    message = one_line(
        train(*tiny, *values, f"paths.outputs={tmp_path}/new"), 1, "failed: the Hub cannot be reached for"
    )
    assert f"set {key}=DIR" in message


def test_a_preset_is_chosen_and_not_named(tmp_path):
    one_line(
        train("algo=ppo", "ppo.preset=trl_2023", f"paths.outputs={tmp_path}/o"), 2, "refused: ppo.preset only names"
    )
    assert not list(tmp_path.iterdir())
