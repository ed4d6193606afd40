"""A model that exists on the axes: the same numbers as the run that trained it, and every refusal as one line."""

import json
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.evaluation.__main__ import overrides
from tests.command import Answer, answer_of, train
from tests.experiments import REWARD, TINY, one_line, stages_made, summary_of, well

DPO = ["algo=dpo", "policy.steps=3", "policy.optim.lr=1e-2", "policy.optim.warmup_steps=0"]


def evaluation(*arguments: str) -> Answer:
    """`python -m imdb_rlhf.evaluation ARGUMENTS`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'imdb_rlhf.evaluation.*' found in sys.modules", RuntimeWarning)
        return answer_of(lambda: runpy.run_module("imdb_rlhf.evaluation", run_name="__main__"), *arguments)


def own_runs(outputs: Path) -> set[Path]:
    return {path for path in (outputs / "runs").glob("own_model-*") if path.is_dir()}


@dataclass(frozen=True)
class Trained:
    """A policy that was trained, and the settings that evaluate others in the same world."""

    values: list[str]
    outputs: Path
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def __call__(self, model: Path, *more: str) -> Answer:
        return train("algo=own_model", f"own_model.path={model}", *self.values, *more)

    def run_of(self, model: Path, *more: str) -> Path:
        """The folder of a new run."""
        before = own_runs(self.outputs)
        well(self(model, *more))
        (folder,) = own_runs(self.outputs) - before
        return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    base = tmp_path_factory.mktemp("trained")
    (base / "own.py").write_text(REWARD)
    values = [*TINY, "reward=own", f"reward.function={base}/own.py:score", f"paths.outputs={base}/outputs"]
    well(train(*DPO, *values))
    (folder,) = (path for path in (base / "outputs" / "runs").iterdir() if path.is_dir())
    return Trained(values, base / "outputs", folder)


@pytest.fixture(scope="module")
def evaluated(trained) -> tuple[Path, Answer]:
    """The run that evaluated the trained policy's own model, and the command's answer."""
    answer = well(evaluation(str(trained.model), *trained.values))
    (folder,) = own_runs(trained.outputs)
    return folder, answer


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """The trained policy's model, to be changed."""
    return Path(shutil.copytree(trained.model, tmp_path / "copy"))


# --- the same numbers


def rows_of(folder: Path) -> pd.DataFrame:
    """The rows of the last evaluation point."""
    rows = pd.read_parquet(folder / "evaluations.parquet")
    return rows[rows["step"] == rows["step"].max()].drop(columns="step").reset_index(drop=True)


def test_an_exported_policy_has_the_numbers_of_its_run(trained, evaluated):
    folder, _ = evaluated
    own, run = rows_of(folder), rows_of(trained.folder)
    assert run["kl"].mean() > 0.01  # it is not the reference
    pd.testing.assert_frame_equal(own, run, check_exact=True)
    for key in ("reward", "reward_ci", "kl", "kl_ci", "kl_k1", "win_rate", "win_rate_ci", "distinct_2", "reference"):
        assert summary_of(folder)[key] == summary_of(trained.folder)[key], key
    texts, others = (pd.read_parquet(place / "samples.parquet") for place in (folder, trained.folder))
    pd.testing.assert_frame_equal(texts, others, check_exact=True)


def test_a_run_like_every_other_with_one_stage_more(trained, evaluated):
    folder, answer = evaluated
    stages = {"checked": True, "data": False, "sft": False, "reference": False, "own_model": True}
    assert stages_made(answer) == stages
    names = "config.yaml overrides.json artifacts.json metrics.jsonl evaluations.parquet samples.parquet summary.json"
    assert {path.name for path in folder.iterdir()} == {*names.split(), "DONE", "report.html"}
    assert check_manifest(folder) is None
    summary = summary_of(folder)
    assert (summary["algo"], summary["knob"], summary["step"]) == ("own_model", None, 0)
    assert set(pd.read_parquet(folder / "evaluations.parquet")["step"]) == {0}


def test_a_run_s_model_has_the_name_of_the_run(trained, evaluated, copy):
    assert summary_of(evaluated[0])["variant"] == trained.folder.name
    assert summary_of(trained.run_of(copy))["variant"] == "copy"
    assert summary_of(trained.run_of(copy, "own_model.name=Another"))["variant"] == "Another"


