"""Optimizers and learning rates by hand."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from imdb_rlhf.config.optim import OptimConfig, Schedule
from imdb_rlhf.training.optim import learning_rate, make
from tests import tiny

adamw = partial(
    tiny.adamw, lr=0.1, schedule=Schedule.constant, max_grad_norm=None, beta2=0.98, eps=1e-8, weight_decay=0.5
)
rmsprop = partial(tiny.rmsprop, lr=0.1)


def rates(total: int, **changes: Any) -> list[float]:
    return [learning_rate(rmsprop(lr=1.0, **changes), step, total) for step in range(total)]


def test_warm_up_is_linear_and_begins_above_zero() -> None:
    assert rates(5, warmup_steps=3) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1])
    assert rates(3) == [1, 1, 1]
    # the paper's: 150 steps
    lrs = rates(152, warmup_steps=150)
    assert lrs[0] == pytest.approx(1 / 151)
    assert lrs[149] == pytest.approx(150 / 151)
    assert lrs[150:] == [1, 1]


def test_linear_goes_to_zero_at_the_end() -> None:
    assert rates(4, schedule=Schedule.linear) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])
    expected = [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]
    assert rates(6, schedule=Schedule.linear, warmup_steps=2) == pytest.approx(expected)
    assert learning_rate(rmsprop(schedule=Schedule.linear, warmup_steps=2), 6, 6) == 0


def test_cosine_is_half_way_at_half_time() -> None:
    root = 2**0.5 / 2  # cos 45 degrees
    expected = [1, (1 + root) / 2, 1 / 2, (1 - root) / 2]
    assert rates(4, schedule=Schedule.cosine) == pytest.approx(expected)


def test_a_warm_up_longer_than_the_training_is_cut_off() -> None:
    assert rates(2, warmup_steps=9, schedule=Schedule.linear) == pytest.approx([0.1, 0.2])


def test_the_peak_scales_the_rate() -> None:
    config: OptimConfig = rmsprop(lr=2e-6, warmup_steps=1)
    assert [learning_rate(config, step, 3) for step in range(3)] == pytest.approx([1e-6, 2e-6, 2e-6])


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    net = module()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make(adamw(), net.parameters()).step()
    for name, parameter in net.named_parameters():
        decay = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0  # 1 - lr x weight decay
        torch.testing.assert_close(parameter, before[name] * decay)


def test_the_first_step_of_adamw_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    weight.grad = torch.tensor([3.0, -0.01])
    make(adamw(), [weight]).step()
    assert weight.tolist() == pytest.approx([0.9, 1.1], rel=1e-5)  # lr x sign


def test_two_steps_of_rmsprop_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = make(rmsprop(), [weight])
    weight.grad = torch.tensor([2.0])
    optimizer.step()  # mean square 0.01 x 4 = 0.04, step 0.1 x 2 / 0.2
    assert weight.item() == pytest.approx(0.0, abs=1e-6)
    weight.grad = torch.tensor([-1.0])
    optimizer.step()  # mean square 0.99 x 0.04 + 0.01 = 0.0496: no momentum, so the step turns
    assert weight.item() == pytest.approx(0.1 / 0.0496**0.5, rel=1e-5)


@pytest.mark.parametrize("config", [adamw(), rmsprop()])
def test_frozen_parameters_are_left_out(config: OptimConfig) -> None:
    net = module()
    net[1].requires_grad_(False)
    held = [p for group in make(config, net.parameters()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net[0].parameters()}


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="OptimConfig"):
        make(OptimConfig("sgd", 0.1, 0, Schedule.constant, None), module().parameters())
