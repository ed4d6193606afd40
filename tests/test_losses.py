"""Losses against numbers worked out by hand."""

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imdb_rlhf.losses import (
    best_of_k,
    bradley_terry,
    dpo_hinge,
    dpo_ipo,
    dpo_robust,
    dpo_sigmoid,
    gae,
    log_ratio_margin,
    negative_log_likelihood,
    next_kl_coefficient,
    plackett_luce,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    two_label_cross_entropy,
    unlikelihood,
    whiten,
)

LN2, LN3, LN4 = 0.6931471805599453, 1.0986122886681098, 1.3862943611198906


def double(*values: object, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def gradient(tensor: Tensor) -> Any:
    assert tensor.grad is not None
    return tensor.grad.tolist()


# --- preferences


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


@pytest.mark.parametrize(
    ("margin", "beta", "loss"),
    [
        (0.0, 0.1, LN2),
        (LN3, 1.0, 0.75 * (LN4 - LN3) + 0.25 * LN4),  # sigmoid is 3/4 and 1/4, and labels are wrong 1 time in 4
        (-2 * LN3, 0.5, 0.75 * LN4 + 0.25 * (LN4 - LN3)),
        (-1e4, 0.1, 750.0),
        (1e4, 0.1, 250.0),
    ],
)
def test_conservative_dpo_by_hand(margin: float, beta: float, loss: float) -> None:
    assert dpo_sigmoid(double(margin), beta, 0.25).item() == pytest.approx(loss, abs=1e-12)


def test_conservative_dpo_is_least_where_the_model_is_as_sure_as_the_labels() -> None:
    margin = double(LN3, grad=True)  # sigmoid(ln 3) = 3/4 = 1 - 1/4
    dpo_sigmoid(margin, 1.0, 0.25).sum().backward()
    assert gradient(margin) == pytest.approx([0.0], abs=1e-15)


@pytest.mark.parametrize(
    ("margin", "beta", "loss"),
    [
        (0.0, 0.1, LN2),
        (LN3, 1.0, (0.75 * (LN4 - LN3) - 0.25 * LN4) / 0.5),
        (-2 * LN3, 0.5, (0.75 * LN4 - 0.25 * (LN4 - LN3)) / 0.5),
        (1e4, 0.1, -500.0),  # below 0, and no overflow
    ],
)
def test_robust_dpo_by_hand(margin: float, beta: float, loss: float) -> None:
    assert dpo_robust(double(margin), beta, 0.25).item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("noise", [0.05, 0.25, 0.45])
@pytest.mark.parametrize("margin", [-7.0, -0.3, 0.0, 2.5])
def test_robust_dpo_is_unbiased_under_flips(margin: float, noise: float) -> None:
    right, flipped = dpo_robust(double(margin, -margin), 0.7, noise).tolist()
    clean = math.log1p(math.exp(-0.7 * margin))
    assert (1 - noise) * right + noise * flipped == pytest.approx(clean, abs=1e-12)


def test_ipo_by_hand() -> None:
    margin = double(0.0, 5.0, 7.0, -1.0, grad=True)
    losses = dpo_ipo(margin, 0.1)  # its target is 1 / 0.2
    assert losses.tolist() == pytest.approx([25.0, 0.0, 4.0, 36.0])
    losses.sum().backward()
    assert gradient(margin) == pytest.approx([-10.0, 0.0, 4.0, -12.0])


def test_hinge_by_hand() -> None:
    margin = double(0.0, 1.0, 2.5, -2.0, grad=True)
    losses = dpo_hinge(margin, 0.5)
    assert losses.tolist() == pytest.approx([1.0, 0.5, 0.0, 2.0])
    losses.sum().backward()
    assert gradient(margin) == pytest.approx([-0.5, -0.5, 0.0, -0.5])


def test_unlikelihood_by_hand() -> None:
    chosen, rejected = double(-2.0, -3.0, grad=True), double(-5.0, -1.0, grad=True)
    losses = unlikelihood(chosen, rejected, 0.5)
    assert losses.tolist() == pytest.approx([-0.5, 2.5])
    losses.sum().backward()
    assert gradient(chosen) == [-1.0, -1.0]
    assert gradient(rejected) == [0.5, 0.5]


# --- rankings


def ranking_probability(scores: list[float]) -> float:
    """Of choosing the first, then the second of those left, and so on."""
    out = 1.0
    for place in range(len(scores)):
        out *= math.exp(scores[place]) / sum(math.exp(score) for score in scores[place:])
    return out


def test_plackett_luce_by_hand() -> None:
    scores = double([math.log(3), math.log(2), 0.0], [0.0, 0.0, 0.0])
    losses = plackett_luce(scores, torch.ones(2, 3, dtype=torch.bool))
    assert losses.tolist() == pytest.approx([-math.log(3 / 6 * 2 / 3), math.log(6)])


def test_plackett_luce_is_a_distribution_over_rankings() -> None:
    scores = [0.3, -1.2, 2.0, 0.0]
    orders = list(permutations(scores))
    losses = plackett_luce(double(*orders), torch.ones(24, 4, dtype=torch.bool))
    assert losses.exp().reciprocal().tolist() == pytest.approx([ranking_probability(list(order)) for order in orders])
    assert losses.neg().exp().sum().item() == pytest.approx(1.0)


def test_plackett_luce_of_two_is_the_logistic_loss() -> None:
    margins = [-30.0, -0.7, 0.0, 2.0, 300.0]
    scores = double(*[[4.0 + margin, 4.0] for margin in margins])
    losses = plackett_luce(scores, torch.ones(5, 2, dtype=torch.bool))
    expected = [math.log1p(math.exp(-margin)) if margin > -20 else -margin for margin in margins]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("padding", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_padding_is_no_part_of_a_ranking(padding: float, kind: torch.dtype) -> None:
    rankings = [[1.0, 0.5, -0.3, 0.2], [0.0, 1.5], [2.0, -1.0, 0.7], [0.4]]
    padded = torch.tensor([[*row, *[padding] * (4 - len(row))] for row in rankings], dtype=kind, requires_grad=True)
    mask = torch.tensor([[place < len(row) for place in range(4)] for row in rankings])
    losses = plackett_luce(padded, mask)
    assert losses.tolist() == pytest.approx([-math.log(ranking_probability(row)) for row in rankings], abs=1e-6)
    losses.sum().backward()
    actual = gradient(padded)
    for row, ranking in enumerate(rankings):
        assert actual[row][len(ranking) :] == [0.0] * (4 - len(ranking))
        assert actual[row][: len(ranking)] == pytest.approx(ranking_gradient(ranking), abs=1e-6)


def ranking_gradient(scores: list[float]) -> list[float]:
    """Of the loss: at every choice the softmax over those left, less 1 for the chosen one."""
    out = np.zeros(len(scores))
    for place in range(len(scores)):
        left = np.exp(scores[place:])
        out[place:] += left / left.sum()
        out[place] -= 1
    return out.tolist()


def test_nothing_is_reduced() -> None:
    three, mask = torch.zeros(3), torch.ones(3, 4, dtype=torch.bool)
    pairs: list[Callable[[], Tensor]] = [
        lambda: dpo_sigmoid(three, 0.1),
        lambda: dpo_robust(three, 0.1, 0.1),
        lambda: dpo_ipo(three, 0.1),
        lambda: dpo_hinge(three, 0.1),
        lambda: unlikelihood(three, three, 0.1),
        lambda: bradley_terry(three, three),
        lambda: plackett_luce(torch.zeros(3, 4), mask),
        lambda: best_of_k(torch.zeros(3, 4), mask, torch.tensor([0, 1, 2])),
        lambda: two_label_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 0])),
    ]
    assert {loss().shape for loss in pairs} == {(3,)}
    tokens = torch.zeros(3, 4)
    assert ppo_policy_loss(tokens, tokens, tokens, 0.2).shape == (3, 4)
    assert ppo_value_loss(tokens, tokens, tokens, 0.2).shape == (3, 4)


