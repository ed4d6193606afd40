"""Blocks of logits against plain ones, and what is summed over blocks against the whole."""

import pytest
import torch
from torch import Tensor

from imdb_rlhf.models.blocks import (
    Blocks,
    Normaliser,
    OutputLayer,
    Probabilities,
    in_three,
    indices_in,
    log_sum_exp,
    slices,
)

NEVER = -torch.inf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_are_parts_of_the_logits(dtype: torch.dtype, offset: bool, temperature: float) -> None:
    hidden, weight = random(7, 5).to(dtype), random(11, 5, seed=1)
    weight = weight.bfloat16().float()  # factors that bf16 holds exactly: then so must be the products
    bias = random(11, seed=2) if offset else None
    truth = hidden.double() @ weight.double().t()
    truth = (truth if bias is None else truth + bias) / temperature
    parts, entries = slices(7, 3), slices(11, 4)
    memory = Blocks(hidden, OutputLayer(weight, bias), parts, entries, temperature)
    for at in entries:
        for part in parts:
            logits = memory.logits(part, at)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits.double(), truth[part, at], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_logits_are_scaled_and_capped_as_the_model_does(scale: float, cap: float | None, temperature: float) -> None:
    hidden, weight, bias = 3 * random(7, 5), random(11, 5, seed=1), random(11, seed=2)
    products = (scale * (hidden.double() @ weight.double().t() + bias)).requires_grad_()
    truth = products if cap is None else cap * (products / cap).tanh()
    truth.sum().backward()
    layer = OutputLayer(weight, bias, scale, cap)
    memory = Blocks(hidden, layer, slices(7, 7), slices(11, 11), temperature)
    logits = memory.logits(slice(0, 7), slice(0, 11))
    torch.testing.assert_close(logits.double(), truth.detach() / temperature, atol=1e-5, rtol=1e-5)
    slope = layer.slope(logits * temperature)
    assert products.grad is not None
    actual = torch.ones_like(products) if slope is None else slope.double()
    torch.testing.assert_close(actual, products.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -90.0, 700.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_do_not_see_what_is_added_to_all_logits(
    dtype: torch.dtype, offset: bool, temperature: float, shift: float
) -> None:
    hidden, weight = random(7, 24).to(dtype), random(11, 24, seed=1).bfloat16().float()
    hidden[:, 0], weight[:, 0] = 1, shift
    bias = random(11, seed=2).float() if offset else None
    logits = (hidden.double() @ weight.double().t() + (0 if bias is None else bias)) / temperature
    truth, normalisers = logits.softmax(-1), logits.logsumexp(-1).float()
    layer, parts, entries = OutputLayer(weight, bias), slices(7, 3), slices(11, 4)
    probabilities = Probabilities(hidden, layer, parts, entries, temperature, normalisers)
    for at in entries:
        assert probabilities.table(at).equal(weight[at].to(dtype))
        for part in parts:
            block, slope = probabilities.block(part, at)
            assert slope is None
            # relative: half a step of bf16 of itself and of its log-prob (twice if that is divided by a temperature),
            # which the shift does not make larger; float32's own steps at the shift
            half_steps = 0.0 if dtype == torch.float32 else 2**-8 * (1 - 2 * truth[part, at].log())
            error = half_steps + 1e-5 + abs(shift) * 2**-21
            assert ((block.double() - truth[part, at]).abs() <= error * truth[part, at] + 1e-6).all()


def test_three_bf16_numbers_hold_a_float32_one() -> None:
    values = torch.cat([random(50).float() * 100, torch.tensor([0.0, -1e-3, 12345.678])])
    parts = in_three(values)
    assert parts.dtype == torch.bfloat16
    torch.testing.assert_close(parts.double().sum(1), values.double(), atol=0, rtol=2**-23)


def test_a_log_sum_exp_is_that_of_float64() -> None:
    logits = 30 * random(9, 40).float() - 90
    torch.testing.assert_close(log_sum_exp(logits.clone()), logits.double().logsumexp(-1), atol=2e-5, rtol=0)


def test_all_blocks_lie_in_the_same_memory() -> None:
    hidden, weight = random(6, 5).bfloat16(), random(9, 5)
    memory = Blocks(hidden, OutputLayer(weight), slices(6, 2), slices(9, 4))
    places = {memory.logits(part, at).data_ptr() for at in slices(9, 4) for part in slices(6, 2)}
    assert len(places) == 1
    assert memory.memory.numel() == 2 * 4


def test_there_may_be_no_tokens() -> None:
    assert Blocks(random(0, 5), OutputLayer(random(9, 5)), [], slices(9, 4)).memory.numel() == 0


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
