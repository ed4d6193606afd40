"""Matrix products that apply bias and tanh-GELU in the same pass.

On a CPU with native bf16 products, the oneDNN operators that torch's compiler emits do all in one pass over the result;
elsewhere, and in other precisions, plain operators do.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# A number of rows below this is not rounded up.
SMALLEST_ROUNDED = 256


def fuses(tensor: Tensor) -> bool:
    """Whether a product of this precision on this device can apply bias and activation in the same pass."""
    operators = torch.ops.mkldnn
    return bool(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.bfloat16
        and hasattr(operators, "_linear_pointwise")
        and hasattr(operators, "_reorder_linear_weight")
        and operators._is_mkldnn_bf16_supported()
    )


def outside_autocast(backward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Run a backward with autocast off, so that its products keep the precision of their factors."""

    @wraps(backward)
    def plain(ctx: Any, gradient: Tensor) -> Any:
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(ctx, gradient)

    return plain


def rounded_up(count: int) -> int:
    """Round a number of rows up to one of a few sizes, at most 1/16 larger.

    oneDNN compiles and caches a program per size. If every batch had another size, compiling would cost a small model
    more time and memory than the products themselves.
    """
    grain = max(1, 1 << (count.bit_length() - 5)) if count >= SMALLEST_ROUNDED else 1
    return -(-count // grain) * grain


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """Compute x @ weight^T + bias, or tanh-GELU of it.

    Args:
        x: (n, in).
        weight: (out, in) in x's precision, with any strides.
        bias: (out,) in x's precision, or None.
        gelu: whether to apply the activation.
    """
    if fuses(x):
        return _fused(x, weight, bias, gelu)
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


def laid_out(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype, gelu: bool = False) -> Product:
    """`product` with a fixed weight, reordered once for the CPU's matrix units.

    With few rows the time of a product is the time of reading the weight, which the reordered layout makes faster.

    Args:
        weight: (out, in), is cast to `dtype`.
        bias: (out,) or None.
        rows: about how many rows x will have.
        dtype: of x and of the result.
        gelu: whether to apply the activation.
    """
    table = weight.detach().to(dtype)
    offset = None if bias is None else bias.detach().to(dtype)
    if fuses(table):
        packed = torch.ops.mkldnn._reorder_linear_weight(table.contiguous(), rows)
        return lambda x: _fused(x, packed, offset, gelu)
    return lambda x: product(x, table, offset, gelu)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation))
