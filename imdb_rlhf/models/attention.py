"""Causal attention over blocks of rows of similar length, a few rows at a time, so that scores stay in the cache."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from imdb_rlhf.models.products import outside_autocast

# Attention scores computed at once on a CPU: few enough to stay in its cache.
SCORES = 1 << 20
# Time and rows are padded to multiples of these.
COLUMNS, ROWS = 32, 4

# (rows, time) of each block, in the order of their tokens.
Layout = Sequence[tuple[int, int]]


def causal_attention(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Causal self-attention by batched products and a softmax over a few rows at a time.

    Args:
        qkv: (tokens, 3 * width) queries, keys and values; tokens beyond the layout's are padding.
        layout: how the tokens form rows.
        heads: number of attention heads.

    Returns:
        (tokens, width), 0 for padding.
    """
    return cast(Tensor, _Attention.apply(qkv, layout, heads))


def split_heads(qkv: Tensor, rows: int, heads: int) -> Tensor:
    """View (rows * time, 3 * width) as (3, rows, heads, time, width of a head)."""
    return qkv.view(rows, -1, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)


def _parts(table: Tensor, layout: Layout) -> Iterator[tuple[Tensor, int]]:
    """The (rows * time, ...) part of a (tokens, ...) table that belongs to each block, with the block's rows."""
    begin = 0
    for rows, time in layout:
        yield table[begin : begin + rows * time], rows
        begin += rows * time


def _tokens(layout: Layout) -> int:
    return sum(rows * time for rows, time in layout)


def kernel_attention(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """`causal_attention` by torch's own kernel, which is faster on a GPU and, for long rows, on any device."""
    outputs = []
    for part, rows in _parts(qkv, layout):
        query, key, value = split_heads(part, rows, heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        outputs.append(mixed.transpose(1, 2).reshape(len(part), -1))
    spare = len(qkv) - _tokens(layout)
    return torch.cat([*outputs, qkv.new_zeros(spare, qkv.shape[1] // 3)])


class _Attention(torch.autograd.Function):
    """Causal attention, a few rows at a time.

    The attention weights of short rows are saved for the backward pass. Rows longer than three times a head's width
    have more weights than queries, keys and values, so theirs are computed again instead.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: int) -> Tensor:
        mixed = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        mixed[_tokens(layout) :] = 0
        saved: list[Tensor | None] = []
        for (part, rows), (into, _) in zip(_parts(qkv, layout), _parts(mixed, layout), strict=True):
            parts = split_heads(part, rows, heads)
            saved += _attend(parts, into.view(rows, -1, heads, into.shape[1] // heads), ctx.needs_input_grad[0])
        ctx.save_for_backward(qkv, *saved)
        ctx.layout, ctx.heads = layout, heads
        return mixed

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        qkv, *saved = ctx.saved_tensors
        weights = iter(saved)
        grad_qkv = torch.empty_like(qkv)
        grad_qkv[_tokens(ctx.layout) :] = 0
        tables = (_parts(table, ctx.layout) for table in (qkv, gradient, grad_qkv))
        for (part, rows), (incoming, _), (into, _) in zip(*tables, strict=True):
            _attend_backward(
                split_heads(part, rows, ctx.heads),
                incoming.view(rows, len(part) // rows, ctx.heads, -1).transpose(1, 2),
                weights,
                split_heads(into, rows, ctx.heads),
            )
        return grad_qkv, None, None


def _attend(parts: Tensor, into: Tensor, keep: bool) -> list[Tensor | None]:
    """Write the attention of (3, rows, heads, time, width) queries, keys and values into (rows, time, heads, width).

    Returns:
        The attention weights of each block of rows, or None for each where they are not kept.
    """
    later, saved = _later(parts), []
    keep = keep and len(later) <= 3 * parts.shape[4]
    for at in _row_blocks(parts):
        query, key, value = _padded(parts[:, at], later)
        weights = _weights(query, key, later)
        _cut(torch.bmm(weights, value), parts.shape[2], into[at].transpose(1, 2))
        saved.append(weights if keep else None)
    return saved


def _attend_backward(parts: Tensor, incoming: Tensor, saved: Iterator[Tensor | None], into: Tensor) -> None:
    """Write the gradient of `parts` into `into`, of its shape, given the output's (rows, heads, time, width)."""
    later = _later(parts)
    _, _, heads, _, width = parts.shape
    for at in _row_blocks(parts):
        query, key, value = _padded(parts[:, at], later)
        (grad_mixed,) = _padded(incoming[None, at], later)
        saved_weights = next(saved)
        weights = _weights(query, key, later) if saved_weights is None else saved_weights
        _cut(torch.bmm(weights.transpose(1, 2), grad_mixed), heads, into[2, at])
        grad_weights = torch.bmm(grad_mixed, value.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(width**-0.5)
        _cut(torch.bmm(grad_scores, key), heads, into[0, at])
        _cut(torch.bmm(grad_scores.transpose(1, 2), query), heads, into[1, at])


def _row_blocks(parts: Tensor) -> list[slice]:
    _, rows, heads, time, _ = parts.shape
    size = max(1, SCORES // max(1, heads * time * time))
    size -= size % ROWS if size > ROWS else 0
    return [slice(at, at + size) for at in range(0, rows, size)]


def _later(parts: Tensor) -> Tensor:
    """The causal mask that is added to scores, (columns, columns): -inf where a key is later than its query.

    Time is padded to a multiple of COLUMNS: a softmax whose row does not fill the CPU's vectors is several times slower
    than one over a few columns more.
    """
    columns = -(-parts.shape[3] // COLUMNS) * COLUMNS
    later = torch.ones(columns, columns, dtype=torch.bool, device=parts.device).triu_(1)
    return torch.zeros(columns, columns, dtype=parts.dtype, device=parts.device).masked_fill_(later, float("-inf"))


def _padded(parts: Tensor, later: Tensor) -> Tensor:
    """Copy (k, rows, heads, time, width) into (k, n, columns, width), with zeros as padding of rows and time."""
    count, rows, heads, time, width = parts.shape
    padded = parts.new_empty(count, -(-rows // ROWS) * ROWS, heads, len(later), width)
    padded[:, :rows, :, :time] = parts
    padded[:, :rows, :, time:] = 0
    padded[:, rows:] = 0
    return padded.view(count, -1, len(later), width)


def _cut(table: Tensor, heads: int, into: Tensor) -> None:
    """Write (n, columns, width) into (rows, heads, time, width), without the padding of `_padded`."""
    rows, _, time, _ = into.shape
    into.copy_(table.view(-1, heads, *table.shape[1:])[:rows, :, :time])


def _weights(query: Tensor, key: Tensor, later: Tensor) -> Tensor:
    """(n, columns, columns) attention weights; the softmax computes in float32 inside."""
    return torch.baddbmm(later, query, key.transpose(1, 2), alpha=query.shape[2] ** -0.5).softmax(-1)
