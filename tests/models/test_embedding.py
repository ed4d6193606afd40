"""An embedding shared with the output layer: its gradient is the sum of both, as autograd adds it up."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imdb_rlhf.models.embedding import TiedEmbedding

IDS = torch.tensor([3, 0, 3, 3, 6])


def weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype).requires_grad_()


def spread(rows: Tensor) -> Tensor:
    """A number whose gradient is another for each row that was read."""
    return (rows.sin() * torch.arange(1, rows.numel() + 1).view(rows.shape)).sum()


def layer(table: Tensor) -> Tensor:
    return (table @ torch.arange(4.0, dtype=table.dtype)).logsumexp(0)


USES: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]] = {
    "both": lambda table, rows: spread(rows(IDS)) * layer(table),
    "the rows alone": lambda table, rows: spread(rows(IDS)),
    "the layer alone": lambda table, rows: layer(table),
    "rows read twice": lambda table, rows: spread(rows(IDS)) * layer(table) + spread(rows(IDS[:2])),
    "no rows": lambda table, rows: spread(rows(IDS[:0])) + layer(table),
    "a layer that is used twice": lambda table, rows: spread(rows(IDS)) + layer(table) * layer(2 * table),
}


@pytest.mark.parametrize("use", USES)
def test_the_gradient_is_autograds(use: str) -> None:
    tied, plain = weight(), weight()
    embedding = TiedEmbedding(tied)
    actual = USES[use](embedding.table, embedding.rows)
    expected = USES[use](plain, lambda ids: F.embedding(ids, plain))
    assert torch.equal(actual, expected)
    actual.backward()
    expected.backward()
    assert tied.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(tied.grad, plain.grad, atol=1e-12, rtol=1e-12)


def test_gradients_of_two_passes_add_up_together_or_one_by_one() -> None:
    plain = weight()
    for part in (IDS, IDS[1:3]):
        (spread(F.embedding(part, plain)) * layer(plain)).backward()
    together, apart = weight(), weight()
    losses = []
    for part in (IDS, IDS[1:3]):
        embedding = TiedEmbedding(together)
        losses.append(spread(embedding.rows(part)) * layer(embedding.table))
        other = TiedEmbedding(apart)
        (spread(other.rows(part)) * layer(other.table)).backward()
    torch.stack(losses).sum().backward()
    for tied in (together, apart):
        assert tied.grad is not None
        torch.testing.assert_close(tied.grad, plain.grad, atol=1e-12, rtol=1e-12)


def test_a_second_backward_of_the_same_pass_gives_the_same() -> None:
    tied = weight()
    embedding = TiedEmbedding(tied)
    loss = spread(embedding.rows(IDS)) * layer(embedding.table)
    (first,) = torch.autograd.grad(loss, tied, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, tied)
    assert torch.equal(first, second)


def test_a_frozen_weight_has_no_gradient() -> None:
    frozen = weight().detach()
    embedding = TiedEmbedding(frozen)
    assert not embedding.rows(IDS).requires_grad
    assert not embedding.table.requires_grad
    assert torch.equal(embedding.rows(IDS), frozen[IDS])


def test_the_gradient_is_in_the_precision_of_the_weight() -> None:
    tied = weight(torch.bfloat16)
    embedding = TiedEmbedding(tied)
    (embedding.rows(IDS).float().sum() + embedding.table.float().sum()).backward()
    assert tied.grad is not None
    assert tied.grad.dtype == torch.bfloat16
    assert tied.grad[:, 0].tolist() == [2, 1, 1, 4, 1, 1, 2]


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-6)])
def test_many_small_gradients_of_one_row_are_summed_before_they_are_rounded(dtype: torch.dtype, share: float) -> None:
    tied = weight(dtype)
    embedding = TiedEmbedding(tied)
    rows = 1e-4 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).abs()
    weighted = embedding.rows(torch.full((20_000,), 3)) * rows.to(dtype)
    (embedding.table.float().sum() * 8 + weighted.float().sum()).backward()
    assert tied.grad is not None
    truth = 8 + rows.to(dtype).double().sum(0)
    torch.testing.assert_close(tied.grad[3].double(), truth, atol=0, rtol=share)
