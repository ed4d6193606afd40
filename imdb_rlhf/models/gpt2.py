"""GPT-2's layers as this experiment runs them: right-padded rows, no mask, no dropout, matrices cast once per pass.

It computes the same function of the same parameters as transformers' GPT2Model in evaluation mode, but faster:
- each matrix is cast to the precision of the pass once, and its gradient comes back in the matrix's own precision;
- attention reads a few rows at a time, so that its scores stay in the cache;
- tanh-GELU is one pass; the residual stream and the layer norms stay in float32.
Any other model, and a GPT-2 with dropout in training, hooks, wrappers or replaced parts, goes through transformers.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import GPT2Model
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from imdb_rlhf.models.attention import Layout, causal_attention, kernel_attention
from imdb_rlhf.models.embedding import TiedEmbedding
from imdb_rlhf.models.products import fuses, has_amx, outside_autocast, product, rounded_up

# As transformers defines it: some libraries replace it on the class.
FORWARD = GPT2Model.forward
# The types of a GPT-2's parts. Adapters, quantisation and sharding replace some of them.
PARTS = {
    *(GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D),
    *(nn.Embedding, nn.LayerNorm, nn.Dropout, nn.ModuleList, NewGELUActivation, GELUTanh),
}
# The overhead of a block of rows (some dozen small operations per layer), counted in tokens.
BLOCK = 128


def is_plain(model: nn.Module) -> bool:
    """Whether `states` computes what calling the model would: it is a GPT-2 as published, with nothing added."""
    if type(model) is not GPT2Model or GPT2Model.forward is not FORWARD:
        return False
    config: Any = model.config
    published = (
        config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
        and not config.reorder_and_upcast_attn
        and not config.add_cross_attention
    )
    return bool(published and not _has_any_global_hook() and all(map(_is_bare, model.modules())))


def _is_bare(module: nn.Module) -> bool:
    """Whether a part does what its type says and no more."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    drops = isinstance(module, nn.Dropout) and module.training and module.p > 0
    special = isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.padding_idx is not None or module.scale_grad_by_freq or module.sparse
    )
    replaced = "forward" in vars(module)  # as offloading does
    return type(module) in PARTS and not (any(hooks) or drops or special or replaced)


def states(model: GPT2Model, ids: Tensor) -> Tensor:
    """Compute the states that the output layer reads, with gradients.

    Args:
        model: one that `is_plain`; its matrices are multiplied in autocast's precision where autocast is on.
        ids: (rows, time) int64 right-padded tokens.

    Returns:
        (rows, time, width) in the precision of the parameters.
    """
    rows, time = ids.shape
    positions = torch.arange(time, device=ids.device).repeat(rows)
    return _layers(model, ids.flatten(), positions, [(rows, time)]).view(rows, time, -1)


