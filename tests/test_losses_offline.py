"""The objectives on fixed preferences: numbers worked out by hand, TRL's loss functions, and their limits."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imdb_rlhf.losses import dpo_sigmoid
from imdb_rlhf.losses.offline import alpha_divergence_score, cpo, exo, js_score, kto, log_odds, orpo, simpo

LN2, LN3 = math.log(2), math.log(3)


def double(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def gradient(tensor: Tensor) -> Any:
    assert tensor.grad is not None
    return tensor.grad.tolist()


# --- f-DPO


def test_scores_of_divergences_by_hand() -> None:
    ratios = double(0.0, LN2, -LN2)  # pi is as likely as the reference, twice, half
    assert alpha_divergence_score(ratios, 1.0).tolist() == pytest.approx([0.0, 1 / 2, -1.0])  # 1 - 1/u
    assert alpha_divergence_score(ratios, 0.5).tolist() == pytest.approx([0, 2 - math.sqrt(2), 2 - 2 * math.sqrt(2)])
    assert js_score(ratios).tolist() == pytest.approx([0.0, math.log(4 / 3), math.log(2 / 3)])  # log(2u / (1 + u))
    assert alpha_divergence_score(ratios, 1e-9).tolist() == pytest.approx(ratios.tolist(), abs=1e-8)  # reverse KL
    assert float(js_score(double(1e3))) == pytest.approx(LN2)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_far_ratios_have_a_finite_score_and_gradient(alpha: float) -> None:
    ratios = torch.tensor([-500.0, -20 / alpha, 500.0], requires_grad=True)
    scores = alpha_divergence_score(ratios, alpha)
    scores.sum().backward()
    top = math.exp(20)
    assert scores.tolist() == pytest.approx(
        [-(top * (500 * alpha - 20) + top - 1) / alpha, -(top - 1) / alpha, 1 / alpha], rel=1e-5
    )
    assert gradient(ratios) == pytest.approx([top, top, 0.0], rel=1e-5)


# --- EXO


def test_exo_by_hand() -> None:
    margin = double(0.0, LN3, 2 * LN3, grad=True)
    # sigmoid(ln 3) = 3/4; labels are (3/4, 1/4)
    losses = exo(margin, 1.0, 0.25)
    at_0 = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    at_2 = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
    assert losses.tolist() == pytest.approx([at_0, 0.0, at_2], abs=1e-12)
    losses.sum().backward()
    # q (1 - q) (beta h - log((1 - e) / e))
    assert gradient(margin) == pytest.approx([-LN3 / 4, 0.0, 0.09 * LN3], abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_exo_is_least_where_the_margin_is_as_sure_as_the_labels(share: float, beta: float) -> None:
    margin = double((2 * share - 1) * math.log(0.99 / 0.01) / beta, grad=True)
    (share * exo(margin, beta, 0.01) + (1 - share) * exo(-margin, beta, 0.01)).sum().backward()
    assert gradient(margin) == pytest.approx([0.0], abs=1e-12)


def test_exo_saturates_on_both_sides_without_overflow() -> None:
    margin = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = exo(margin, 1.0, 1e-3)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([-math.log(1e-3), -math.log(1 - 1e-3)], rel=1e-5)
    assert gradient(margin) == [0.0, 0.0]  # where DPO's loss is linear


# --- KTO


def test_kto_by_hand() -> None:
    ratio = double(LN3, LN3, -LN3, -LN3, 0.0, grad=True)
    desirable = torch.tensor([True, False, True, False, True])
    losses = kto(ratio, desirable, 0.0, 1.0, 1.0, 2.0)
    assert losses.tolist() == pytest.approx([1 / 4, 2 * 3 / 4, 3 / 4, 2 * 1 / 4, 1 / 2])
    losses.sum().backward()
    # a desirable example is made likelier, an undesirable one less so, by beta sigma (1 - sigma)
    assert gradient(ratio) == pytest.approx([-3 / 16, 6 / 16, -3 / 16, 6 / 16, -1 / 4])


def test_the_reference_point_shifts_gains_and_losses() -> None:
    ratio, desirable = double(2.0, 2.0), torch.tensor([True, False])
    losses = kto(ratio, desirable, 2.0, 0.7, 1.0, 1.0)
    assert losses.tolist() == pytest.approx([1 / 2, 1 / 2])  # neither gain nor loss


def test_kto_saturates() -> None:
    ratio = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    desirable = torch.tensor([True, True, False, False])
    losses = kto(ratio, desirable, 3.0, 0.1, 1.5, 0.5)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 1.5, 0.5, 0.0])
    assert gradient(ratio) == [0.0] * 4


# --- without a reference


def test_simpo_by_hand() -> None:
    # beta 2, ratio 0.25: a difference of 1 nat per token is 2 - 0.5 = 1.5, one of -1 is -2.5
    losses = simpo(double(-1.0, -3.0), double(-2.0, -2.0), 2.0, 0.25)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1.5)), math.log1p(math.exp(2.5))])


def test_cpo_by_hand() -> None:
    losses = cpo(double(LN3, -LN3), double(-2.0, -1.0), 1.0, 0.5)
    assert losses.tolist() == pytest.approx([math.log(4 / 3) + 1.0, math.log(4) + 0.5])
    assert cpo(double(LN3), double(-2.0), 2.0, 0.0).tolist() == dpo_sigmoid(double(LN3), 2.0).tolist()


def test_orpo_by_hand() -> None:
    # probabilities per token 3/4 and 1/2, so odds 3 and 1, and sigmoid(log 3) = 3/4
    losses = orpo(double(math.log(0.75)), double(math.log(0.5)), 0.2)
    assert losses.tolist() == pytest.approx([-math.log(0.75) - 0.2 * math.log(0.75)])


def test_log_odds_at_both_ends() -> None:
    logprob = torch.tensor([0.0, -1e-4, -LN2, -50.0], requires_grad=True)
    odds = log_odds(logprob)
    odds.sum().backward()
    wanted = [math.log(1e6), math.log(1e4), 0.0, -50.0]
    assert odds.tolist() == pytest.approx(wanted, abs=1e-3)
    assert gradient(logprob) == pytest.approx([0.0, 1e4, 2.0, 1.0], rel=1e-3)  # 1 / (1 - p)


def random_pairs(high: float) -> tuple[Tensor, Tensor]:
    numbers = np.random.default_rng(0).uniform(-high, -0.01, (2, 50))
    return torch.tensor(numbers[0], requires_grad=True), torch.tensor(numbers[1], requires_grad=True)


def same_as(ours: Tensor, trls: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    """The same losses and gradients."""
    gradients = [torch.autograd.grad(losses.sum(), inputs) for losses in (ours, trls)]
    torch.testing.assert_close(ours, trls, rtol=0, atol=1e-5)
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "high"), [("simpo", 6.0), ("sigmoid", 90.0)])
def test_simpo_and_cpo_are_trls(name: str, high: float) -> None:
    trl = pytest.importorskip("trl.experimental.cpo", reason="trl is not installed")
    settings = {"alpha": 0.0, "beta": 0.7, "loss_type": name, "simpo_gamma": 0.4, "label_smoothing": 0.0}
    trainer = SimpleNamespace(**settings, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = random_pairs(high)
    trls = trl.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
    ours = simpo(chosen, rejected, 0.7, 0.4 / 0.7) if name == "simpo" else cpo(chosen - rejected, 0 * chosen, 0.7, 1.0)
    same_as(ours, trls, (chosen, rejected))


def test_the_odds_ratio_of_orpo_is_trls() -> None:
    trl = pytest.importorskip("trl.experimental.orpo", reason="trl is not installed")
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = (logprob.detach().float().requires_grad_() for logprob in random_pairs(6.0))
    trls = trl.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]  # lambda log sigmoid: to be maximised
    same_as(orpo(chosen, rejected, 0.3) + chosen, -trls, (chosen, rejected))
