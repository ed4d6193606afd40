"""Tiny models of many families, whole and damaged: the log-probs of transformers itself, or one line."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.contract import check_reading
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.tokens import decode, encoder
from tests.fuzz.test_files import TEXT, damaged, one_line

BASE: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WIDE |= {"max_position_embeddings": 64, "initializer_range": 0.2}
GROUPED = WIDE | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
NEO: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 5, "initializer_range": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": OLD,
    "gptj": OLD | {"rotary_dim": 4},
    "gpt_bigcode": OLD,
    "codegen": OLD | {"rotary_dim": 4},
    "openai-gpt": OLD,
    "gpt_neo": NEO | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "gpt_neox": WIDE,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "falcon": WIDE | {"alibi": True},
    "opt": WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": WIDE,
    "stablelm": GROUPED,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 5},
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"sliding_window": 5, "final_logit_softcapping": 2.0},
    "gemma3_text": HEADS | {"sliding_window": 5},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "starcoder2": GROUPED,
    "cohere": GROUPED | {"logit_scale": 0.25},
    "granite": GROUPED | {"logits_scaling": 4.0},
    "bert": WIDE,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
# What the package cannot read as it reads a GPT-2, and so refuses.
REFUSED = {"bert", "mamba", "openai-gpt"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return policies.train_tokenizer(["A film, a delight.", "The plot drags on and on."], 300, 300)


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, settings in FAMILIES.items():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **BASE, **settings))
        made[kind] = tmp_path_factory.mktemp("models") / kind
        lm.save_pretrained(made[kind])
        tokenizer.save_pretrained(made[kind])
    return made


def read(folder: Path, texts: list[str]) -> None:
    """Load and check a model; its log-probs are then those of transformers' own forward."""
    policy = policies.load(folder, "eager", "sft.path")
    check_reading(policy.lm, policy.context, "sft.path")
    rows = [[5, *ids][:20] for ids in encoder(policy.tokenizer)(texts)]
    rows = [row for row in rows if len(row) > 1] or [[5, 6]]
    found = sequence_logprobs(policy.lm, Rows.of([row[:1] for row in rows], [row[1:] for row in rows]))
    for row, value in zip(rows, found.tolist(), strict=True):
        with torch.no_grad():
            logprobs = policy.lm(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        expected = float(logprobs[:-1].gather(1, torch.tensor(row[1:])[:, None]).sum())
        assert value == pytest.approx(expected, abs=1e-3, rel=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_read_right_or_refused(kind: str, folders: dict[str, Path]) -> None:
    if kind in REFUSED:
        with pytest.raises(RunError, match="sft.path"):
            read(folders[kind], ["A film"])
    else:
        read(folders[kind], ["A film, a delight.", "The plot drags on", "on"])


@given(data=st.data())
def test_damaged_folders(folders: dict[str, Path], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FAMILIES)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        shutil.copytree(folders[kind], folder)
        damaged(data, folder)
        with one_line():
            read(folder, ["A film"])


VALUE = st.one_of(st.none(), st.integers(-3, 70), st.floats(), st.booleans(), st.text(max_size=6), st.just([]))


@given(data=st.data())
def test_configurations_with_other_values(folders: dict[str, Path], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FAMILIES)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        shutil.copytree(folders[kind], folder)
        file = folder / data.draw(st.sampled_from(["config.json", "tokenizer_config.json", "generation_config.json"]))
        config = json.loads(file.read_text()) if file.exists() else {}
        key = data.draw(st.sampled_from(sorted(config) or ["x"]))
        if data.draw(st.booleans()):
            config[key] = data.draw(VALUE)
        else:
            config.pop(key, None)
        file.write_text(json.dumps(config))
        with one_line():
            read(folder, ["A film"])


@given(texts=st.lists(TEXT, max_size=5))
def test_texts_come_back_from_their_tokens(tokenizer: Any, texts: list[str]) -> None:
    rows = encoder(tokenizer)(texts)
    assert not any({tokenizer.eos_token_id, tokenizer.pad_token_id} & set(row) for row in rows)
    assert decode(tokenizer, rows) == texts
