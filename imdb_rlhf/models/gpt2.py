"""GPT-2's layers as this experiment runs them: right-padded rows, no mask, no dropout, matrices cast once a pass.

The same function as transformers' GPT2Model in evaluation mode, of the same parameters, written for speed:
- matrices are cast to the precision of the pass once, and their gradients return to them in their own precision;
- attention reads a few rows at a time, so that its scores stay in the cache;
- tanh-GELU is one pass; the residual stream and the layer norms stay in float32.
Any other model, and a GPT-2 that is trained with dropout, hooked, wrapped or changed, goes through transformers.
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
from imdb_rlhf.models.embedding import Shared
from imdb_rlhf.models.products import few_sizes, fuses, outside_autocast, product

# Libraries replace it on the class.
FORWARD = GPT2Model.forward
# What a GPT-2 is made of. Adapters, quantisation and sharding put other types in their place.
PARTS = {
    *(GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D),
    *(nn.Embedding, nn.LayerNorm, nn.Dropout, nn.ModuleList, NewGELUActivation, GELUTanh),
}
# What a block of rows costs beside its tokens, in tokens: some dozen small operations a layer.
BLOCK = 128


def is_plain(model: nn.Module) -> bool:
    """Whether `states` computes what calling the model would: a GPT-2 as it was published, nothing added to it."""
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
    """Whether a part does what its type says and nothing more."""
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
    replaced = "forward" in vars(module)  # as offloading does it
    return type(module) in PARTS and not (any(hooks) or drops or special or replaced)


def states(model: GPT2Model, ids: Tensor) -> Tensor:
    """The states that the output layer reads, with gradients.

    Args:
        model: `is_plain`; its matrices are multiplied in the autocast precision where one is on.
        ids: (rows, time) int64 right-padded tokens.

    Returns:
        (rows, time, width) in the precision of the parameters.
    """
    rows, time = ids.shape
    places = torch.arange(time, device=ids.device).repeat(rows)
    return _layers(model, ids.flatten(), places, [(rows, time)]).view(rows, time, -1)


def packed_states(
    model: GPT2Model, ids: Tensor, lengths: Tensor, embedding: Shared | None = None
) -> tuple[Tensor, Tensor]:
    """`states` of rows of different lengths, most of the padding left out.

    Args:
        model: `is_plain`.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each, at least 1.
        embedding: the model's own, where its gradient is to join the output layer's.

    Returns:
        (n, width) states, a row's in order, and (rows,) where in them each row begins.
    """
    blocks = pack(lengths.tolist())
    first = torch.empty(len(ids), dtype=torch.int64)
    tokens, places, begin = [], [], 0
    for members, time in blocks:
        first[members] = begin + time * torch.arange(len(members))
        begin += time * len(members)
        tokens.append(ids[torch.tensor(members, device=ids.device), :time].flatten())
        places.append(torch.arange(time, device=ids.device).repeat(len(members)))
    spare = few_sizes(begin) - begin  # tokens that nothing reads
    tokens.append(ids.new_zeros(spare))
    places.append(ids.new_zeros(spare))
    layout = [(len(members), time) for members, time in blocks]
    return _layers(model, torch.cat(tokens), torch.cat(places), layout, embedding), first.to(ids.device)


def pack(lengths: Sequence[int]) -> list[tuple[list[int], int]]:
    """Rows in blocks of like length, such that padding and the overhead of blocks together are least.

    Args:
        lengths: of the rows, in tokens.

    Returns:
        The rows of each block and its time, which is that of its longest row.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    grain = max(1, lengths[order[-1]] // 16)  # so many lengths are told apart
    bins = [lengths[row] // grain for row in order]
    cuts = [0, *(i for i in range(1, len(order)) if bins[i - 1] != bins[i]), len(order)]
    best = [(0, 0)]  # the least cost of the rows before a cut, and the cut that the last of their blocks begins at
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


def _layers(model: GPT2Model, ids: Tensor, places: Tensor, layout: Layout, embedding: Shared | None = None) -> Tensor:
    """(tokens, width) states of (tokens,) ids that stand at these places of their rows."""
    kind = ids.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype
    with torch.autocast(kind, enabled=False):
        read = F.embedding(ids, model.wte.weight) if embedding is None else embedding.rows(ids)
        x = read + F.embedding(places, model.wpe.weight)
        for block in model.h:
            x = _block(cast(GPT2Block, block), x, layout, dtype)
        return layer_norm(model.ln_f, x)


def _block(block: GPT2Block, x: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """One layer on the (tokens, width) residual stream."""
    attention, mlp = block.attn, block.mlp
    qkv = _Linear.apply(layer_norm(block.ln_1, x).to(dtype), attention.c_attn.weight, attention.c_attn.bias)
    own = attention.config._attn_implementation == "eager"
    mixed = (causal_attention if own else kernel_attention)(qkv, layout, attention.num_heads)
    x = _Linear.apply(mixed, attention.c_proj.weight, attention.c_proj.bias).to(x.dtype).add_(x)
    inner = _GELU.apply(layer_norm(block.ln_2, x).to(dtype), mlp.c_fc.weight, mlp.c_fc.bias)
    return cast(Tensor, _Linear.apply(inner, mlp.c_proj.weight, mlp.c_proj.bias).to(x.dtype).add_(x))


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer's norm over the last dimension, in the precision of x."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _cast(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight.to(x.dtype), bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    """x @ weight + bias, the operands cast to the precision of x once; (tokens, in) to (tokens, out)."""

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

    Where product and activation are one pass, the product is made again in backward: that costs less than a pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        table, offset = _cast(x, weight, bias)
        ctx.dtype = weight.dtype
        if fuses(x):
            ctx.save_for_backward(x, table, offset)
            return product(x, table.t(), offset, gelu=True)
        inner = product(x, table.t(), offset)
        ctx.save_for_backward(x, table, offset, inner)
        return F.gelu(inner, approximate="tanh")

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, table, offset, *kept = ctx.saved_tensors
        inner = kept[0] if kept else product(x, table.t(), offset)
        change = torch.empty_like(inner) if kept else inner  # what was made here is written over
        torch.ops.aten.gelu_backward.grad_input(gradient, inner, approximate="tanh", grad_input=change)
        return _linear_gradients(change, x, table, ctx)


def _linear_gradients(gradient: Tensor, x: Tensor, table: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, the last two in the parameters' precision, where they are wanted."""
    wanted = ctx.needs_input_grad
    grad_x = gradient @ table.t() if wanted[0] else None
    # a transposed left factor halves the speed of a CPU's matrix units; copying it pays where it is the narrow one
    left = x.t().contiguous() if 2 * x.shape[1] <= gradient.shape[1] else x.t()
    grad_weight = (left @ gradient).to(ctx.dtype) if wanted[1] else None
    grad_bias = gradient.sum(0).to(ctx.dtype) if wanted[2] else None
    return grad_x, grad_weight, grad_bias
