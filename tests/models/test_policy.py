"""Policies: made from scratch, saved, loaded, and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GraniteConfig,
    GraniteForCausalLM,
    MptConfig,
    Phi3Config,
    XLNetConfig,
)

from imdb_rlhf.config.model import Attention, ScratchModel
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import (
    EOS,
    PAD,
    Policy,
    context_length,
    drop_tokens,
    freeze,
    load,
    parameters_of,
    save,
    scratch,
    train_tokenizer,
)
from imdb_rlhf.models.tokens import decode
from tests.models.logits import full

TEXTS = ["The film is good.", "The film is bad, naïve and dull — isn't it?", "A lovely film with a weak plot."]


def model(**changes: int) -> ScratchModel:
    sizes = {"layers": 1, "width": 16, "heads": 2, "context": 24, "tokenizer_size": 300, "vocabulary": 310}
    return ScratchModel(name="tiny", attention=Attention.eager, **{"init_seed": 0, **sizes, **changes})


@pytest.fixture(scope="module")
def policy() -> Policy:
    return scratch(model(), train_tokenizer(TEXTS, 300, 310))


@pytest.fixture(scope="module")
def saved(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save(policy, folder, "a card", 0.7)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


# --- the tokenizer


def test_a_tokenizer_gives_its_texts_back(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    unseen = ["\n\tUnseen: 100 % of 7½!", " leading space", "emoji 🎬<br />"]
    for text in TEXTS + unseen:
        ids = tokenizer(text)["input_ids"]
        assert policy.eos_id not in ids  # nothing is added
        assert decode(tokenizer, [[*ids, policy.eos_id]]) == [text]
    assert len(tokenizer("The film is good.")["input_ids"]) < len("The film is good.")  # pairs were merged


def test_a_tokenizer_has_the_sizes_that_were_asked_for(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    assert len(tokenizer) == 310
    assert len(train_tokenizer(TEXTS, 280, 280)) == 280
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(EOS)
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids(PAD)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    # every byte has a token, so any text can be written
    assert len(tokenizer(bytes(range(32, 127)).decode())["input_ids"]) <= 95


def test_special_tokens_are_left_out_of_texts(policy: Policy) -> None:
    assert decode(policy.tokenizer, [[policy.eos_id, policy.tokenizer.pad_token_id, 309]]) == [""]


# --- from scratch


def test_weights_are_a_function_of_the_configuration() -> None:
    tokenizer = train_tokenizer(TEXTS, 300, 310)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = scratch(model(), tokenizer).lm.state_dict()
    assert torch.get_rng_state().equal(before)  # the global generator is left alone
    torch.manual_seed(4)
    again, other = (scratch(model(init_seed=seed), tokenizer).lm.state_dict() for seed in (0, 1))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["transformer.wte.weight"].equal(other["transformer.wte.weight"])


def test_a_scratch_model_has_its_sizes_and_no_dropout(policy: Policy) -> None:
    config = policy.lm.config
    # embeddings 310 x 16 and 24 x 16; a block 12 x 16^2 + 13 x 16; the last norm 2 x 16
    assert sum(p.numel() for p in policy.lm.parameters()) == 334 * 16 + 12 * 256 + 13 * 16 + 32
    assert (policy.context, policy.eos_id) == (24, policy.tokenizer.eos_token_id)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert policy.lm.train()(input_ids=ids).logits.equal(policy.lm.eval()(input_ids=ids).logits)


def test_a_frozen_model_has_no_gradients() -> None:
    lm = freeze(scratch(model(), train_tokenizer(TEXTS, 300, 310)).lm.train())
    assert not lm.training
    assert not any(p.requires_grad for p in lm.parameters())


def test_the_context_is_found_in_the_configuration() -> None:
    assert context_length(GPT2Config(n_positions=77)) == 77
    assert context_length(CohereConfig(max_position_embeddings=55)) == 55
    assert context_length(MptConfig(max_seq_len=66)) == 66
    assert context_length(object()) >= 1 << 20
    assert context_length(XLNetConfig()) >= 1 << 20  # states -1


def test_longrope_is_read_up_to_its_original_length() -> None:
    """Beyond, the longest row of a batch would decide how the others are read."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}
    config = Phi3Config(rope_parameters=rope, original_max_position_embeddings=32, **sizes)
    assert context_length(config) == 32
    old = {"type": "longrope", **factors}
    assert context_length(Phi3Config(rope_scaling=old, original_max_position_embeddings=32, **sizes)) == 32
    assert context_length(Phi3Config(**sizes)) == 128