def test_it_says_where_it_is_and_how_it_is_drawn(trained, evaluated, tmp_path):
    folder, answer = evaluated
    assert f"folder       {folder}\n" in answer.out
    assert f"frontier     python -m imdb_rlhf.frontier {folder.parent}\n" in answer.out
    # beside a run of other prompts, only those that can be compared
    other = tmp_path / "outputs"
    shutil.copytree(trained.outputs, other)
    changed = ["algo=sft", *trained.values, f"paths.outputs={other}"]
    well(train(*changed, "data.prompts.test=6"))
    again = well(evaluation(str(trained.model), *trained.values, f"paths.outputs={other}")).out
    (drawn,) = (line for line in again.splitlines() if "imdb_rlhf.frontier" in line)
    assert str(other / "runs" / trained.folder.name) in drawn.split()
    assert str(other / "runs" / folder.name) in drawn.split()
    assert str(other / "runs") not in drawn.split() and "sft-" not in drawn


def test_the_content_counts_and_not_the_place(trained, evaluated, copy):
    before = own_runs(trained.outputs)
    elsewhere = Path(shutil.copytree(copy, copy.parent / trained.folder.name))
    assert "finished already, not run again" in well(trained(elsewhere)).out
    assert own_runs(trained.outputs) == before
    lm = AutoModelForCausalLM.from_pretrained(elsewhere)
    with torch.no_grad():
        lm.transformer.wte.weight.mul_(1.1)
    lm.save_pretrained(elsewhere)
    changed = trained.run_of(elsewhere)
    assert not rows_of(changed).equals(rows_of(evaluated[0]))
    keys = [json.loads((folder / "artifacts.json").read_text()) for folder in (changed, evaluated[0])]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"checked", "own_model"}


def test_entries_that_the_reference_lacks_are_left_out(trained, evaluated, copy):
    lm = AutoModelForCausalLM.from_pretrained(copy)
    lm.resize_token_embeddings(lm.config.vocab_size + 7, mean_resizing=False)
    with torch.no_grad():
        lm.transformer.wte.weight[-7:] = 9.0  # loud: they would be sampled
    lm.save_pretrained(copy)
    answer = well(trained(copy, "own_model.name=longer"))
    assert "7 entries that the reference does not have are never sampled" in answer.out
    (folder,) = (path for path in own_runs(trained.outputs) if summary_of(path)["variant"] == "longer")
    pd.testing.assert_frame_equal(rows_of(folder), rows_of(evaluated[0]), check_exact=True)


def test_a_reference_that_exists(trained, copy):
    folder = trained.run_of(copy, f"sft.path={trained.model}", "own_model.name=itself")
    summary = summary_of(folder)
    assert summary["kl"] == pytest.approx(0, abs=1e-6)
    assert summary["reward"] == summary["reference"]["reward"]


# --- the command line


def test_help_says_what_it_takes(trained):
    asked = subprocess.run(
        [sys.executable, "-m", "imdb_rlhf.evaluation", "--help"], capture_output=True, text=True, timeout=120
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    for word in ("MODEL_DIR", "key=value", "own_model.name"):
        assert word in asked.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "refused: MODEL_DIR is missing"),
        (["--cfg"], "refused: MODEL_DIR is missing"),
        (["seed=1"], "refused: 'seed=1' is in the place of MODEL_DIR"),
        (["copy", "another"], "refused: 'another' is not of the form key=value"),
        (["copy", "beta=0.1"], "refused: beta=0.1: no such key for algo=own_model"),
        (["copy", "algo=dpo"], "refused: "),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    one_line(evaluation(*arguments), 2, message)


def test_a_path_with_odd_characters_is_one_path(trained, tmp_path):
    odd = tmp_path / "it's, a [strange] = folder"
    shutil.copytree(trained.model, odd)
    answer = well(evaluation(str(odd), *trained.values, "plan=true"))
    assert "own_model    to be made" in answer.out


