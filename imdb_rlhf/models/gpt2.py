"""GPT-2's layers as this experiment runs them: right-padded rows, no mask, no dropout, matrices cast once a pass.

The same function as transformers' GPT2Model in evaluation mode, of the same parameters, written for speed:
- matrices are cast to the precision of the pass once, and their gradients return to them in their own precision;
- attention reads a few rows at a time, so that its scores stay in the cache, and makes them again in backward;
- tanh-GELU is one pass; the residual stream and the layer norms stay in float32.
Any other model, and a GPT-2 that is trained with dropout, hooked, wrapped or changed, goes through transformers.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from imdb_rlhf.models.products import fuses, product

# Libraries replace it on the class.
FORWARD = GPT2Model.forward
# Attention scores held at once on a CPU, in numbers.
SCORES = 1 << 20
# Keys that a row of scores is filled up to a multiple of.
COLUMNS = 32


def is_plain(model: nn.Module) -> bool:
    """Whether `states` computes what calling the model would: a GPT-2 as it was published, nothing added to it."""
    if type(model) is not GPT2Model or GPT2Model.forward is not FORWARD:
        return False
    config = model.config
    published = (
        config.activation_function in ("gelu_new", "gelu_pytorch_tanh")
        and config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
        and not config.reorder_and_upcast_attn
        and not config.add_cross_attention
    )
    dropout = max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) if model.training else 0.0
    layers = [layer for block in model.h for layer in _matrices(block)] if published else []
    # adapters and quantisation put other layers in their place
    bare = all(type(layer) is Conv1D for layer in layers)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return bool(published and bare and not dropout and not hooked)


def states(model: GPT2Model, ids: Tensor) -> Tensor:
    """The states that the output layer reads, with gradients.

    Args:
        model: `is_plain`; its matrices are multiplied in the autocast precision where one is on.
        ids: (rows, time) int64 right-padded tokens.

    Returns:
        (rows, time, width) in the precision of the parameters.
    """
    rows, time = ids.shape
    kind = ids.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype
    with torch.autocast(kind, enabled=False):
        x = F.embedding(ids, model.wte.weight) + model.wpe.weight[:time]
        x = x.view(rows * time, -1)
        for block in model.h:
            x = _block(cast(GPT2Block, block), x, rows, dtype)
        return layer_norm(model.ln_f, x).view(rows, time, -1)


def _matrices(block: nn.Module) -> list[Conv1D]:
    block = cast(GPT2Block, block)
    return [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]


def _block(block: GPT2Block, x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """One layer on the (rows * time, width) residual stream."""
    attention, mlp = block.attn, block.mlp
    qkv = _Linear.apply(layer_norm(block.ln_1, x).to(dtype), attention.c_attn.weight, attention.c_attn.bias)
    if attention.config._attn_implementation == "eager":
        mixed = _Attention.apply(qkv, rows, attention.num_heads)
    else:
        mixed = _kernel_attention(qkv, rows, attention.num_heads)
    x = x + _Linear.apply(mixed, attention.c_proj.weight, attention.c_proj.bias).to(x.dtype)
    inner = _GELU.apply(layer_norm(block.ln_2, x).to(dtype), mlp.c_fc.weight, mlp.c_fc.bias)
    return cast(Tensor, x + _Linear.apply(inner, mlp.c_proj.weight, mlp.c_proj.bias).to(x.dtype))


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
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _linear_gradients(gradient, *ctx.saved_tensors, ctx)


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
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, table, offset, *kept = ctx.saved_tensors
        inner = kept[0] if kept else product(x, table.t(), offset)
        return _linear_gradients(torch.ops.aten.gelu_backward(gradient, inner, approximate="tanh"), x, table, ctx)


def _linear_gradients(gradient: Tensor, x: Tensor, table: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, the last two in the parameters' precision, where they are wanted."""
    wanted = ctx.needs_input_grad
    grad_x = gradient @ table.t() if wanted[0] else None
    # a transposed left factor halves the speed of a CPU's matrix units; copying it pays where it is the narrow one
    left = x.t().contiguous() if 2 * x.shape[1] <= gradient.shape[1] else x.t()
    grad_weight = (left @ gradient).to(ctx.dtype) if wanted[1] else None
    grad_bias = gradient.sum(0).to(ctx.dtype) if wanted[2] else None
    return grad_x, grad_weight, grad_bias


