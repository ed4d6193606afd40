"""Logits in blocks of tokens x vocabulary: where they are made, and what is summed over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


class Blocks:
    """Where blocks of logits are made: in the same memory one after the other, which is in the cache by then.

    Args:
        like: states, (n, width), whose precision the products have.
        parts: blocks of tokens.
        blocks: of the vocabulary.
    """

    def __init__(self, like: Tensor, parts: list[slice], blocks: list[slice]) -> None:
        most = max((_size(part) for part in parts), default=0) * _size(blocks[0])
        self.float32 = like.new_empty(most, dtype=torch.float32)
        self.raw = self.float32 if like.dtype == torch.float32 else like.new_empty(most)

    def logits(self, hidden: Tensor, layer: tuple[Tensor, Tensor | None], entries: slice, temperature: float) -> Tensor:
        """Logits of a block, in the memory of the one before.

        Args:
            hidden: (tokens, width) states.
            layer: weight (vocabulary, width) and bias (vocabulary,) or None.
            entries: of the vocabulary.
            temperature: divides them.

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
        """A block of `logits`' shape in the precision of the states, over what made it."""
        return _view(self.raw, block.shape).copy_(block)


def _size(part: slice) -> int:
    return cast(int, part.stop - part.start)


def _view(memory: Tensor, shape: Sequence[int]) -> Tensor:
    return memory[: shape[0] * shape[1]].view(shape)


def slices(total: int, size: int, first: int = 0) -> list[slice]:
    """From `first` to `total`, so many at a time."""
    return [slice(at, min(at + size, total)) for at in range(first, total, size)]


@dataclass
class Normaliser:
    """log sum exp over a vocabulary that comes block by block, for (n,) tokens.

    Attributes:
        top: (n,) float32, the largest logit so far.
        total: (n,) float64, the sum of exp(logit - top).
    """

    top: Tensor
    total: Tensor

    @staticmethod
    def of(tokens: int, device: torch.device) -> "Normaliser":
        """Of nothing yet."""
        lowest = torch.finfo(torch.float32).min
        return Normaliser(
            torch.full((tokens,), lowest, device=device), torch.zeros(tokens, dtype=torch.float64, device=device)
        )

    def add(self, part: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take a (tokens, entries) block in; it becomes exp(logits - top).

        Returns:
            What sums taken so far are to be multiplied by, and the block.
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


def places_in(targets: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Where (n,) targets stand within a block of the vocabulary, (n, 1), and whether they do, (n, 1) bool."""
    inside = (targets >= entries.start) & (targets < entries.stop)
    return (targets - entries.start).clamp_(0, entries.stop - entries.start - 1)[:, None], inside[:, None]
