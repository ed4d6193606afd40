"""Tiny models with random weights of the families that people bring."""

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
HEADS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "GPT-NeoX": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
    "Llama, tied": (LlamaForCausalLM, LlamaConfig, GROUPED | {"tie_word_embeddings": True}),
    "Llama, untied": (LlamaForCausalLM, LlamaConfig, GROUPED | {"tie_word_embeddings": False}),
    "Qwen 2": (Qwen2ForCausalLM, Qwen2Config, GROUPED | {"tie_word_embeddings": True}),
    "Qwen 3": (Qwen3ForCausalLM, Qwen3Config, HEADS | {"tie_word_embeddings": True}),
    # caps as small as the logits of random weights, so that leaving one out is seen
    "Gemma 2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        HEADS | {"sliding_window": 5, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    ),
    "Gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        HEADS | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Mistral, window": (MistralForCausalLM, MistralConfig, GROUPED | {"sliding_window": 5}),
    "OPT": (OPTForCausalLM, OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": 24, "dropout": 0.1}),
    "Phi": (PhiForCausalLM, PhiConfig, {}),
}
ATTENTION = {"Gemma 2": "eager"}  # torch's kernel has no soft cap


def make(name: str, vocabulary: int = 61, seed: int = 0, spread: float = 0.25) -> PreTrainedModel:
    """A model in evaluation mode whose biases are not 0 and whose norms differ from column to column."""
    kind, config, changes = FAMILIES[name]
    torch.manual_seed(seed)
    lm = kind(
        config(
            **{**SHAPE, **changes, "vocab_size": vocabulary, "initializer_range": spread},
            attn_implementation=ATTENTION.get(name, "sdpa"),
        )
    ).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return lm