# --- rewards


def test_bradley_terry_by_hand() -> None:
    chosen = double(1.0, 1.0 + LN3, -5.0, 1e4, grad=True)
    losses = bradley_terry(chosen, double(1.0, 1.0, LN3 - 5.0, 0.0))
    assert losses.tolist() == pytest.approx([LN2, LN4 - LN3, LN4, 0.0], abs=1e-12)
    losses.sum().backward()
    assert gradient(chosen) == pytest.approx([-1 / 2, -1 / 4, -3 / 4, 0.0])


def test_best_of_k_by_hand() -> None:
    any_value = 1e4  # what stands in a padded place must not matter
    scores = double([LN3, 0.0, 0.0, 0.0], [LN2, 0.0, any_value, -any_value], [7.0, 7.0, 7.0, 7.0], grad=True)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    losses = best_of_k(scores, mask, torch.tensor([0, 1, 3]))
    # 3 of 3 + 1 + 1 + 1; 1 of 2 + 1; 1 of 4
    assert losses.tolist() == pytest.approx([LN2, LN3, LN4])
    losses.sum().backward()
    third = 1 / 3
    assert gradient(scores) == [
        pytest.approx([-1 / 2, 1 / 6, 1 / 6, 1 / 6]),
        pytest.approx([2 * third, third - 1, 0.0, 0.0]),
        pytest.approx([1 / 4, 1 / 4, 1 / 4, -3 / 4]),
    ]


