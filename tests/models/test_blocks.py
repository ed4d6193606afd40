"""Blocks of logits against plain ones, and what is summed over blocks against the whole."""

import pytest
import torch
from torch import Tensor

from imdb_rlhf.models.blocks import Blocks, Normaliser, indices_in, slices

NEVER = -torch.inf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_are_parts_of_the_logits(dtype: torch.dtype, offset: bool, temperature: float) -> None:
    hidden, weight = random(7, 5).to(dtype), random(11, 5, seed=1)
    bias = random(11, seed=2) if offset else None
    truth = hidden.double() @ weight.to(dtype).double().t()
    truth = (truth if bias is None else truth + bias) / temperature
    parts, entries = slices(7, 3), slices(11, 4)
    memory = Blocks(hidden, parts, entries)
    for at in entries:
        for part in parts:
            logits = memory.logits(hidden[part], (weight, bias), at, temperature)
            assert logits.dtype == torch.float32
            error = 0.02 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(logits.double(), truth[part, at], atol=error, rtol=error)
            lowered = memory.lowered(logits)
            assert lowered.dtype == dtype
            assert torch.equal(lowered, logits.to(dtype))


def test_all_blocks_lie_in_the_same_memory() -> None:
    hidden, weight = random(6, 5).bfloat16(), random(9, 5)
    memory = Blocks(hidden, slices(6, 2), slices(9, 4))
    places = {
        memory.logits(hidden[part], (weight, None), at, 1.0).data_ptr() for at in slices(9, 4) for part in slices(6, 2)
    }
    assert len(places) == 1
    assert memory.float32.numel() == 2 * 4


def test_there_may_be_no_tokens() -> None:
    assert Blocks(random(0, 5), [], slices(9, 4)).float32.numel() == 0


@pytest.mark.parametrize(
    ("total", "size", "first", "expected"),
    [
        (7, 3, 0, [(0, 3), (3, 6), (6, 7)]),
        (6, 3, 0, [(0, 3), (3, 6)]),
        (2, 9, 0, [(0, 2)]),
        (7, 2, 4, [(4, 6), (6, 7)]),
        (4, 2, 4, []),
        (0, 1, 0, []),
    ],
)
def test_slices_cover_everything_once(total: int, size: int, first: int, expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in slices(total, size, first)] == expected


def test_targets_outside_a_block_are_told_apart() -> None:
    places, inside = indices_in(torch.tensor([3, 4, 6, 7, 0]), slice(4, 7))
    assert inside[:, 0].tolist() == [False, True, True, False, False]
    assert places[inside].tolist() == [0, 2]
    assert places.min() >= 0
    assert places.max() <= 2


@pytest.mark.parametrize(
    "blocks",
    [
        [[1.0, 2.0, 0.5]],
        [[0.3]],
        [[1.0], [2.0], [0.5]],
        [[5.0, 1.0], [-3.0], [9.0, 9.0, 2.0]],  # the largest comes last
        [[NEVER, NEVER], [1.0, NEVER], [0.2]],
        [[1.0, 0.2], [NEVER, NEVER]],
        [[NEVER], [NEVER]],
        [[1e30, -1e30], [1e30]],
        [[-1e30, -1e30], [-1e30]],
        [[3e38], [-3e38, 0.0]],
        [[-3e38], [-3e38]],
        [[-200.0] * 4, [0.0], [200.0]],
        [[1000.0, 1000.5], [999.0, 1001.25]],
    ],
    ids=str,
)
def test_a_sum_of_exponentials_may_come_in_blocks(blocks: list[list[float]]) -> None:
    normaliser = Normaliser.of(3, torch.device("cpu"))
    for block in blocks:
        for part in (slice(0, 2), slice(2, 3)):
            normaliser.add(part, torch.tensor([block] * (part.stop - part.start)))
    expected = torch.tensor(sum(blocks, []), dtype=torch.float64).logsumexp(-1).expand(3)
    torch.testing.assert_close(normaliser.value().double(), expected, atol=1e-6, rtol=1e-6)
