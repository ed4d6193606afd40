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

# Libraries replace it on the class.
FORWARD = GPT2Model.forward
# Attention scores held at once on a CPU, in numbers.
SCORES = 1 << 20


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
    attention = block.attn
    qkv = _linear(attention.c_attn, layer_norm(block.ln_1, x).to(dtype))
    if attention.config._attn_implementation == "eager":
        mixed = cast(Tensor, _Attention.apply(qkv, rows, attention.num_heads))
    else:
        mixed = _kernel_attention(qkv, rows, attention.num_heads)
    x = x + _linear(attention.c_proj, mixed).to(x.dtype)
    inner = F.gelu(_linear(block.mlp.c_fc, layer_norm(block.ln_2, x).to(dtype)), approximate="tanh")
    return x + _linear(block.mlp.c_proj, inner).to(x.dtype)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer's norm over the last dimension, in the precision of x."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(layer: Conv1D, x: Tensor) -> Tensor:
    """Returns x @ weight + bias in the precision of x; (tokens, in) to (tokens, out)."""
    return cast(Tensor, _Linear.apply(x, layer.weight, layer.bias))


class _Linear(torch.autograd.Function):
    """A product whose operands are cast once, and whose weight gradient is a product of rows that lie in order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        table = weight.to(x.dtype)
        ctx.save_for_backward(x, table)
        ctx.dtype = weight.dtype
        return torch.addmm(bias.to(x.dtype), x, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, table = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_x = gradient @ table.t() if wanted[0] else None
        # a transposed left factor halves the speed of a CPU's matrix units; copying a narrow one costs less
        left = x.t().contiguous() if x.shape[1] <= gradient.shape[1] else x.t()
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
        for at in _row_blocks(parts):
            query, key, value = parts[:, at].contiguous()
            mixed[at] = (_weights(query, key) @ value).transpose(1, 2)
        ctx.save_for_backward(qkv)
        ctx.shape = rows, heads
        return mixed.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (qkv,) = ctx.saved_tensors
        rows, heads = ctx.shape
        parts = split_heads(qkv, rows, heads)
        grad_qkv = torch.empty_like(qkv)
        into = split_heads(grad_qkv, rows, heads)
        incoming = gradient.view(rows, parts.shape[3], heads, -1).transpose(1, 2)
        scale = parts.shape[4] ** -0.5
        for at in _row_blocks(parts):
            query, key, value = parts[:, at].contiguous()
            weights, grad_mixed = _weights(query, key), incoming[at].contiguous()
            into[2, at] = weights.transpose(2, 3) @ grad_mixed
            grad_weights = grad_mixed @ value.transpose(2, 3)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
            into[0, at] = grad_scores @ key
            into[1, at] = grad_scores.transpose(2, 3) @ query
        return grad_qkv, None, None


def _row_blocks(parts: Tensor) -> list[slice]:
    _, rows, heads, time, _ = parts.shape
    size = max(1, SCORES // max(1, heads * time * time))
    return [slice(at, at + size) for at in range(0, rows, size)]


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """(rows, heads, time, time) attention weights; softmax is computed in float32 inside."""
    time = query.shape[2]
    later = torch.ones(time, time, dtype=torch.bool, device=query.device).triu_(1)
    scores = (query @ key.transpose(2, 3)).mul_(query.shape[3] ** -0.5)
    return scores.masked_fill_(later, float("-inf")).softmax(-1)