def packed_states(
    model: GPT2Model, ids: Tensor, lengths: Tensor, embedding: TiedEmbedding | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `states` of rows of different lengths, without most of the padding.

    Args:
        model: one that `is_plain`.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each row, at least 1.
        embedding: the model's tied embedding, to add its gradient to the output layer's; None keeps them apart.

    Returns:
        (n, width) states, those of a row one after the other, and (rows,) the index of each row's first state.
    """
    blocks = pack(lengths.tolist())
    first = torch.empty(len(ids), dtype=torch.int64)
    tokens, positions, begin = [], [], 0
    for members, time in blocks:
        first[members] = begin + time * torch.arange(len(members))
        begin += time * len(members)
        tokens.append(ids[torch.tensor(members, device=ids.device), :time].flatten())
        positions.append(torch.arange(time, device=ids.device).repeat(len(members)))
    spare = rounded_up(begin) - begin  # padding that nothing reads
    tokens.append(ids.new_zeros(spare))
    positions.append(ids.new_zeros(spare))
    layout = [(len(members), time) for members, time in blocks]
    return _layers(model, torch.cat(tokens), torch.cat(positions), layout, embedding), first.to(ids.device)


def pack(lengths: Sequence[int]) -> list[tuple[list[int], int]]:
    """Group rows into blocks of similar length, by dynamic programming: least padding plus overhead of the blocks.

    Args:
        lengths: of the rows, in tokens.

    Returns:
        For each block, its rows and its time, which is the length of its longest row.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    grain = max(1, lengths[order[-1]] // 16)  # lengths are told apart in steps of this
    bins = [lengths[row] // grain for row in order]
    cuts = [0, *(i for i in range(1, len(order)) if bins[i - 1] != bins[i]), len(order)]
    best = [(0, 0)]  # for each cut: the least cost of the rows before it, and the cut at which their last block begins
    for end in range(1, len(cuts)):
        time = lengths[order[cuts[end] - 1]]
        best.append(min((best[i][0] + (cuts[end] - cuts[i]) * time + BLOCK, i) for i in range(end)))
    blocks, end = [], len(cuts) - 1
    while end:
        begin = best[end][1]
        members = order[cuts[begin] : cuts[end]]
        blocks.append((members, lengths[members[-1]]))
        end = begin
    return blocks[::-1]


def _layers(
    model: GPT2Model, ids: Tensor, positions: Tensor, layout: Layout, embedding: TiedEmbedding | None = None
) -> Tensor:
    """(tokens, width) states of (tokens,) ids at (tokens,) positions in their rows."""
    kind = ids.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype
    with torch.autocast(kind, enabled=False):
        embedded = F.embedding(ids, model.wte.weight) if embedding is None else embedding.rows(ids)
        x = embedded + F.embedding(positions, model.wpe.weight)
        for block in model.h:
            x = _block(cast(GPT2Block, block), x, layout, dtype)
        return layer_norm(model.ln_f, x)


def _block(block: GPT2Block, x: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """One layer on the (tokens, width) residual stream."""
    attention, mlp = block.attn, block.mlp
    qkv = _Linear.apply(layer_norm(block.ln_1, x).to(dtype), attention.c_attn.weight, attention.c_attn.bias)
    eager = attention.config._attn_implementation == "eager"
    mixed = (causal_attention if eager else kernel_attention)(qkv, layout, attention.num_heads)
    x = _Linear.apply(mixed, attention.c_proj.weight, attention.c_proj.bias).to(x.dtype).add_(x)
    inner = _GELU.apply(layer_norm(block.ln_2, x).to(dtype), mlp.c_fc.weight, mlp.c_fc.bias)
    return cast(Tensor, _Linear.apply(inner, mlp.c_proj.weight, mlp.c_proj.bias).to(x.dtype).add_(x))


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a layer norm over the last dimension, in the precision of x."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _cast(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight.to(x.dtype), bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    """x @ weight + bias, with weight and bias cast to x's precision once; (tokens, in) to (tokens, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        table, offset = _cast(x, weight, bias)
        ctx.save_for_backward(x, table)
        ctx.dtype = weight.dtype
        return product(x, table.t(), offset)

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, table = ctx.saved_tensors
        return _linear_gradients(gradient, x, table, ctx)


class _GELU(torch.autograd.Function):
    """tanh-GELU(x @ weight + bias).

    With AMX one pass computes product and activation, and backward computes the product again: that costs less than a
    second pass in forward to save it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        table, offset = _cast(x, weight, bias)
        ctx.dtype = weight.dtype
        if fuses(x) and has_amx():
            ctx.save_for_backward(x, table, offset)
            return product(x, table.t(), offset, gelu=True)
        inner = product(x, table.t(), offset)
        ctx.save_for_backward(x, table, offset, inner)
        return F.gelu(inner, approximate="tanh")

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, table, offset, *saved = ctx.saved_tensors
        inner = saved[0] if saved else product(x, table.t(), offset)
        change = torch.empty_like(inner) if saved else inner  # a product computed here may be overwritten
        torch.ops.aten.gelu_backward.grad_input(gradient, inner, approximate="tanh", grad_input=change)
        return _linear_gradients(change, x, table, ctx)


def _linear_gradients(gradient: Tensor, x: Tensor, table: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """The gradients that are needed of x, weight and bias, the last two in the parameters' precision."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    grad_x = gradient @ table.t() if needs_x else None
    # a transposed left factor halves the speed of AMX; copying x pays if it is much the narrower one
    left = x.t().contiguous() if has_amx() and 2 * x.shape[1] <= gradient.shape[1] else x.t()
    grad_weight = (left @ gradient).to(ctx.dtype) if needs_weight else None
    grad_bias = gradient.sum(0).to(ctx.dtype) if needs_bias else None
    return grad_x, grad_weight, grad_bias
