"""Tied embeddings: the input embedding is the output layer, and both gradients go into one table."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class TiedEmbedding:
    """An embedding that is the output layer too; the gradient of the rows read is added to the output layer's.

    Autograd would otherwise build a second table of the whole vocabulary, mostly zeros, only to add it to the first.

    Attributes:
        weight: (vocabulary, width), as it was given.
        table: (vocabulary, width), a view of the weight, to be used as the output layer. The gradient that comes back
            through it is written to in place, so its sender must own it and not use it afterwards.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._row_gradients: list[tuple[Tensor, Tensor]] = []
        self.table = cast(Tensor, _Table.apply(weight, self._row_gradients))

    def rows(self, ids: Tensor, padding: int | None = None) -> Tensor:
        """(n, width) embeddings of (n,) tokens; a padding token's has no gradient."""
        return cast(Tensor, _Rows.apply(self.table, ids, self._row_gradients, padding))


class TiedLookups(TorchFunctionMode):
    """While it is entered, a model that looks up the weight of a tied embedding, in any way, takes its rows from that.

    Args:
        embedding: of the weight that the model looks up.
    """

    def __init__(self, embedding: TiedEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look up a plain embedding here; leave everything else as it is."""
        kwargs = kwargs or {}
        if function is F.embedding and args[1] is self.embedding.weight:
            plain = kwargs["max_norm"] is None and not kwargs["scale_grad_by_freq"] and not kwargs["sparse"]
            if plain and (kwargs["padding_idx"] is None or kwargs["padding_idx"] >= 0):
                ids = args[0]
                return self.embedding.rows(ids.flatten(), kwargs["padding_idx"]).view(*ids.shape, -1)
        return function(*args, **kwargs)


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
    def forward(
        ctx: Any, table: Tensor, ids: Tensor, row_gradients: list[tuple[Tensor, Tensor]], padding: int | None
    ) -> Tensor:
        ctx.ids, ctx.row_gradients, ctx.padding = ids, row_gradients, padding
        return table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.padding is not None:
            gradient = gradient.masked_fill((ctx.ids == ctx.padding)[:, None], 0)
        ctx.row_gradients.append((ctx.ids, gradient))
        return None, None, None, None
