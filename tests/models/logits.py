"""Tiny models and their whole logits, for the tests of what never holds whole logits."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from imdb_rlhf.models import blocks
from imdb_rlhf.models.logprobs import Rows, completion_mask
from tests import tiny

EOS = 4

gpt2 = partial(tiny.gpt2, vocabulary=23, context=32, spread=0.3, eos=EOS)


def ragged(vocabulary: int = 23) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of many lengths: prompts of one token, completions of one and of none."""
    random = torch.Generator().manual_seed(5)
    sizes = [(1, 1), (4, 9), (8, 0), (1, 12), (3, 1), (6, 5)]

    def tokens(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=random).tolist()

    return [tokens(a) for a, _ in sizes], [tokens(b) for _, b in sizes]


def full(lm: PreTrainedModel, rows: Rows, temperature: float = 1.0) -> Tensor:
    """(rows, time) log-probs of completion tokens from the model's own logits, all held at once."""
    logits = lm(input_ids=rows.ids, use_cache=False).logits[:, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    values = wide.log_softmax(-1).gather(2, rows.ids[:, 1:, None])[..., 0]
    inside = completion_mask(rows.ids, rows.starts, rows.lengths)
    return torch.nn.functional.pad(values, (1, 0)).where(inside, 0.0)


class Largest(TorchDispatchMode):
    """Watches every new tensor: the most numbers in one whose last size is the vocabulary, and rows multiplied."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numbers, self.rows = vocabulary, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[-1] == self.vocabulary:
                self.numbers = max(self.numbers, tensor.numel())
                if "mm" in str(function):
                    self.rows += tensor.numel() // self.vocabulary
        return out


def limit(monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int) -> None:
    """Allow so many logits at once, of so many entries of the vocabulary."""
    for name, value in (("CHUNK", chunk), ("TILE", tile)):
        monkeypatch.setattr(blocks, name, dict.fromkeys(getattr(blocks, name), value))