def test_a_class_without_an_inner_model_is_refused(copy: Path) -> None:
    """transformers' AutoModel gives Llama 4 its causal LM again."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "head_dim": 8,
    }
    more = {"num_key_value_heads": 4, "intermediate_size_mlp": 48, "num_local_experts": 2, "vocab_size": 310}
    config = AutoConfig.for_model("llama4_text", **sizes, **more, pad_token_id=1, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(copy)
    with pytest.raises(RunError, match="Llama4ForCausalLM cannot be read without its output layer"):
        load(copy, "eager")


# --- saved and loaded


def test_what_is_saved_is_loaded(policy: Policy, saved: Path) -> None:
    ids = torch.tensor([[5, 6, 7, 300]])
    loaded, plain = load(saved, "eager"), AutoModelForCausalLM.from_pretrained(saved).eval()
    assert not loaded.lm.training
    with torch.no_grad():
        expected = policy.lm(input_ids=ids).logits
        assert loaded.lm(input_ids=ids).logits.equal(expected)
        torch.testing.assert_close(plain(input_ids=ids).logits, expected)
    assert (
        AutoTokenizer.from_pretrained(saved)("The film is")["input_ids"] == policy.tokenizer("The film is")["input_ids"]
    )
    assert (saved / "README.md").read_text() == "a card"
    assert parameters_of(saved) == sum(p.numel() for p in policy.lm.parameters())


def test_weights_are_loaded_in_float32(copy: Path, policy: Policy) -> None:
    half = AutoModelForCausalLM.from_pretrained(copy).bfloat16()
    half.save_pretrained(copy)
    assert load_file(copy / "model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16
    assert {p.dtype for p in load(copy, "eager").lm.parameters()} == {torch.float32}


def test_generate_samples_as_the_package_does(saved: Path, policy: Policy) -> None:
    written = json.loads((saved / "generation_config.json").read_text())
    assert written["do_sample"] is True
    assert written.get("top_k") in (None, 0) and written.get("top_p", 1.0) == 1.0
    lm = AutoModelForCausalLM.from_pretrained(saved)
    torch.manual_seed(0)
    drawn = lm.generate(torch.tensor([[5, 6]]).expand(400, 2), max_new_tokens=1)[:, -1]
    assert len(drawn.unique()) > 60  # transformers' own top-k is 50


# --- refused


def test_a_folder_without_configuration_or_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "elsewhere")
    with pytest.raises(RunError, match="sft.path=.*holds no weights"):
        load(copy, "eager", "sft.path")
    (copy / "config.json").unlink()
    with pytest.raises(RunError, match="holds no config.json"):
        load(copy, "eager")


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="holds no tokenizer"):
        load(copy, "eager")


def broken(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def set_wrong(folder: Path) -> None:
    """transformers compares a row's length with it, and not before there is a row."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": ""}))


@pytest.mark.parametrize("damage", [broken, set_wrong])
def test_a_tokenizer_that_cannot_be_used_is_refused_in_one_line(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    with pytest.raises(RunError, match="tokenizer cannot be used: .+") as caught:
        load(copy, "eager")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_is_refused(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    (copy / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match="no EOS"):
        load(copy, "eager")


def test_broken_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(RunError, match="weights cannot be loaded"):
        load(copy, "eager")


def test_missing_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.0.attn.c_attn.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="model.path=.*no weights for transformer.h.0.attn.c_attn.weight"):
        load(copy, "eager")


def add_weights(folder: Path, *names: str, strip: str = "") -> None:
    """Put small tensors of these names beside a model's weights, whose own names may lose a beginning."""
    weights = {name.removeprefix(strip): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights | {name: torch.ones(2) for name in names}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("names", "strip"),
    [
        (["transformer.h.1.ln_1.weight"], ""),  # of a layer that the configuration does not count
        (["h.1.ln_1.weight"], "transformer."),
        (["lm_head.bias"], ""),
        (["transformer.h.0.attn.c_attn.lora_A.default.weight"], ""),
        (["transformer.h.0.attn.q_norm.weight"], ""),
    ],
)
def test_weights_that_would_be_left_out_are_refused(copy: Path, names: list[str], strip: str) -> None:
    add_weights(copy, *names, strip=strip)
    with pytest.raises(RunError, match=f"^model.path={copy} holds weights that its config.json has no place for .*"):
        load(copy, "eager")


@pytest.mark.parametrize(
    ("names", "strip"),
    [
        (["v_head.summary.weight"], ""),  # the value head of TRL
        (["score.weight", "classifier.bias", "transformer.pooler.dense.weight"], ""),
        (["h.0.attn.bias", "h.0.attn.masked_bias"], "transformer."),  # the masks of published GPT-2s
        (["transformer.h.0.attn.rotary_emb.inv_freq"], ""),
    ],
)
def test_parts_that_a_model_does_without_may_be_there(copy: Path, policy: Policy, names: list[str], strip: str) -> None:
    add_weights(copy, *names, strip=strip)
    found = load(copy, "eager").lm.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in policy.lm.state_dict().items())


