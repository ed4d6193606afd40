"""Products with bias and tanh-GELU in one pass, and with a weight that is laid out once, against plain float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imdb_rlhf.models.products import laid_out, product, rounded_up

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}  # and the share of a number that one rounding costs


def operands(rows: int, narrow: int, wide: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(rows + narrow + wide)
    x, weight, bias = (torch.randn(*size, generator=random) for size in ((rows, narrow), (wide, narrow), (wide,)))
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "narrow", "wide"), [(1, 1, 1), (1, 7, 5), (5, 1, 3), (9, 16, 33), (40, 31, 1)])
def test_products_are_those_of_float64(rows: int, narrow: int, wide: int, dtype: torch.dtype) -> None:
    x, weight, bias = operands(rows, narrow, wide, dtype)
    strided = weight.t().contiguous().t()
    assert narrow == 1 or wide == 1 or not strided.is_contiguous()
    for offset in (bias, None):
        exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
        # a sum of many may be smaller than what it is the sum of
        atol = 4 * DTYPES[dtype] * float((x.double().abs() @ weight.double().abs().t()).max())
        for gelu in (False, True):
            truth = F.gelu(exact, approximate="tanh") if gelu else exact
            for table in (weight, strided):
                for hint in (1, rows, 1000):
                    actual = laid_out(table, offset, hint, dtype, gelu)(x)
                    assert actual.dtype == dtype
                    torch.testing.assert_close(actual.double(), truth, rtol=0, atol=atol)
                torch.testing.assert_close(product(x, table, offset, gelu).double(), truth, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_activation_is_the_tanh_one(dtype: torch.dtype) -> None:
    """At -3 the two kinds of GELU differ by a tenth; a product with 1 is exact in any precision."""
    x, one = torch.tensor([[-3.0], [-2.5], [-1.0], [0.0], [0.5], [2.0]], dtype=dtype), torch.ones(1, 1, dtype=dtype)
    cube = x.double() + 0.044715 * x.double() ** 3
    truth = 0.5 * x.double() * (1 + (cube * (2 / torch.pi) ** 0.5).tanh())
    for actual in (product(x, one, None, gelu=True), laid_out(one, None, 6, dtype, gelu=True)(x)):
        torch.testing.assert_close(actual.double(), truth, rtol=2 * DTYPES[dtype], atol=1e-6)


def test_a_layout_is_of_the_weight_as_it_was_and_casts_it_once() -> None:
    for dtype in DTYPES:
        x, weight, bias = operands(4, 6, 5, torch.float32)
        map_of = laid_out(weight.requires_grad_(), bias, 4, dtype)
        actual = map_of(x.to(dtype))
        assert actual.dtype == dtype
        assert not actual.requires_grad
        truth = F.linear(x, weight, bias).detach()
        torch.testing.assert_close(actual.float(), truth, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_sizes_are_few_and_a_sixteenth_larger_at_most() -> None:
    sizes = {count: rounded_up(count) for count in range(1, 5000)}
    assert all(count <= size <= count * 17 / 16 for count, size in sizes.items())
    assert all(sizes[count] == count for count in range(1, 256))
    assert len({size for count, size in sizes.items() if count >= 256}) <= 16 * 5  # of 4,744
