"""Logits in blocks of tokens x vocabulary: how they are cut, the memory they share, a log-sum-exp over the blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

# Logits held at once: few enough for a CPU's cache, enough to keep a GPU busy.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
# Vocabulary entries per block of logits. A large vocabulary is cut so that many tokens share a block: the gradient of
# the output layer, as large as the layer, is then written once and not once per handful of tokens.
TILE = {"cpu": 1 << 10, "cuda": 1 << 14}


class Blocks:
    """Memory for one block of logits; each block overwrites the one before, so that the memory stays in the cache.

    Args:
        like: (n, width) states; products have their precision.
        parts: blocks of tokens.
        blocks: blocks of the vocabulary.
    """

    def __init__(self, like: Tensor, parts: list[slice], blocks: list[slice]) -> None:
        largest = max((_size(part) for part in parts), default=0) * _size(blocks[0])
        self.float32 = like.new_empty(largest, dtype=torch.float32)
        self.raw = self.float32 if like.dtype == torch.float32 else like.new_empty(largest)

    def logits(self, hidden: Tensor, layer: tuple[Tensor, Tensor | None], entries: slice, temperature: float) -> Tensor:
        """Compute the logits of a block over the block before.

        Args:
            hidden: (tokens, width) states.
            layer: weight (vocabulary, width) and bias (vocabulary,) or None.
            entries: block of the vocabulary.
            temperature: divides the logits.

        Returns:
            (tokens, entries) float32.
        """
        weight, bias = layer
        shape = len(hidden), _size(entries)
        torch.mm(hidden, weight[entries].to(hidden.dtype).t(), out=_view(self.raw, shape))
        logits = _view(self.float32, shape)
        if self.raw is not self.float32:
            logits.copy_(_view(self.raw, shape))
        if bias is not None:
            logits += bias[entries].float()
        return logits if temperature == 1 else logits.div_(temperature)

    def lowered(self, block: Tensor) -> Tensor:
        """Cast a block of `logits`' shape to the states' precision, over the products it was computed from."""
        return _view(self.raw, block.shape).copy_(block)


def _size(part: slice) -> int:
    return cast(int, part.stop - part.start)


def _view(memory: Tensor, shape: Sequence[int]) -> Tensor:
    return memory[: shape[0] * shape[1]].view(shape)


def tiles(tokens: int, vocabulary: int, device: str) -> tuple[list[slice], list[slice]]:
    """Cut tokens and vocabulary into blocks of at most CHUNK logits; the blocks of tokens are about equal in size."""
    entries = min(vocabulary, TILE.get(device, TILE["cpu"]))
    most = max(1, CHUNK.get(device, CHUNK["cpu"]) // entries)
    size = -(-tokens // -(-tokens // most)) if tokens else 1
    return slices(tokens, size), slices(vocabulary, entries)


def slices(total: int, size: int, first: int = 0) -> list[slice]:
    """Cut the range from `first` to `total` into slices of `size`; the last may be shorter."""
    return [slice(at, min(at + size, total)) for at in range(first, total, size)]


@dataclass
class Normaliser:
    """log sum exp over the vocabulary of (n,) tokens, accumulated block by block.

    Attributes:
        top: (n,) float32, the largest logit so far.
        total: (n,) float64, the sum of exp(logit - top).
    """

    top: Tensor
    total: Tensor

    @staticmethod
    def of(tokens: int, device: torch.device) -> "Normaliser":
        """Start with no block added."""
        lowest = torch.finfo(torch.float32).min
        return Normaliser(
            torch.full((tokens,), lowest, device=device), torch.zeros(tokens, dtype=torch.float64, device=device)
        )

    def add(self, part: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Add a (tokens, entries) block, which is overwritten by exp(logits - top).

        Returns:
            (tokens,) factors that bring sums over earlier blocks to the new top, and the overwritten block.
        """
        top = torch.maximum(self.top[part], logits.amax(-1))
        shrink = (self.top[part] - top).exp_()
        weights = logits.sub_(top[:, None]).exp_()
        self.top[part] = top
        self.total[part] = self.total[part] * shrink + weights.sum(-1)
        return shrink, weights

    def value(self) -> Tensor:
        """(n,) log sum exp."""
        return self.top + self.total.log()


def indices_in(targets: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """The index of each of (n,) targets in a block of the vocabulary, (n, 1), and whether it is inside, (n, 1) bool."""
    inside = (targets >= entries.start) & (targets < entries.stop)
    return (targets - entries.start).clamp_(0, entries.stop - entries.start - 1)[:, None], inside[:, None]