def test_best_of_two_is_bradley_terry() -> None:
    losses = best_of_k(double([0.3, 1.7], [2.0, -1.0]), torch.ones(2, 2, dtype=torch.bool), torch.tensor([1, 1]))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1.4)), math.log1p(math.exp(3.0))])


# --- likelihood


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


# --- PPO


MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])


def test_token_rewards_by_hand() -> None:
    logprob = double([-1.0, -2.0, -0.5, -9.0], [-3.0, 7.0, 7.0, 7.0], [-1.0, -1.0, -1.0, -1.0])
    reference = double([-1.5, -1.0, -0.5, -1.0], [-2.0, 0.0, 0.0, 0.0], [-1.0, -3.0, -1.0, -2.0])
    rewards = token_rewards(logprob, reference, MASK, double(10.0, -1.0, 0.5), 0.1)
    assert rewards.tolist() == [
        pytest.approx([-0.05, 0.1, 10.0, 0.0]),  # the score stands on the last token that is there
        pytest.approx([0.1 - 1.0, 0.0, 0.0, 0.0]),
        pytest.approx([0.0, -0.2, 0.0, -0.1 + 0.5]),
    ]


def test_what_stands_outside_of_the_mask_may_be_anything() -> None:
    logprob = double([-1.0, math.nan], [-2.0, -math.inf])
    mask = torch.tensor([[True, False], [True, False]])
    rewards = token_rewards(logprob, double([-2.0, 0.0], [-2.0, -math.inf]), mask, double(0.0, 1.0), 0.5)
    assert rewards.tolist() == [[-0.5, 0.0], [1.0, 0.0]]


def test_whiten_by_hand() -> None:
    values = double([1.0, 3.0, 99.0], [5.0, 7.0, -99.0])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    # mean 4, squares 9 + 1 + 1 + 9 = 20: variance 5, or 20/3 with Bessel's correction
    five, seven = math.sqrt(5), math.sqrt(20 / 3)
    assert whiten(values, mask).tolist() == [
        pytest.approx([-3 / five, -1 / five, 0.0]),
        pytest.approx([1 / five, 3 / five, 0.0]),
    ]
    assert whiten(values, mask, keep_mean=True).tolist() == [
        pytest.approx([4 - 3 / five, 4 - 1 / five, 0.0]),
        pytest.approx([4 + 1 / five, 4 + 3 / five, 0.0]),
    ]
    assert whiten(values, mask, bessel=True).tolist() == [
        pytest.approx([-3 / seven, -1 / seven, 0.0]),
        pytest.approx([1 / seven, 3 / seven, 0.0]),
    ]


@pytest.mark.parametrize("bessel", [False, True])
def test_whitening_of_equal_numbers_or_of_one_is_finite(bessel: bool) -> None:
    assert whiten(double(2.0, 2.0, 2.0), torch.ones(3, dtype=torch.bool), bessel=bessel).tolist() == [0.0] * 3
    alone = torch.tensor([False, True])
    assert whiten(double(5.0, 2.0), alone, bessel=bessel).tolist() == [0.0, 0.0]
    assert whiten(double(5.0, 2.0), alone, keep_mean=True, bessel=bessel).tolist() == [0.0, 2.0]


