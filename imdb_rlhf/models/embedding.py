"""Tied embeddings: the input embedding is the output layer, and both gradients go into one table."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


class TiedEmbedding:
    """An embedding that is the output layer too; the gradient of the rows read is added to the output layer's.

    Autograd would otherwise build a second table of the whole vocabulary, mostly zeros, only to add it to the first.

    Attributes:
        table: (vocabulary, width), a view of the weight, to be used as the output layer. The gradient that comes back
            through it is written to in place, so its sender must own it and not use it afterwards.
    """

    def __init__(self, weight: Tensor) -> None:
        self._row_gradients: list[tuple[Tensor, Tensor]] = []
        self.table = cast(Tensor, _Table.apply(weight, self._row_gradients))

    def rows(self, ids: Tensor) -> Tensor:
        """(n, width) embeddings of (n,) tokens."""
        return cast(Tensor, _Rows.apply(self.table, ids, self._row_gradients))


class _Table(torch.autograd.Function):
    """A view of the weight; autograd runs its backward once the gradients of every use of the view have come."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, row_gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.row_gradients, ctx.like = row_gradients, (weight.shape, weight.dtype, weight.device)
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:
        if not ctx.row_gradients:
            return gradient, None
        if gradient is None:  # the output layer was not used
            shape, dtype, device = ctx.like
            gradient = torch.zeros(shape, dtype=dtype, device=device)
        gradient = gradient.contiguous()  # an expanded gradient has one number in many places: no writing to it
        while ctx.row_gradients:
            ids, rows = ctx.row_gradients.pop()
            # sum each token's small gradients, in float32 at least, before adding them to the table's large ones
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            entries, indices = ids.unique(return_inverse=True)
            sums = rows.new_zeros(len(entries), rows.shape[1]).index_add_(0, indices, rows)
            gradient.index_add_(0, entries, sums.to(gradient.dtype))
        return gradient, None


class _Rows(torch.autograd.Function):
    """Rows of the table; their gradient is kept for the table's backward to add."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, row_gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.ids, ctx.row_gradients = ids, row_gradients
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.row_gradients.append((ctx.ids, gradient))
        return None, None, None
