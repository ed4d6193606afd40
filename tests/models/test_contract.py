"""Models that read otherwise than the package assumes are refused; those that read as it assumes are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from imdb_rlhf.errors import RunError
from imdb_rlhf.models.contract import TOKENS, check_output_layer, check_reading
from tests import tiny
from tests.models.families import FAMILIES, make

SIZES: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
LLAMA: dict[str, Any] = SIZES | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
}
MAMBA: dict[str, Any] = SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
GPT: dict[str, Any] = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2}


def other(kind: str, **settings: Any) -> PreTrainedModel:
    """A tiny model with random weights of a type that transformers knows."""
    torch.manual_seed(0)
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    return lm.eval()


class Forgetful(GPT2LMHeadModel):
    """A GPT-2 that is no GPT-2 inside, so that it is decoded by its own forward, and forgets what it has read."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        inner = self.transformer.forward

        def forward(input_ids: Any, past_key_values: Any = None, **arguments: Any) -> Any:
            return inner(input_ids, **arguments)

        self.transformer.forward = forward


class LooksAhead(GPT2LMHeadModel):
    """A model that adds the mean of its last states to all."""

    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        states = self.transformer(input_ids, use_cache=False).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(states + 0.1 * states.mean(1, keepdim=True)))


class Crowded(GPT2LMHeadModel):
    """A model whose rows see each other."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.ln_f.register_forward_hook(lambda module, inputs, output: output + 0.1 * output.sum(0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spread", [0.02, 0.25])
def test_families_that_are_read_right_are_accepted(name: str, spread: float) -> None:
    check_reading(make(name, spread=spread), 128, "model.path")


@pytest.mark.parametrize("context", [1, 2, 3, 7, TOKENS, 100])
def test_any_context(context: int) -> None:
    check_reading(GPT2LMHeadModel(tiny.gpt2_config(context=max(context, 2))).eval(), context, "model.path")


@pytest.mark.parametrize(
    ("lm", "message"),
    [
        (lambda: other("mamba", **MAMBA), "MambaForCausalLM .* token by token through"),
        (
            lambda: other("openai-gpt", vocab_size=61, n_embd=16, n_layer=2, n_head=2),
            "OpenAIGPTLMHeadModel gives other logits token by token",
        ),
        (lambda: other("bert", **LLAMA), "BertLMHeadModel is not causal"),
        (lambda: LooksAhead(tiny.gpt2_config()).eval(), "LooksAhead is not causal"),
        (lambda: Forgetful(tiny.gpt2_config()).eval(), "Forgetful gives other logits token by token"),
        (lambda: Crowded(tiny.gpt2_config()).eval(), "Crowded gives a row beside longer rows other logits"),
    ],
)
def test_models_that_work_otherwise_are_refused_by_name(lm: Callable[[], PreTrainedModel], message: str) -> None:
    with pytest.raises(RunError, match=f"^sft.path=DIR: {message}"):
        check_reading(lm(), 16, "sft.path=DIR")


class Cut(GPT2LMHeadModel):
    """A model that limits its logits, of which its configuration says nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.clamp(max=30.0)
        return output


class Halved(GPT2LMHeadModel):
    """A model whose output layer does not read its last states."""

    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        return CausalLMOutput(logits=self.lm_head(self.transformer(input_ids).last_hidden_state / 2))


@pytest.mark.parametrize("kind", [Cut, Halved])
def test_logits_that_are_made_otherwise_are_refused(kind: type[GPT2LMHeadModel]) -> None:
    check_output_layer(GPT2LMHeadModel(tiny.gpt2_config()), "model.path")
    with pytest.raises(RunError, match=f"model.path: {kind.__name__} makes its logits in a way"):
        check_output_layer(kind(tiny.gpt2_config()), "model.path")