def test_gae_by_hand() -> None:
    rewards, values = double([1.0, 0.0, 2.0]), double([0.5, 1.0, 1.5])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5)
    # delta = 1 + .5 - .5, 0 + .75 - 1, 2 - 1.5
    assert advantages.tolist() == [pytest.approx([1.0 + 0.25 * -0.125, -0.25 + 0.25 * 0.5, 0.5])]
    assert returns.tolist() == [pytest.approx([1.46875, 0.875, 2.0])]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_discounted_sum_of_all_later_errors(gamma: float, lam: float) -> None:
    random = np.random.default_rng(0)
    lengths = [7, 1, 4, 3]
    rewards, values = random.normal(size=(4, 7)), random.normal(size=(4, 7))  # outside the mask too
    mask = np.arange(7) < np.array(lengths)[:, None]
    expected = np.zeros((4, 7))
    for row, length in enumerate(lengths):
        for t in range(length):
            for later in range(t, length):
                following = values[row, later + 1] if later + 1 < length else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                expected[row, t] += (gamma * lam) ** (later - t) * delta
    advantages, returns = gae(torch.tensor(rewards), torch.tensor(values), torch.tensor(mask), gamma, lam)
    assert np.allclose(advantages.numpy(), expected, atol=1e-12)
    assert np.allclose(returns.numpy(), np.where(mask, expected + values, 0.0), atol=1e-12)


def test_with_lambda_1_the_return_is_what_is_yet_to_come() -> None:
    rewards = double([1.0, 2.0, 4.0])
    _, returns = gae(rewards, double([9.0, -3.0, 0.7]), torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert returns.tolist() == [pytest.approx([7.0, 6.0, 4.0])]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # the slope is with respect to the log-prob: -A rho
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped: no gain from going further
        (0.5, 2.0, -1.0, -1.0),  # the worse of both, so not clipped
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_the_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprob = double([-3.0 + math.log(ratio)], grad=True)
    actual = ppo_policy_loss(logprob, double([-3.0]), double([advantage]), 0.2)
    assert actual.tolist() == [pytest.approx([loss])]
    actual.sum().backward()
    assert gradient(logprob) == [pytest.approx([slope])]


@pytest.mark.parametrize(
    ("value", "old", "returns", "loss", "slope"),
    [
        (1.0, 1.0, 3.0, 2.0, -2.0),
        (1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9),
        (2.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0),  # clipped to 1.2, which is farther off than 2
        (0.0, 1.0, 3.0, 0.5 * 3.0**2, -3.0),  # clipped to 0.8 would be nearer: the worse counts
        (4.0, 1.0, 1.1, 0.5 * 2.9**2, 2.9),
        (0.5, 1.0, 0.4, 0.5 * 0.4**2, 0.0),  # clipped to 0.8
    ],
)
def test_the_value_loss_by_hand(value: float, old: float, returns: float, loss: float, slope: float) -> None:
    now = double([value], grad=True)
    actual = ppo_value_loss(now, double([old]), double([returns]), 0.2)
    assert actual.tolist() == [pytest.approx([loss])]
    actual.sum().backward()
    assert gradient(now) == [pytest.approx([slope])]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.5),
        (6.6, 0.5 * 1.01),  # error 0.1, 1000 of 10000 episodes
        (5.4, 0.5 * 0.99),
        (60.0, 0.5 * 1.02),  # clipped at 0.2
        (0.0, 0.5 * 0.98),
        (-3.0, 0.5 * 0.98),
    ],
)
def test_the_controller_by_hand(kl: float, expected: float) -> None:
    assert next_kl_coefficient(0.5, kl, 6.0, 1000, 10000.0, 1e-4, 10.0) == pytest.approx(expected, rel=1e-12)


def test_the_controller_has_a_floor_and_a_ceiling() -> None:
    assert next_kl_coefficient(0.5, 0.0, 6.0, 1000, 1000.0, 0.45, 10.0) == 0.45  # 0.4 without
    assert next_kl_coefficient(0.5, 60.0, 6.0, 1000, 1000.0, 0.1, 0.55) == 0.55  # 0.6 without
    assert next_kl_coefficient(0.5, 6.0, 6.0, 1000, 1000.0, 0.1, 0.55) == 0.5