@pytest.mark.parametrize(
    "path",
    [
        "outputs/runs/a/model",
        "owner/name",
        "it's",
        "a b, c",
        "[x]{y}",
        "k=v/model",
        "null",
        "1",
        r"a\b",
        "a\\",
        r"a\'b",
    ],
)
def test_any_path_is_one_value_for_hydra(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "=" in path:
        Path(path).mkdir(parents=True)
    algo, model, *others = overrides([path, "seed=1", "plan=true"])
    parsed = OverridesParser.create().parse_override(model)
    assert (algo, parsed.key_or_group, parsed.value()) == ("algo=own_model", "own_model.path", path)
    assert others == ["seed=1", "plan=true"]


@pytest.mark.parametrize("options", [["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]])
def test_an_own_folder_of_configuration_may_stand_anywhere(options: list[str]) -> None:
    rest = ["algo=own_model", "own_model.path='m'", "experiment=mine"]
    for arguments in (
        [*options, "m", "experiment=mine"],
        ["m", *options, "experiment=mine"],
        ["m", "experiment=mine", *options],
    ):
        assert overrides(arguments) == [*options, *rest]


@pytest.mark.parametrize("arguments", [[], [""], ["-m"], ["seed=1"], ["a", "b"], ["a", "--multirun"]])
def test_arguments_that_name_no_model_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="python -m imdb_rlhf.evaluation MODEL_DIR"):
        overrides(arguments)


# --- models that cannot be used


def no_configuration(folder: Path) -> str:
    (folder / "config.json").unlink()
    return " holds no config.json; give a folder made by save_pretrained"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return " holds no tokenizer"


def an_encoder_and_a_decoder(folder: Path) -> str:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=400, **sizes)).save_pretrained(folder)
    return " is an encoder-decoder model (t5); give a causal LM"


def of_no_kind(folder: Path) -> str:
    (folder / "config.json").write_text('{"vocab_size": 400}')
    return ": its config.json cannot be used"


def another_token(folder: Path) -> str:
    """Two neighbours of the alphabet change places."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    vocabulary[names[10]], vocabulary[names[11]] = 11, 10
    file.write_text(json.dumps(tokenizer))
    return f" has another tokenizer than the reference: token 10 is {names[11]!r}, but {names[10]!r} in the reference's"


def fewer_tokens(folder: Path) -> str:
    """The last of the reference's tokens is not there, in the tokenizer nor in the model."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=lambda token: int(vocabulary[token]))
    number = vocabulary.pop(last)
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) != last]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < number]
    file.write_text(json.dumps(tokenizer))
    return f" has another tokenizer than the reference: token {number} is missing, but {last!r} in the reference's"


def another_end(folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(folder)
    return " ends a completion with '<|pad|>', but the reference with '<|endoftext|>'"


DAMAGES = [
    no_configuration,
    no_tokenizer,
    an_encoder_and_a_decoder,
    of_no_kind,
    another_token,
    fewer_tokens,
    another_end,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_cannot_be_used(trained, copy, damage):
    message, before = damage(copy), own_runs(trained.outputs)
    one_line(trained(copy), 1, f"failed: own_model.path={copy}{message}")
    assert own_runs(trained.outputs) == before


def test_another_tokenizer_is_told_before_anything_is_trained(trained, copy, tmp_path):
    message = another_token(copy)
    answer = trained(copy, f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: own_model.path={copy}{message}")
    assert [path.name for path in (tmp_path / "new" / "artifacts").iterdir()] == ["checked", "data"]


def test_a_model_that_is_not_there(trained, tmp_path):
    message = f"failed: own_model.path={tmp_path}/none: no such folder; give one that exists"
    one_line(trained(tmp_path / "none", f"paths.outputs={tmp_path}/new"), 1, message)
    assert not (tmp_path / "new").exists()


def test_a_model_that_reads_shorter_rows(trained, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_positions": 15}))
    message = f"than the 15 tokens that own_model.path={copy} reads; shorten them"
    assert message in one_line(trained(copy), 2, "refused: data.prompts.max_tokens=8 + generation.max_new_tokens=8 is")
    # long enough for that, shorter than SFT's rows: it is not trained on those
    (copy / "config.json").write_text(json.dumps(config | {"n_positions": 16}))
    well(trained(copy, "plan=true"))


def test_no_model_is_named():
    one_line(train("algo=own_model", *TINY), 2, "refused: own_model.path has no value; set own_model.path=...")
    one_line(train("algo=own_model", "own_model.path=", *TINY), 2, "refused: own_model.path is empty")
