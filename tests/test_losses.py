"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

from imdb_rlhf.losses import dpo_sigmoid, log_ratio_margin, negative_log_likelihood, two_label_cross_entropy

LN2, LN3 = 0.6931471805599453, 1.0986122886681098


def test_the_margin_is_the_difference_of_two_log_ratios() -> None:
    margin = log_ratio_margin(
        torch.tensor([-1.0, -4.0]), torch.tensor([-2.0, -3.0]), torch.tensor([-1.5, -4.0]), torch.tensor([-1.75, -1.0])
    )
    # (-1 + 1.5) - (-2 + 1.75) and (-4 + 4) - (-3 + 1)
    assert margin.tolist() == [0.75, 2.0]


@pytest.mark.parametrize(
    ("margin", "beta", "loss"),
    [
        (0.0, 0.1, LN2),
        (0.0, 5.0, LN2),
        (LN3, 1.0, 0.2876820724517809),  # sigmoid(ln 3) = 3/4
        (2 * LN3, 0.5, 0.2876820724517809),
        (-LN3, 1.0, 2 * LN2),  # 1/4
        (-1e4, 0.1, 1e3),  # linear far below 0, no overflow
        (1e4, 0.1, 0.0),
    ],
)
def test_dpo_by_hand(margin: float, beta: float, loss: float) -> None:
    assert dpo_sigmoid(torch.tensor([margin], dtype=torch.float64), beta).item() == pytest.approx(loss, abs=1e-12)


def test_the_gradient_of_dpo_is_minus_beta_times_the_probability_of_being_wrong() -> None:
    margin = torch.tensor([0.0, LN3, -LN3], dtype=torch.float64, requires_grad=True)
    dpo_sigmoid(margin, 1.0).sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-1 / 2, -1 / 4, -3 / 4])
    half = torch.zeros(1, requires_grad=True)
    dpo_sigmoid(half, 0.2).sum().backward()
    assert half.grad is not None
    assert half.grad.item() == pytest.approx(-0.1)


def test_nothing_is_reduced() -> None:
    assert dpo_sigmoid(torch.zeros(3), 0.1).shape == (3,)
    assert two_label_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 0])).shape == (3,)


def test_negative_log_likelihood_sums_over_tokens_alone() -> None:
    assert negative_log_likelihood(torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])).tolist() == [3.0, 0.5]


def test_two_label_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [LN3, 0.0], [LN3, 0.0]], dtype=torch.float32)
    losses = two_label_cross_entropy(logits, torch.tensor([1, 0, 1]))
    assert losses.tolist() == pytest.approx([LN2, -math.log(0.75), math.log(4)])


def test_two_label_cross_entropy_is_float32_on_bf16_logits() -> None:
    losses = two_label_cross_entropy(torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]))
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(math.log1p(math.exp(-8)), rel=1e-4)  # 3.4e-4; in bf16 log1p it is not
