"""The optimum by hand, by enumeration and by what an optimum must be."""

import math
from itertools import product

import numpy as np
import pytest

from imdb_rlhf.evaluation.optimum import coefficient_for, plug_in, tilted

LN3 = 1.0986122886681098
BETAS = [0.03, 0.2, 0.7, 1.0, 3.0, 40.0]


def divergence(policy, reference) -> float:
    return sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True) if p > 0)


def log_z(reference, rewards, beta: float) -> float:
    return math.log(sum(p * math.exp(r / beta) for p, r in zip(reference, rewards, strict=True)))


# --- discrete worlds


def test_two_outcomes_by_hand() -> None:
    policy, reward, kl = tilted(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 1 / LN3)  # weights 1 : 3
    assert policy == pytest.approx([1 / 4, 3 / 4])
    assert reward == pytest.approx(3 / 4)
    assert kl == pytest.approx(math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4)


@pytest.mark.parametrize("beta", BETAS)
def test_no_policy_has_more_reward_for_its_kl(beta: float) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        reference, rewards = random.dirichlet(np.ones(5)), random.normal(size=5)
        policy, reward, kl = tilted(reference, rewards, beta)
        assert policy.sum() == pytest.approx(1)
        assert reward == pytest.approx(policy @ rewards)
        assert kl == pytest.approx(divergence(policy, reference), abs=1e-12)
        # the value of the optimum is beta log Z, and no other policy's is higher
        assert reward - beta * kl == pytest.approx(beta * log_z(reference, rewards, beta))
        for other in random.dirichlet(np.full(5, 0.5), 50):
            assert other @ rewards - beta * divergence(other, reference) <= reward - beta * kl + 1e-12


def test_beta_is_the_slope_of_the_frontier() -> None:
    reference, rewards = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 0.9])
    for beta in (0.1, 0.5, 2.0):
        (_, more, far), (_, less, near) = (tilted(reference, rewards, beta * step) for step in (0.999, 1.001))
        assert (more - less) / (far - near) == pytest.approx(beta, rel=1e-4)


def test_the_ends_are_the_best_and_the_reference() -> None:
    reference, rewards = np.array([0.2, 0.3, 0.1, 0.4]), np.array([7.0, -1.0, 7.0, 2.0])
    policy, reward, kl = tilted(reference, rewards, 1e-300)
    assert policy == pytest.approx([2 / 3, 0, 1 / 3, 0])
    assert (reward, kl) == pytest.approx((7, -math.log(0.3)))
    policy, reward, kl = tilted(reference, rewards, 1e300)
    assert policy == pytest.approx(reference)
    assert (reward, kl) == pytest.approx((reference @ rewards, 0), abs=1e-12)


def test_an_impossible_outcome_stays_so() -> None:
    policy, reward, kl = tilted(np.array([0.0, 0.5, 0.5]), np.array([1e6, 0.0, 1.0]), 1 / LN3)
    assert policy == pytest.approx([0, 1 / 4, 3 / 4])
    assert reward == pytest.approx(3 / 4)
    assert kl == pytest.approx(math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4)


def test_what_is_no_world_is_refused() -> None:
    half = np.array([0.5, 0.5])
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="beta is above 0"):
            tilted(half, half, beta)
        with pytest.raises(ValueError, match="beta is above 0"):
            plug_in(half[None], beta)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not finite"):
            plug_in(np.array([[0.0, bad]]), 1.0)


# --- plug-in


def test_plug_in_by_hand() -> None:
    # weights 1 : 3 : 3 : 1, then equal rewards, then far apart
    rewards = np.array([[0, 1, 1, 0], [5, 5, 5, 5], [0, 0, 0, 900]], dtype=np.float32)
    reward, kl = plug_in(rewards, 1 / LN3)
    assert reward == pytest.approx([3 / 4, 5, 900])
    assert kl == pytest.approx([3 * math.log(3 / 2) / 4 - math.log(2) / 4, 0, math.log(4)], abs=1e-12)


