"""Matrix products with what follows them in the same pass: bias and tanh-GELU.

On a CPU that multiplies bf16, torch's own oneDNN operators do it, those that its compiler uses for the same purpose;
elsewhere, and in other precisions, plain ones.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# Below so many rows a size is left as it is.
FEW = 256


def fuses(tensor: Tensor) -> bool:
    """Whether products of this precision on this device take bias and activation in."""
    operators = torch.ops.mkldnn
    return bool(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.bfloat16
        and hasattr(operators, "_linear_pointwise")
        and hasattr(operators, "_reorder_linear_weight")
        and operators._is_mkldnn_bf16_supported()
    )


def outside_autocast(backward: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """A backward whose products are in the precision of their factors, also where it is called under autocast."""

    @wraps(backward)
    def plain(ctx: Any, gradient: Tensor) -> Any:
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(ctx, gradient)

    return plain


def few_sizes(count: int) -> int:
    """A number of rows at least as large, by a sixteenth at most, of which there are few.

    For every size of a product that it has not seen, oneDNN makes a program, and keeps it. Where each batch has another
    size, that costs a small model more time and memory than its products.
    """
    grain = max(1, 1 << (count.bit_length() - 5)) if count >= FEW else 1
    return -(-count // grain) * grain


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """Returns x @ weight^T + bias, and tanh-GELU of it if wanted.

    Args:
        x: (n, in).
        weight: (out, in), of x's precision, in any layout.
        bias: (out,) of x's precision, or None.
        gelu: whether the activation follows.
    """
    if fuses(x):
        return _fused(x, weight, bias, gelu)
    found = F.linear(x, weight, bias)
    return F.gelu(found, approximate="tanh") if gelu else found


def laid_out(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype, gelu: bool = False) -> Product:
    """`product` with one weight, laid out once for the machine's matrix units: few rows are bound by how it lies.

    Args:
        weight: (out, in), cast to `dtype`.
        bias: (out,) or None.
        rows: about how many rows x will have.
        dtype: of x and of what comes out.
        gelu: whether the activation follows.
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