def test_an_adapter_is_refused(copy: Path) -> None:
    """transformers would add it only where the library peft is installed."""
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match=f"^model.path={copy} holds an adapter .*merge_and_unload"):
        load(copy, "eager")


def test_the_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["zebra"])  # one word more than the model has
    tokenizer.save_pretrained(copy)
    with pytest.raises(RunError, match="entries and its tokenizer 311, of which the model lacks 'zebra'"):
        load(copy, "eager")


def test_a_special_token_beyond_the_model_is_never_used(copy: Path, policy: Policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(copy)
    loaded = load(copy, "eager")
    assert len(loaded.tokenizer) == 311 and len(loaded.lm.get_input_embeddings().weight) == 310
    assert (loaded.eos_id, loaded.pad_id) == (policy.eos_id, policy.pad_id)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("transformer.h.0.attn.c_attn.weight", float("nan"), "nan"),
        ("transformer.wte.weight", float("inf"), "infinite"),
        ("transformer.ln_f.bias", -float("inf"), "infinite"),
    ],
)
def test_weights_that_are_not_finite_are_called_that(copy: Path, name: str, value: float, kind: str) -> None:
    weights = load_file(copy / "model.safetensors")
    weights[name].view(-1)[7] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError) as caught:
        load(copy, "eager", "own_model.path")
    message = f"own_model.path={copy}: {name} holds weights that are {kind}; give a model whose weights are finite"
    assert str(caught.value) == message


SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("name", ["Cohere", "Granite", "Gemma 2"])
def test_logits_are_scaled_and_capped_as_the_configuration_says(policy: Policy, tmp_path: Path, name: str) -> None:
    shape: dict[str, Any] = SIZES | {"vocab_size": 310, "initializer_range": 0.5, "pad_token_id": 0}
    torch.manual_seed(0)
    lm = {
        "Cohere": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.25, **shape)),
        "Granite": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=4.0, **shape)),
        "Gemma 2": lambda: Gemma2ForCausalLM(
            Gemma2Config(final_logit_softcapping=2.0, num_key_value_heads=1, head_dim=8, **shape)
        ),
    }[name]()
    lm.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    lm = load(tmp_path, "eager").lm
    ids = torch.arange(20).view(2, 10) + 5
    batch = Rows(ids, torch.tensor([1, 4]), torch.tensor([10, 8]))
    torch.testing.assert_close(
        LogProbs(lm)(batch.ids, batch.starts, batch.lengths), full(lm, batch), atol=1e-5, rtol=1e-5
    )


# --- beside a reference


def test_a_model_without_its_last_tokens_is_itself_given_none_is_sampled(copy: Path) -> None:
    lm = load(copy, "eager").lm
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = lm(input_ids=ids).logits
        assert drop_tokens(lm, 310) == drop_tokens(lm, 400) == 0
        assert lm(input_ids=ids).logits.equal(whole)
        assert drop_tokens(lm, 300) == 10
        rest = lm(input_ids=ids).logits
    assert rest.shape == (1, 3, 300) and lm.config.vocab_size == 300
    chances = whole.softmax(-1)[..., :300]
    torch.testing.assert_close(rest.softmax(-1), chances / chances.sum(-1, keepdim=True))