def test_plug_in_at_the_ends() -> None:
    rewards = np.array([[0.1, 0.9, 0.9, 0.3], [-2.0, -8.0, -4.0, -6.0]])
    reward, kl = plug_in(rewards, 1e-300)
    assert reward == pytest.approx([0.9, -2])
    assert kl == pytest.approx([math.log(2), math.log(4)])  # log(M / tied)
    reward, kl = plug_in(rewards, 1e300)
    assert reward == pytest.approx([0.55, -5])
    assert kl == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_the_mean_over_reservoirs_lies_under_the_frontier(beta: float) -> None:
    reference, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.3, 0.8, 1.0])
    slopes = np.geomspace(0.02, 100, 400)
    for size in (1, 2, 3, 6):
        drawn = np.array(list(product(range(4), repeat=size)))
        chances = reference[drawn].prod(1)
        reward, kl = (chances @ numbers for numbers in plug_in(rewards[drawn], beta))
        # the frontier is the lower envelope of its tangents, slope * KL + slope * log Z(slope)
        assert reward <= min(slope * kl + slope * log_z(reference, rewards, slope) for slope in slopes) + 1e-12


def test_a_large_reservoir_is_near_the_optimum() -> None:
    reference, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.3, 0.8, 1.0])
    drawn = np.random.default_rng(0).choice(4, size=(200, 2000), p=reference)
    for beta in (0.2, 0.7):
        weights = reference * np.exp(rewards / beta)
        policy = weights / weights.sum()
        reward, kl = plug_in(rewards[drawn], beta)
        assert reward.mean() == pytest.approx(policy @ rewards, abs=2e-3)
        assert kl.mean() == pytest.approx(divergence(policy, reference), abs=5e-3)


# --- the coefficient


def mean_kl(rewards, beta: float) -> float:
    """The mean KL of the weights to uniform, prompt by prompt."""
    kls = []
    for row in np.asarray(rewards, dtype=float):
        weight = [math.exp((r - max(row)) / beta) for r in row]
        total = sum(weight)
        kls.append(divergence([w / total for w in weight], [1 / len(row)] * len(row)))
    return sum(kls) / len(kls)


REWARDS = np.random.default_rng(7).beta(0.4, 0.6, (12, 200))


@pytest.mark.parametrize("target", [0.001, 0.1, 0.5, 1.0, 2.0, 3.2])
def test_the_coefficient_reaches_the_target(target: float) -> None:
    assert mean_kl(REWARDS, coefficient_for(REWARDS, target)) == pytest.approx(target, rel=1e-6)


def test_two_samples_by_hand() -> None:
    # weights 1 : 3 give this KL; beta ln 3 is the gap of 2
    kl = math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
    assert coefficient_for(np.array([[1.0, 3.0]]), kl) == pytest.approx(2 / LN3)


def test_beyond_what_samples_tell_the_target_is_capped() -> None:
    assert mean_kl(REWARDS, coefficient_for(REWARDS, 12.0)) == pytest.approx(math.log(200) - 2)
    few = REWARDS[:, :5]  # log 5 < 2
    assert mean_kl(few, coefficient_for(few, 12.0)) == pytest.approx(math.log(5) / 2)


def test_where_ties_hold_the_kl_down_99_percent_of_it_is_reached() -> None:
    tied = np.zeros((3, 100))
    tied[0, :50], tied[1, :25] = 1.0, 0.1  # the third prompt's rewards are all equal
    reachable = (math.log(2) + math.log(4) + 0) / 3
    for target in (reachable, 2.0):
        assert mean_kl(tied, coefficient_for(tied, target)) == pytest.approx(0.99 * reachable)
    assert mean_kl(tied, coefficient_for(tied, 0.3)) == pytest.approx(0.3)


def test_the_coefficient_has_the_unit_of_the_reward() -> None:
    beta = coefficient_for(REWARDS, 0.7)
    for scale, shift in ((1e-9, 0.0), (1e9, 0.0), (2.0, -50.0)):
        assert coefficient_for(scale * REWARDS + shift, 0.7) == pytest.approx(scale * beta, rel=1e-6)


def test_integers_and_single_precision_are_rewards_too() -> None:
    whole = np.array([[0, 1, 2, 5], [3, 3, 1, 0]])
    assert coefficient_for(whole, 0.2) == pytest.approx(coefficient_for(whole.astype(np.float32), 0.2))
    assert mean_kl(whole, coefficient_for(whole, 0.2)) == pytest.approx(0.2)


def test_rewards_without_differences_have_no_coefficient() -> None:
    for constant in (np.ones((3, 8)), np.array([[1.0], [2.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])):
        with pytest.raises(ValueError, match="are equal"):
            coefficient_for(constant, 1.0)
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="target KL"):
            coefficient_for(REWARDS, target)
    with pytest.raises(ValueError, match="not finite"):
        coefficient_for(np.array([[0.0, math.nan]]), 1.0)
