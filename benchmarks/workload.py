"""The input of every measured program: two models and data of random tokens, the same bytes for all programs.

A folder holds `reference/` and `policy/` (a GPT-2 or a Llama with random weights, float32, with a tokenizer; the policy
is the reference with noise, so that no loss is log 2), and a folder per data set with `data.json`:
`prompts` and `completions` (tokens; completion i belongs to prompt i // 4), `pairs` (winner and loser, as indices of
completions: `prefix` those of the first groups, `shuffled` as many of all groups), `rows` (tokens, for SFT), `shape`.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.models.policy import train_tokenizer

SEED = 0
K = 4  # completions per prompt
GROUPS, PROMPTS, ROWS = 64, 512, 1024  # at least so many
ROW = 96  # tokens of an SFT row
GPT2_VOCABULARY, LLAMA_VOCABULARY = 50_257, 128_256
FIRST = 2  # tokens below are special


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, named as in GPT2Config, and its family.

    A Llama's heads share keys and values in threes, and its inner layer is as wide as gives it the weights of a GPT-2.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    family: str = "gpt2"


@dataclass(frozen=True)
class Data:
    """The sizes of a data set: pairs, tokens of a completion, least and most tokens of a prompt."""

    pairs: int = 64
    completion: int = 48
    shortest: int = 2
    longest: int = 8


SHAPES = {
    "toy": Shape(1, 32, 2, 300, 64),
    "small": Shape(6, 384, 6, 4096, 128),
    "mini": Shape(4, 256, 4, GPT2_VOCABULARY, 128),
    "gpt2": Shape(12, 768, 12, GPT2_VOCABULARY, 1024),
    "gpt2-large": Shape(36, 1280, 20, GPT2_VOCABULARY, 1024),
    "llama": Shape(12, 768, 12, LLAMA_VOCABULARY, 1024, "llama"),
}


def make(shape: Shape, data: Data, store: Path) -> Path:
    """The folder of a data set in that of its models, made where they do not exist: each file whole or absent."""
    key = hashlib.sha256(json.dumps([asdict(shape), SEED]).encode()).hexdigest()[:8]
    models = store / f"{shape.layers}x{shape.width}-{key}"
    if not models.exists():
        aside = store / f"{models.name}.{os.getpid()}"
        _write_models(shape, aside)
        aside.rename(models)
    folder = models / "-".join(map(str, asdict(data).values()))
    folder.mkdir(exist_ok=True)
    atomic_write(folder / "data.json", json.dumps(tokens(shape, data) | {"shape": asdict(shape)}))
    return folder


def tokens(shape: Shape, data: Data) -> dict[str, Any]:
    """Random prompts, completions and rows, and their pairs."""
    random = np.random.default_rng(SEED)
    groups = max(GROUPS, -(-data.pairs // len(list(combinations(range(K), 2)))))

    def draw(rows: int, length: int) -> list[list[int]]:
        ids: list[list[int]] = random.integers(FIRST, shape.vocabulary, size=(rows, length)).tolist()
        return ids

    prompts = draw(max(groups, PROMPTS), data.longest)
    lengths = random.integers(data.shortest, data.longest + 1, size=len(prompts)).tolist()
    return {
        "prompts": [ids[:length] for ids, length in zip(prompts, lengths, strict=True)],
        "completions": draw(groups * K, data.completion),
        "pairs": pairs(groups, data.pairs),
        "rows": draw(ROWS, min(ROW, shape.context)),
    }


def pairs(groups: int, count: int) -> dict[str, list[list[int]]]:
    """Winner and loser of so many pairs; one order of each group decides who wins.

    Returns:
        "prefix": all 6 pairs of each group, group after group. "shuffled": as many, drawn from the pairs of all groups.
    """
    random = np.random.default_rng(SEED)
    every = []
    for group in range(groups):
        rank = random.permutation(K)
        for first, second in combinations(range(K), 2):
            winner, loser = (first, second) if rank[first] > rank[second] else (second, first)
            every.append([K * group + winner, K * group + loser])
    return {"prefix": every[:count], "shuffled": [every[i] for i in random.permutation(len(every))[:count]]}


def _write_models(shape: Shape, folder: Path) -> None:
    tokenizer = train_tokenizer(["every token of the data is a random number"], 300, shape.vocabulary)
    eos = int(tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        lm = _model(shape, eos).eval()
        for name in ("reference", "policy"):
            lm.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            for parameter in lm.parameters():  # noise as large as the weights: log-ratios far above bf16's rounding
                if parameter.ndim >= 2:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.02)


def _model(shape: Shape, eos: int) -> PreTrainedModel:
    if shape.family == "llama":
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.context,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads // 3,
            intermediate_size=shape.width * 28 // 9,
            tie_word_embeddings=True,
            bos_token_id=eos,
            eos_token_id=eos,
        )
        return LlamaForCausalLM(config)
    sizes = {"vocab_size": shape.vocabulary, "n_positions": shape.context, "n_embd": shape.width}
    sizes |= {"n_layer": shape.layers, "n_head": shape.heads, "bos_token_id": eos, "eos_token_id": eos}
    # without dropout: no program times another's random numbers
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