def split_heads(qkv: Tensor, rows: int, heads: int) -> Tensor:
    """(rows * time, 3 * width) as a view (3, rows, heads, time, width of a head)."""
    return qkv.view(rows, -1, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)


def _kernel_attention(qkv: Tensor, rows: int, heads: int) -> Tensor:
    """Causal attention by torch's own kernel: the fast one on a GPU, and for long rows anywhere."""
    query, key, value = split_heads(qkv, rows, heads)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


class _Attention(torch.autograd.Function):
    """Causal attention, some rows at a time; scores are made again in backward."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rows: int, heads: int) -> Tensor:
        parts = split_heads(qkv, rows, heads)
        mixed = qkv.new_empty(rows, parts.shape[3], heads, parts.shape[4])
        later = _later(parts)
        for at in _row_blocks(parts):
            query, key, value = _padded(parts[:, at], later)
            mixed[at] = _by_row(torch.bmm(_weights(query, key, later), value), heads).transpose(1, 2)
        ctx.save_for_backward(qkv, later)
        ctx.shape = rows, heads
        return mixed.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        qkv, later = ctx.saved_tensors
        rows, heads = ctx.shape
        parts = split_heads(qkv, rows, heads)
        grad_qkv = torch.empty_like(qkv)
        into = split_heads(grad_qkv, rows, heads)
        time, scale = parts.shape[3], parts.shape[4] ** -0.5
        incoming = gradient.view(rows, time, heads, -1).transpose(1, 2)
        for at in _row_blocks(parts):
            query, key, value = _padded(parts[:, at], later)
            weights, grad_mixed = _weights(query, key, later), incoming[at].reshape(len(query), time, -1)
            into[2, at] = _by_row(torch.bmm(weights.transpose(1, 2), grad_mixed), heads)[:, :, :time]
            grad_weights = torch.bmm(grad_mixed, value.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
            into[0, at] = _by_row(torch.bmm(grad_scores, key), heads)
            into[1, at] = _by_row(torch.bmm(grad_scores.transpose(1, 2), query), heads)[:, :, :time]
        return grad_qkv, None, None


def _row_blocks(parts: Tensor) -> list[slice]:
    _, rows, heads, time, _ = parts.shape
    size = max(1, SCORES // max(1, heads * time * time))
    return [slice(at, at + size) for at in range(0, rows, size)]


def _later(parts: Tensor) -> Tensor:
    """(time, columns) what is added to scores: -inf where a key stands later than its query.

    Columns are filled up to a multiple of what a CPU takes at once: softmax over a row's odd rest is several times
    slower than over a few columns more.
    """
    time = parts.shape[3]
    columns = -(-time // COLUMNS) * COLUMNS
    later = torch.ones(time, columns, dtype=torch.bool, device=parts.device).triu_(1)
    return torch.zeros(time, columns, dtype=parts.dtype, device=parts.device).masked_fill_(later, float("-inf"))


def _padded(parts: Tensor, later: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, time, width) queries, (n, columns, width) keys and values of (3, rows, heads, time, width)."""
    _, rows, heads, time, width = parts.shape
    filled = parts.new_zeros(2, rows, heads, later.shape[1], width)
    filled[:, :, :, :time] = parts[1:]
    key, value = filled.view(2, rows * heads, -1, width)
    return parts[0].reshape(rows * heads, time, width), key, value


def _by_row(table: Tensor, heads: int) -> Tensor:
    return table.view(-1, heads, *table.shape[1:])


def _weights(query: Tensor, key: Tensor, later: Tensor) -> Tensor:
    """(n, time, columns) attention weights; softmax is computed in float32 inside."""
    return torch.baddbmm(later, query, key.transpose(1, 2), alpha=query.shape[2] ** -0.5).softmax(-1)
