"""A model that was trained with BOS: every row of a run begins with it, and nothing else changes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM

from imdb_rlhf.data.embedded import generate
from imdb_rlhf.rewards.classifier import ClassifierReward
from tests.command import Answer, train
from tests.experiments import PLAIN, STEPS, keys_of, one_line, runs, stages_made, summary_of, well
from tests.vocabularies import llama_tokenizer

BOS = 1


def save_llama(folder: Path, context: int = 128) -> Path:
    """A tiny Llama with random weights, whose tokenizer puts BOS before a text."""
    tokenizer = llama_tokenizer([review.text for review in generate(200, 5)], size=300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": BOS, "eos_token_id": 2, "pad_token_id": 0}
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=304, max_position_embeddings=context, **sizes, **ends))
    lm.save_pretrained(folder)
    # one special token more than the model has rows for
    tokenizer.add_tokens([f"<unused{number}>" for number in range(5)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Llama:
    """A run that starts from that model, with a reward that is trained on labelled reviews."""

    model: Path
    outputs: Path

    @property
    def values(self) -> list[str]:
        scratch = [value for value in PLAIN if not value.startswith(("model.", "sft.epochs", "data.sft"))]
        reward = [
            "reward=two_label",
            "reward.held_out=20",
            "reward.epochs=1",
            "reward.batch_size=16",
            "reward.init=base",
        ]
        more = ["data.labelled_reviews=40", "data.sft_reviews=60", "sft.epochs=1", "sft.max_tokens=40"]
        model = ["model=gpt2", "model.attention=eager", f"model.path={self.model}", f"paths.outputs={self.outputs}"]
        return [*scratch, *reward, *more, *model]

    def __call__(self, *more: str) -> Answer:
        return train(*self.values, *STEPS, *more)

    def artifact(self, run: Path, stage: str) -> Path:
        return self.outputs / "artifacts" / stage / keys_of(run)[stage]

    def report(self, run: Path, stage: str) -> dict[str, Any]:
        return json.loads((self.artifact(run, stage) / "report.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, Path, Answer]:
    folder = tmp_path_factory.mktemp("llama")
    llama = Llama(save_llama(folder / "model"), folder / "outputs")
    answer = well(llama())
    (run,) = runs(llama.outputs)
    return llama, run, answer


def test_it_is_said_and_recorded(made):
    llama, run, answer = made
    (line,) = [line for line in answer.out.splitlines() if line.startswith("data ")]
    assert line.endswith(", rows begin with <bos>")
    assert (llama.report(run, "data")["bos"], llama.report(run, "two_label")["bos"]) == ("<bos>", "always")
    assert "Right-pad, and begin with `<bos>`." in (run / "model" / "README.md").read_text()


def test_every_row_begins_with_bos_and_no_text_does(made):
    llama, run, _ = made
    with np.load(llama.artifact(run, "data") / "sft.npz") as stored:
        rows = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
    assert all(row[0] == BOS and (row[1:] != BOS).all() and len(row) <= 40 for row in rows)
    prompts = pd.read_parquet(llama.artifact(run, "data") / "prompts.parquet")
    assert {len(ids) for ids in prompts["ids"]} <= set(range(3, 10))  # 2 to 8 tokens after BOS
    assert all(ids[0] == BOS and BOS not in ids[1:] for ids in prompts["ids"])
    groups = pd.read_parquet(llama.artifact(run, "groups") / "groups.parquet")
    assert all(ids[0] == BOS for ids in groups["prompt_ids"])
    tokenizer = AutoTokenizer.from_pretrained(llama.model)
    for ids, text in zip(groups["prompt_ids"], groups["prompt"], strict=True):
        assert text == tokenizer.decode(ids[1:])
    exported = pd.read_parquet(llama.artifact(run, "groups") / "preferences.parquet")
    assert all("<bos>" not in table.to_csv() for table in (groups, exported, pd.read_parquet(run / "samples.parquet")))


def test_the_reward_reads_texts_as_it_was_trained(made):
    """Its scores of the groups are those of BOS and the text, by transformers alone."""
    llama, run, _ = made
    groups = pd.read_parquet(llama.artifact(run, "groups") / "groups.parquet").head(8)
    folder = llama.artifact(run, "two_label") / "model"
    model = ClassifierReward(folder, None, 1, torch.device("cpu")).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in groups.to_dict("records"):
        ids = [BOS, *tokenizer(row["prompt"] + row["completion"], add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            negative, positive = model(input_ids=torch.tensor([ids])).logits[0].tolist()
        assert row["reward_logit"] == pytest.approx(positive - negative, abs=1e-4)


def test_an_exported_policy_has_the_numbers_of_its_run(made):
    llama, run, _ = made
    values = [value for value in llama.values if not value.startswith(("policy.", "pairs."))]
    well(train("algo=own_model", f"own_model.path={run}/model", *values))
    (folder,) = runs(llama.outputs, "own_model-")
    for key in ("reward", "kl", "reference"):
        assert summary_of(folder)[key] == summary_of(run)[key], key


def test_always_is_what_auto_decided_and_never_makes_other_rows(made):
    llama, run, _ = made
    answer = well(llama("data.bos=always"))
    assert "finished already" in answer.out  # the same rows are the same run
    answer = well(llama("data.bos=never", "plan=true"))
    assert "to be made" in answer.out and not any(stages_made(answer).get(stage) is False for stage in ("data", "sft"))
    assert stages_made(answer) == {"checked": False, "labelled": False}


def test_a_preference_file_begins_with_bos(made, tmp_path):
    llama, run, _ = made
    frame = pd.DataFrame({"prompt": ["This film"], "chosen": [" is good<eos>"], "rejected": [" is bad"]})
    frame.to_parquet(tmp_path / "own.parquet")
    well(llama(f"data.preferences={tmp_path}/own.parquet", "pairs.ties=drop"))
    (folder,) = [path for path in runs(llama.outputs, "dpo-") if path != run]
    groups = pd.read_parquet(llama.artifact(folder, "groups") / "groups.parquet")
    assert all(ids[0] == BOS for ids in groups["prompt_ids"])
    assert all((list(ids).count(2), ids[-1]) == (1, 2) for ids in groups["completion_ids"])


def test_bos_counts_towards_the_context(made, tmp_path):
    llama, _, _ = made
    short = Llama(save_llama(tmp_path / "model", context=40), tmp_path / "outputs")
    message = (
        "refused: BOS + data.prompts.max_tokens=8 + generation.max_new_tokens=32 is longer than the 40 tokens that "
    )
    one_line(short("generation.max_new_tokens=32"), 2, f"{message}model.path={short.model} reads; shorten them")
    well(short("generation.max_new_tokens=31", "plan=true"))
    well(short("generation.max_new_tokens=32", "data.bos=never", "plan=true"))


def test_a_model_without_bos_is_not_given_one(first):
    values = [value for value in first.values if not value.startswith("experiment=")]
    model = ["model=gpt2", "model.attention=eager", f"model.path={first.folder}/model", "logger=none"]
    answer = train(*values, *model, "data.bos=always", "algo=sft")
    one_line(answer, 2, f"refused: data.bos=always: the tokenizer of model.path={first.folder}/model has no BOS token")


def test_a_model_of_which_no_classifier_can_be_made(tmp_path):
    """Before any stage: the reward model comes after SFT and groups."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CohereForCausalLM(CohereConfig(vocab_size=304, **sizes, **ends)).save_pretrained(tmp_path / "model")
    llama_tokenizer([review.text for review in generate(200, 5)], size=304).save_pretrained(tmp_path / "model")
    values = ["experiment=smoke", f"sft.path={tmp_path / 'model'}", f"paths.outputs={tmp_path}", "plan=true"]
    message = one_line(train(*values, "algo=ppo", "target_kl=1"), 1, "failed: sft.path=")
    assert "transformers has no sequence classifier for cohere models" in message
    well(train(*values, "algo=ppo", "target_kl=1", "ppo.reward=ground_truth"))
    well(train(*values))
