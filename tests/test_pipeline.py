"""The whole way, tiny: what a run leaves, what is reused, and every failure as one line."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from imdb_rlhf import cli
from imdb_rlhf.artifacts import check_manifest, in_use
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


@dataclass(frozen=True)
class First:
    """A finished run and the command that made it."""

    outputs: Path
    values: list[str]
    answer: Answer
    folder: Path

    def __call__(self, *more: str, algo: str = "dpo") -> Answer:
        """Another run beside it, which may reuse what it made."""
        steps = STEPS if algo == "dpo" else []
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

    def rows(folder: Path) -> list[dict]:
        lines = read(folder / "metrics.jsonl")
        return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]

    assert rows(again) == rows(first.folder)
    for name in ("evaluations.parquet", "samples.parquet", "model/model.safetensors", "artifacts.json"):
        assert (again / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_a_sweep_remakes_nothing_upstream(beside):
    answer = well(train("-m", *beside.values, *STEPS, "beta=0.5,2"))
    assert answer.out.count(" reused ") == 8 and " made in" not in answer.out
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
    summary = json.loads((folder / "summary.json").read_text())
    dpo = json.loads((beside.folder / "summary.json").read_text())
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
    assert made(answer) == {"data": True, "sft": True, "reference": True}
    (folder,) = runs(beside.outputs, "sft-s0-")
    assert json.loads((folder / "model" / "config.json").read_text())["n_embd"] == 32


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
