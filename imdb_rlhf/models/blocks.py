"""Logits in blocks of tokens x vocabulary: how they are cut, the memory they share, a log-sum-exp over the blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from imdb_rlhf.models.products import factor_dtype, float32_product, fuses

# Logits held at once: few enough for a CPU's cache, enough to keep a GPU busy.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
# Vocabulary entries per block of logits. A large vocabulary is cut so that many tokens share a block: the gradient of
# the output layer, as large as the layer, is then written once and not once per handful of tokens.
TILE = {"cpu": 1 << 10, "cuda": 1 << 14}
# Columns added to the factors of `Probabilities`: six are used, and rows stay as aligned as they were.
COLUMNS = 32


@dataclass(frozen=True)
class OutputLayer:
    """How a model makes logits of its states: cap(scale * (weight @ state + bias)).

    Attributes:
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
        scale: multiplies the products, as in Cohere's and Granite's models.
        cap: soft cap c of the logits, c tanh(logit / c), as in Gemma 2; None caps nothing.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.weight)

    def finish(self, products: Tensor, bias: Tensor | None) -> Tensor:
        """Make logits of float32 products with the weight, in place.

        Args:
            products: (tokens, entries).
            bias: (entries,) or None.
        """
        if bias is not None:
            products += bias.float()
        if self.scale != 1:
            products *= self.scale
        return products if self.cap is None else products.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """The derivative of logits to scaled products, of the logits' shape; None where it is 1 everywhere."""
        return None if self.cap is None else (logits / self.cap).square_().neg_().add_(1)


class Blocks:
    """Computes logits block by block in float32, each over the one before, so that the memory stays in the cache.

    Args:
        hidden: (n, width) states.
        layer: the output layer.
        parts: blocks of tokens.
        blocks: blocks of the vocabulary.
        temperature: divides the logits.
    """

    def __init__(
        self, hidden: Tensor, layer: OutputLayer, parts: list[slice], blocks: list[slice], temperature: float = 1.0
    ) -> None:
        self.layer, self.temperature, self.dtype = layer, temperature, hidden.dtype
        self.hidden = hidden.to(factor_dtype(hidden))
        self.entries, self.weight = slice(0, 0), layer.weight[:0]
        self.memory = hidden.new_empty(_largest(parts, blocks), dtype=torch.float32)

    def logits(self, part: slice, entries: slice) -> Tensor:
        """Compute (tokens, entries) float32 logits of a block of tokens and a block of the vocabulary."""
        hidden = self.hidden[part]
        products = _view(self.memory, (len(hidden), _size(entries)))
        if entries != self.entries:
            # rounded to the states' precision here too: the backward pass and the sampler multiply the same factors
            self.entries, self.weight = entries, self.layer.weight[entries].to(self.dtype).to(hidden.dtype)
        float32_product(hidden, self.weight, products, rounded=self.dtype == torch.bfloat16)
        logits = self.layer.finish(products, None if self.layer.bias is None else self.layer.bias[entries])
        return logits if self.temperature == 1 else logits.div_(self.temperature)


class Probabilities:
    """Softmax probabilities block by block, each over the one before, given each token's log-sum-exp.

    On a CPU that multiplies bf16 natively the log-sum-exp is subtracted inside the product, by columns that are added
    to its factors. So what is rounded to bf16 is a log-prob, however large the logits are, and that of a likely token
    is near 0 and loses least. It is twice as fast as a float32 result and costs no pass over the block.

    Args:
        hidden: (n, width) states.
        layer: the output layer.
        parts: blocks of tokens.
        blocks: blocks of the vocabulary.
        temperature: divides the logits.
        normalisers: (n,) float32 log-sum-exp of each token's logits.
    """

    def __init__(
        self,
        hidden: Tensor,
        layer: OutputLayer,
        parts: list[slice],
        blocks: list[slice],
        temperature: float,
        normalisers: Tensor,
    ) -> None:
        self.layer, self.temperature, self.normalisers = layer, temperature, normalisers
        self.dtype, self.width = hidden.dtype, hidden.shape[1]
        self.inside = hidden.dtype == torch.bfloat16 and layer.scale == 1 and layer.cap is None and fuses(hidden)
        if self.inside:
            self.hidden = hidden.new_zeros(len(hidden), self.width + COLUMNS)
            self.hidden[:, : self.width] = hidden
            self.hidden[:, self.width : self.width + 3] = in_three(normalisers * temperature)
            self.hidden[:, self.width + 3 : self.width + 6] = 1
            self.weight = hidden.new_zeros(_size(blocks[0]), self.width + COLUMNS)
            self.memory = hidden.new_empty(_largest(parts, blocks))
        else:
            self.logits = Blocks(hidden, layer, parts, blocks, temperature)

    def table(self, entries: slice) -> Tensor:
        """(entries, width) rows of the output layer in the states' precision; `block` is of these rows from now on."""
        rows = self.layer.weight[entries]
        if not self.inside:
            return rows.to(self.dtype)
        table = self.weight[: len(rows)]
        table[:, : self.width] = rows
        table[:, self.width : self.width + 3] = -1
        if self.layer.bias is not None:
            table[:, self.width + 3 : self.width + 6] = in_three(self.layer.bias[entries].float())
        return table[:, : self.width]

    def block(self, part: slice, entries: slice) -> tuple[Tensor, Tensor | None]:
        """(tokens, entries) probabilities, float32 or in the states' precision, and the logits' `OutputLayer.slope`."""
        if self.inside:
            hidden, table = self.hidden[part], self.weight[: _size(entries)]
            logprobs = torch.mm(hidden, table.t(), out=_view(self.memory, (len(hidden), len(table))))
            return (logprobs if self.temperature == 1 else logprobs.div_(self.temperature)).exp_(), None
        logits = self.logits.logits(part, entries)
        slope = self.layer.slope(logits if self.temperature == 1 else logits * self.temperature)
        return logits.sub_(self.normalisers[part, None]).exp_(), slope


def in_three(values: Tensor) -> Tensor:
    """(n, 3) bf16 numbers whose sums are (n,) float32 values, to float32's precision."""
    parts, rest = [], values
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    return torch.stack(parts, 1)


def log_sum_exp(logits: Tensor) -> Tensor:
    """(tokens,) float64 log-sum-exp of (tokens, entries) float32 logits, which may be overwritten."""
    if logits.device.type != "cpu":
        return logits.logsumexp(-1).double()
    # the kernel of log-softmax does maximum, exponentials and their sum in one pass over a row
    first = logits[:, 0].double()
    return first - torch._log_softmax(logits, -1, False, out=logits)[:, 0]


def _size(part: slice) -> int:
    return cast(int, part.stop - part.start)


def _largest(parts: list[slice], blocks: list[slice]) -> int:
    return max((_size(part) for part in parts), default=0) * _size(blocks[0])


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
