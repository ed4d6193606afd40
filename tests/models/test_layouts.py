"""Layouts follow the weights that they were made from, however those change."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from transformers import GPT2LMHeadModel

from imdb_rlhf.models.decoding import open_decoder
from tests.models.test_decoding import make, replay, some


def step(lm: GPT2LMHeadModel) -> None:
    """An optimizer's step, the way training takes it."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.1, fused=True)
    lm(input_ids=torch.tensor([some(9, 23, seed=8)])).logits.square().mean().backward()
    optimizer.step()


def load(lm: GPT2LMHeadModel) -> None:
    lm.load_state_dict(make(seed=1).state_dict())


def edit(lm: GPT2LMHeadModel) -> None:
    """Past what torch counts as a change."""
    lm.transformer.h[1].mlp.c_proj.weight.data *= 1.5


def replace(lm: GPT2LMHeadModel) -> None:
    lm.transformer.h[0].attn.c_proj = make(seed=1).transformer.h[0].attn.c_proj


def fill(lm: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        lm.transformer.h[1].attn.c_attn.bias[3] = 2.0


@pytest.mark.parametrize("change", [step, load, edit, replace, fill])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_opened_after_a_change_of_weights_reads_the_new_ones(
    change: Callable[[GPT2LMHeadModel], None], dtype: torch.dtype
) -> None:
    lm, outputs = make(), []
    for after in (False, True):
        if after:
            change(lm)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs.append(list(replay(open_decoder(lm, 3, 8), [2, 5, 1], 3, 23)))
            fresh = list(replay(open_decoder(deepcopy(lm), 3, 8), [2, 5, 1], 3, 23))
        for (_, logits), (_, expected) in zip(outputs[-1], fresh, strict=True):
            assert logits.equal(expected)
    assert not any(old.equal(new) for (_, old), (_, new) in zip(*outputs, strict=True))
