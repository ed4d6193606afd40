"""Matrix products that apply bias and tanh-GELU in the same pass, and products of bf16 factors with a float32 result.

On a CPU with native bf16 products, the oneDNN operators that torch's compiler emits do all in one pass over the result;
elsewhere, and in other precisions, plain operators do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
    if tensor.device.type != "cpu" or not hasattr(operators, "_linear_pointwise"):
        return False
    if not hasattr(operators, "_reorder_linear_weight"):
        return False
    if tensor.dtype == torch.float32:
        return float32_by_onednn()
    return tensor.dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported())


def float32_by_onednn() -> bool:
    """Whether oneDNN computes float32 products, without rounding: see `training.precision`."""
    return bool(cast(Any, torch.backends.mkldnn).matmul.fp32_precision == "bf16") and not has_amx()


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


def factor_dtype(x: Tensor) -> torch.dtype:
    """The precision that `float32_product` reads factors in: on a GPU x's if it is below float32, else float32."""
    reduced = x.dtype.itemsize < torch.float32.itemsize
    return x.dtype if x.device.type == "cuda" and reduced else torch.float32


def float32_product(x: Tensor, weight: Tensor, out: Tensor, *, rounded: bool) -> Tensor:
    """Write x @ weight^T into `out` with a float32 sum and a float32 result, whatever the precision of the factors.

    A bf16 result would be wrong by half a step of its largest entries: logits near -100, which softmax cannot tell from
    logits near 0, have steps of half a nat.

    Args:
        x: (n, in), and
        weight: (out, in), both of `factor_dtype`.
        out: (n, out) float32.
        rounded: whether the factors may be rounded to bf16 on the way, which processors with AMX do and gain from.
    """
    if x.dtype != torch.float32:
        return torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
    with bf16_factors() if rounded and x.device.type == "cpu" else nullcontext():
        return torch.mm(x, weight.t(), out=out)


@contextmanager
def bf16_factors() -> Iterator[None]:
    """Let oneDNN compute float32 products, with factors rounded to bf16 where the processor multiplies those faster.

    Sums and results stay float32. Processors without AMX round nothing; AMD's multiply faster than with MKL even so.
    """
    matmul = cast(Any, torch.backends.mkldnn).matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def float32_laid_out(weight: Tensor, rows: int, dtype: torch.dtype) -> Product:
    """`float32_product` with a fixed weight, (n, in) to (n, out) float32, reordered once where that makes it faster.

    Args:
        weight: (out, in).
        rows: about how many rows x will have.
        dtype: of x.
    """
    example = weight.new_empty(0, dtype=dtype)
    table = weight.detach().to(dtype).to(factor_dtype(example))  # the factors that log-probs are computed with
    # what is reordered is multiplied as it is, and AMX gains more from rounding it
    if fuses(example) and not has_amx():
        packed = torch.ops.mkldnn._reorder_linear_weight(table.contiguous(), rows)
        return lambda x: _fused(x.to(table.dtype), packed, None, gelu=False)
    rounded = dtype == torch.bfloat16
    return lambda x: float32_product(
        x.to(table.dtype), table, x.new_empty(len(x), len(table), dtype=torch.float32), rounded=rounded
    )


def has_amx() -> bool:
    """Whether the processor has AMX, Intel's units for products of bf16 matrices."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may go
    return bool(probe is not None and probe())


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
