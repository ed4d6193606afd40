"""The count against torch's own on a GPT-2 of transformers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2LMHeadModel

from benchmarks.flops import forward, training
from benchmarks.workload import Shape, config_of

SHAPE = Shape("test", layers=3, width=24, heads=4, vocabulary=101, context=32, tokenizer=101)


def counted(rows: int, tokens: int, *, train: bool, scored: int | None = None) -> int:
    config = config_of(SHAPE, 0)
    config._attn_implementation = "eager"
    lm = GPT2LMHeadModel(config)
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % SHAPE.vocabulary
    with FlopCounterMode(display=False) as counter:
        logits = lm(input_ids=ids, logits_to_keep=scored or 0, use_cache=False).logits
        if train:
            logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (2, 7), (5, 32)])
def test_forward_and_backward_are_what_torch_counts(rows: int, tokens: int) -> None:
    every = [(tokens, tokens)] * rows
    assert forward(SHAPE, every) == counted(rows, tokens, train=False)
    assert training(SHAPE, every) == counted(rows, tokens, train=True)


def test_the_output_layer_is_counted_where_it_is_applied() -> None:
    assert forward(SHAPE, [(9, 4)] * 3) == counted(3, 9, train=False, scored=4)


def test_rows_of_different_lengths_add_up() -> None:
    assert forward(SHAPE, [(5, 5), (9, 9)]) == counted(1, 5, train=False) + counted(1, 9, train=False)
    assert forward(SHAPE, []) == 0
