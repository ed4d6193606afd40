"""The losses of online methods by hand, by enumeration, and in their gradients."""

import math

import pytest
import torch
from torch import Tensor

from imdb_rlhf.losses import ppo_policy_loss
from imdb_rlhf.losses.online import group_advantage, k3, leave_one_out_advantage, penalised_reward, reinforce

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_the_kl_is_in_the_reward() -> None:
    reward = penalised_reward(torch.tensor([1.0, 2.0]), torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -5.0]), 0.5)
    assert reward.tolist() == [1.5, 0.0]


def test_leave_one_out_by_hand() -> None:
    advantage = leave_one_out_advantage(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    assert advantage.tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    assert group_advantage(rewards, scale=False).tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    std = math.sqrt((4 + 1 + 9) / 2)
    expected = [[-2 / std, -1 / std, 3 / std], [0.0, 0.0, 0.0]]
    for row, wanted in zip(group_advantage(rewards, scale=True).tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


def test_a_group_s_own_mean_shrinks_the_advantage() -> None:
    rewards = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_advantage(rewards, scale=False), 0.75 * leave_one_out_advantage(rewards))


def policy() -> tuple[Tensor, Tensor]:
    logits = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    return logits, logits.log_softmax(-1)


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_reinforce_s_gradient_is_that_of_the_mean_reward_whatever_the_baseline() -> None:
    logits, logprob = policy()
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    wanted = gradient(-(logprob.exp() * rewards).sum(), logits)
    for baseline in (0.0, 3.0):
        mean = (logprob.exp().detach() * reinforce(logprob, rewards - baseline)).sum()
        torch.testing.assert_close(gradient(mean, logits), wanted)
    # as the ratio's is, at the policy that sampled
    clipped = (logprob.exp().detach() * ppo_policy_loss(logprob, logprob.detach(), rewards, 0.2)).sum()
    torch.testing.assert_close(gradient(clipped, logits), wanted)


def test_leave_one_out_is_unbiased_over_all_groups() -> None:
    """All 27 groups of 3 draws, weighted by their chance."""
    logits, logprob = policy()
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    draws = torch.cartesian_prod(*[torch.arange(3)] * 3)
    chances = logprob.detach()[draws].sum(-1).exp()
    losses = reinforce(logprob[draws], leave_one_out_advantage(rewards[draws])).mean(-1)
    wanted = gradient(-(logprob.exp() * rewards).sum(), logits)
    torch.testing.assert_close(gradient((chances * losses).sum(), logits), wanted)
    # GRPO's own mean takes (K - 1) / K of it
    shrunk = reinforce(logprob[draws], group_advantage(rewards[draws], scale=False)).mean(-1)
    torch.testing.assert_close(gradient((chances * shrunk).sum(), logits), wanted * 2 / 3)


def test_k3_s_value_is_the_kl_and_its_gradient_that_of_the_other_direction() -> None:
    logits, logprob = policy()
    pi, estimate = logprob.exp(), k3(logprob, REF.log())
    assert (estimate > 0).all() and k3(REF.log(), REF.log()).abs().max() < 1e-15
    kl = (pi * (logprob - REF.log())).sum()
    torch.testing.assert_close((pi * estimate).sum(), kl)
    reverse = (REF * (REF.log() - logprob)).sum()
    sampled = (pi.detach() * estimate).sum()  # samples of pi, not differentiated
    torch.testing.assert_close(gradient(sampled, logits), gradient(reverse, logits))
    assert (gradient(sampled, logits) - gradient(kl, logits)).norm() > 0.01
    # times the ratio, at the policy that sampled, it is that of the KL itself
    corrected = (pi.detach() * estimate * (logprob - logprob.detach()).exp()).sum()
    torch.testing.assert_close(gradient(corrected, logits), gradient(kl, logits))
