"""An embedding that is the output layer too."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


class Shared:
    """An embedding that is the output layer too; the gradient of the rows that are read is added to the other's.

    A gradient of its own would be a table of the whole vocabulary, filled with zeros, to be added to another one.

    Attributes:
        table: (vocabulary, width), a view of the weight: what the output layer is to be made of. The gradient that
            comes back through it is written into, so whoever sends it must have made it and not keep it.
    """

    def __init__(self, weight: Tensor) -> None:
        self._read: list[tuple[Tensor, Tensor]] = []
        self.table = cast(Tensor, _Shared.apply(weight, self._read))

    def rows(self, ids: Tensor) -> Tensor:
        """(n, width) of (n,) tokens."""
        return cast(Tensor, _Rows.apply(self.table, ids, self._read))


class _Shared(torch.autograd.Function):
    """A view; its gradient comes when those of all that was made of it are there."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, read: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.read, ctx.like = read, (weight.shape, weight.dtype, weight.device)
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:
        if not ctx.read:
            return gradient, None
        if gradient is None:  # no log-prob was asked for
            shape, dtype, device = ctx.like
            gradient = torch.zeros(shape, dtype=dtype, device=device)
        gradient = gradient.contiguous()  # one number in many places cannot be written to
        while ctx.read:
            ids, rows = ctx.read.pop()
            # small numbers are summed, in float32 at least, before they are added to large ones
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            entries, places = ids.unique(return_inverse=True)
            sums = rows.new_zeros(len(entries), rows.shape[1]).index_add_(0, places, rows)
            gradient.index_add_(0, entries, sums.to(gradient.dtype))
        return gradient, None


class _Rows(torch.autograd.Function):
    """Rows of a shared table, whose gradient is left to the table's."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, read: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.ids, ctx.read = ids, read
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.read.append((ctx.ids, gradient))
        return None, None, None
