"""The band around the optimum against enumeration, by hand, and at the edges."""

import math
from functools import cache

import numpy as np
import pytest

from imdb_rlhf.evaluation.stats import percentile, resamples
from imdb_rlhf.frontier.bounds import OptimumBounds, needed_kl, optimum_bounds, optimum_of
from tests.enumeration import exact_optimum

GRID = np.unique(np.concatenate([[0.0], np.geomspace(0.01, 6, 50), [0.25, 0.5, 1, 2, 5]]))
WHOLE = np.ones((1, 1))
LN3 = math.log(3)


def all_of(prompts: int) -> np.ndarray:
    """One resample, which is all prompts."""
    return np.full((1, prompts), 1 / prompts)


# --- worlds that can be enumerated: (prompts, outcomes) probabilities and rewards

WORLDS = ("plain", "top_atom", "saturating", "skewed", "rare", "unlike")


@cache
def world(name: str, prompts: int = 24, outcomes: int = 30) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    shape = (prompts, outcomes)
    reference, rewards = random.dirichlet(np.ones(outcomes), prompts), random.beta(1, 1.5, shape)
    if name in ("top_atom", "rare"):  # one outcome is far better than all others
        rewards /= 2
        rewards[:, 0] = 1
        atom = random.uniform(0.02, 0.15, prompts) if name == "top_atom" else np.full(prompts, 0.004)
        reference[:, 0] = 0
        reference *= ((1 - atom) / reference.sum(1))[:, None]
        reference[:, 0] = atom
    elif name == "saturating":
        rewards = 1 / (1 + np.exp(-random.normal(0, 4, shape) - random.normal(0, 2, (prompts, 1))))
    elif name == "skewed":
        rewards = random.exponential(1, shape)
    elif name == "unlike":  # a quarter of the prompts has nothing to gain
        rewards = rewards * random.uniform(0, 1, (prompts, 1)) ** 2 + random.uniform(0, 1, (prompts, 1))
        rewards[: prompts // 4] = rewards[: prompts // 4, :1]
    return reference, rewards


@cache
def frontier(name: str) -> np.ndarray:
    """(G,) the exact one at one beta for all prompts, by enumeration."""
    reference, rewards = world(name)
    points = []
    for beta in np.geomspace(1e3, 1e-4, 500) * np.ptp(rewards):
        of_prompts = [exact_optimum(*outcomes, float(beta)) for outcomes in zip(reference, rewards, strict=True)]
        points.append(np.mean(of_prompts, axis=0))
    reward, kl = np.array(points).T
    return np.interp(GRID, kl, reward)


def sampled(name: str, size: int, seed: int, prompts: np.ndarray | None = None) -> np.ndarray:
    """(prompts, size) rewards of samples of the reference, of all prompts or of some."""
    reference, rewards = (numbers if prompts is None else numbers[prompts] for numbers in world(name))
    uniform = np.random.default_rng(seed).random((len(reference), size, 1))
    drawn = (uniform > reference.cumsum(1)[:, None, :-1]).sum(2)
    return np.take_along_axis(rewards, drawn, axis=1)


@pytest.mark.parametrize("name", WORLDS)
def test_the_dual_of_the_exact_z_is_the_exact_frontier(name: str) -> None:
    # so the upper curve loses nothing but what its estimate of Z loses
    reference, rewards = world(name)
    betas = np.geomspace(1e-4, 1e3, 2000) * np.ptp(rewards)
    best = rewards.max(1)
    tilt = (rewards - best[:, None])[None] / betas[:, None, None]
    log_z = (best / betas[:, None] + np.log((reference * np.exp(tilt)).sum(-1))).mean(1)
    dual = (betas[:, None] * GRID + (betas * log_z)[:, None]).min(0)
    assert dual == pytest.approx(frontier(name), abs=2e-3 * np.ptp(rewards))


@pytest.mark.parametrize("name", WORLDS)
def test_plug_in_lies_under_the_exact_frontier_and_the_dual_over_it(name: str) -> None:
    truth, shares = frontier(name), resamples(24, 200, 0)
    all_bounds = [optimum_bounds(sampled(name, 64, seed), GRID, shares, np.inf) for seed in range(30)]
    lower, upper = np.array([b.lower for b in all_bounds]), np.array([b.upper for b in all_bounds])
    # the means over reservoirs, within three of their standard errors
    assert (lower.mean(0) <= truth + 3 * lower.std(0) / np.sqrt(30)).all()
    assert (upper.mean(0) >= truth - 3 * upper.std(0) / np.sqrt(30)).all()
    # each reservoir's, within its intervals, at all budgets at once
    inside = [
        (percentile(b.lower_draws, 0.95)[0] <= truth).all() and (truth <= percentile(b.upper_draws, 0.95)[1]).all()
        for b in all_bounds
    ]
    assert np.mean(inside) >= 0.9
    # and where the samples can tell, both are near
    trusted = min(b.trusted_kl for b in all_bounds)
    assert trusted > 0.2
    near = trusted >= GRID
    assert (upper - lower).mean(0)[near].max() <= 0.05 * (frontier(name)[-1] - frontier(name)[0])


def test_intervals_over_prompts_hold_the_frontier_of_all_prompts() -> None:
    # each reservoir is of other prompts of a large population, whose frontier is known
    truth = frontier("saturating")[GRID == 0.5][0]
    random, grid, held = np.random.default_rng(3), np.array([0.0, 0.5]), 0
    for seed in range(80):
        rewards = sampled("saturating", 64, seed, random.integers(0, 24, 64))
        bounds = optimum_bounds(rewards, grid, resamples(64, 300, seed), np.inf)
        held += percentile(bounds.lower_draws, 0.95)[0][1] <= truth <= percentile(bounds.upper_draws, 0.95)[1][1]
    assert held >= 72  # 76 expected, with a standard deviation of 1.9; the band's own width adds to the intervals'


@pytest.mark.parametrize("name", WORLDS)
def test_shape_of_the_band(name: str) -> None:
    rewards = sampled(name, 64, 1)
    cap = rewards.max() * 1.05
    bounds = optimum_bounds(rewards, GRID, resamples(24, 100, 0), cap)
    assert bounds.lower[0] == pytest.approx(rewards.mean())
    assert bounds.upper[0] == pytest.approx(rewards.mean(), abs=2e-3 * np.ptp(rewards))
    for lower, upper in [(bounds.lower[None], bounds.upper[None]), (bounds.lower_draws, bounds.upper_draws)]:
        assert (lower <= upper + 1e-12).all()
        assert (np.diff(lower) >= -1e-12).all()
        assert (np.diff(upper) >= -1e-12).all()
        assert (upper <= cap).all()
    slopes = np.diff(bounds.upper) / np.diff(GRID)
    assert (np.diff(slopes) <= 1e-9 * slopes[0]).all()  # concave
    # a straight line up to the cap, from where all four quarters have come to their last beta
    straight = slopes[(1.5 * bounds.trusted_kl < GRID)[:-1] & (bounds.upper < cap)[1:]]
    assert straight == pytest.approx(np.full(len(straight), straight[:1].sum()), rel=1e-6)


def test_draws_are_the_curves_of_the_resampled_prompts() -> None:
    rewards = sampled("plain", 64, 2)
    drawn = np.random.default_rng(0).integers(0, 24, (3, 24))
    shares = np.array([np.bincount(row, minlength=24) / 24 for row in drawn])
    near = GRID[GRID <= 0.6]
    bounds = optimum_bounds(rewards, near, shares, np.inf)
    for row, lower, upper in zip(drawn, bounds.lower_draws, bounds.upper_draws, strict=True):
        alone = optimum_bounds(rewards[row], near, all_of(24), np.inf)
        assert lower == pytest.approx(alone.lower, abs=1e-3)
        assert upper == pytest.approx(alone.upper, abs=0.01)
    same = optimum_bounds(rewards, near, all_of(24), np.inf)
    assert same.lower_draws[0] == pytest.approx(same.lower)
    assert same.upper_draws[0] == pytest.approx(same.upper)


# --- by hand


def coins(prompts: int, size: int) -> np.ndarray:
    """Half of each prompt's samples are 0, half are 1, in turns of two, so that every quarter has both."""
    return np.tile(np.tile([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], size // 8), (prompts, 1))


def test_fair_coins_by_hand() -> None:
    # of 0 and 1 alike, the policy with R = p needs log 2 + p log p + (1 - p) log(1 - p) nats
    bounds = optimum_bounds(coins(12, 64), GRID, all_of(12), 1.0)
    for p in (0.6, 0.75, 0.9, 0.99):
        kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
        assert needed_kl(GRID, bounds.lower, p) == pytest.approx(kl, rel=0.02)
        assert needed_kl(GRID, bounds.upper, p) == pytest.approx(kl, rel=0.06, abs=2e-3)
    # all that can be gained is gained at log 2, with 32 samples left: as far as log M - 2
    assert bounds.trusted_kl == pytest.approx(math.log(64) - 2)
    assert bounds.lower[-1] == pytest.approx(1, abs=1e-5)
    assert bounds.upper[-1] == 1


def test_trust_ends_at_ten_samples_or_two_nats_below_log_m() -> None:
    # one of 20 samples is 1: as it takes over, the effective size falls to 10 when sum w^2 = 1/10
    rewards = np.tile(np.r_[1.0, np.zeros(19)], (5, 1))
    w = np.roots([20 / 19, -2 / 19, 1 / 19 - 1 / 10]).max()  # w^2 + (1 - w)^2 / 19 = 1/10
    kl = w * math.log(20 * w) + (1 - w) * math.log(20 * (1 - w) / 19)
    bounds = optimum_bounds(rewards, GRID, all_of(5), 1.0)
    assert bounds.trusted_kl == pytest.approx(kl, rel=1e-6)
    # beyond, soft best-of-20 stays where it is until best-of-N gets more: one in 20 is among N with probability N/20
    spent = {n: math.log(n) - (n - 1) / n for n in (4, 5, 6, 12, 20)}
    grid = np.array([0.0, kl, *spent.values(), 9.0])
    bounds = optimum_bounds(rewards, grid, all_of(5), 1.0)
    assert list(grid) == sorted(grid) and 5 / 20 < w < 6 / 20
    assert bounds.lower == pytest.approx([0.05, w, w, w, 6 / 20, 12 / 20, 1, 1], rel=1e-6)
    # eleven of 1500 tied with the best are never fewer than ten; they are reached at log(1500 / 11) = 4.9, and more
    # need not be spent: trusted as far as log M - 2 = 5.3
    rewards = np.tile(np.r_[np.ones(11), np.zeros(1489)], (3, 1))
    bounds = optimum_bounds(rewards, GRID, all_of(3), 1.0)
    assert bounds.trusted_kl == pytest.approx(math.log(1500) - 2)
    assert needed_kl(GRID, bounds.lower, 0.999) <= GRID[math.log(1500 / 11) < GRID][0]


def test_few_samples_are_not_trusted() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 7):
        rewards = random.uniform(size=(6, size))
        bounds = optimum_bounds(rewards, GRID, all_of(6), 1.0)
        assert bounds.trusted_kl == 0
        assert bounds.lower[0] == pytest.approx(rewards.mean(), abs=2e-3)
        assert bounds.lower[-1] == pytest.approx(rewards.max(1).mean())  # best of all there are
        assert bounds.upper[0] == pytest.approx(rewards.mean(), abs=2e-3)
        assert bounds.upper[1:] == pytest.approx(np.ones(len(GRID) - 1))  # nothing is known but the cap
        assert np.isfinite(optimum_bounds(rewards, GRID, all_of(6), np.inf).upper).all()


def test_without_differences_there_is_nothing_to_gain() -> None:
    rewards = np.tile([[0.25], [0.75]], (1, 40))
    bounds = optimum_bounds(rewards, GRID, resamples(2, 50, 0), 1.0)
    for curve in (bounds.lower, bounds.upper):
        assert curve == pytest.approx(np.full(len(GRID), 0.5))
    assert bounds.trusted_kl == pytest.approx(math.log(40) - 2)
    # of three equal samples nothing follows
    assert optimum_bounds(rewards[:, :3], GRID, all_of(2), 1.0).upper[1:] == pytest.approx(np.ones(len(GRID) - 1))


def test_spreads_that_no_exponential_holds() -> None:
    random = np.random.default_rng(0)
    rewards = random.normal(size=(20, 40))
    rewards[0] *= 1e6
    rewards[1] += 1e6
    for scaled in (rewards, 1e-9 * rewards):
        bounds = optimum_bounds(scaled, GRID, resamples(20, 50, 0), np.inf)
        for numbers in (bounds.lower, bounds.upper, bounds.lower_draws, bounds.upper_draws):
            assert np.isfinite(numbers).all()
        assert (bounds.lower <= bounds.upper).all()


def test_the_band_has_the_unit_of_the_reward() -> None:
    rewards = sampled("plain", 64, 3)
    plain: OptimumBounds = optimum_bounds(rewards, GRID, all_of(24), 1.0)
    for scale, shift in ((1e-6, 0.0), (1e6, 3.0), (2.0, -50.0)):
        other = optimum_bounds(scale * rewards + shift, GRID, all_of(24), scale + shift)
        assert other.trusted_kl == pytest.approx(plain.trusted_kl, rel=1e-4)
        assert (other.lower - shift) / scale == pytest.approx(plain.lower, abs=1e-6)
        assert (other.upper - shift) / scale == pytest.approx(plain.upper, abs=1e-6)


def test_what_is_no_band_is_refused() -> None:
    rewards = np.array([[0.0, 0.5], [1.0, 0.5]])
    with pytest.raises(ValueError, match="above the cap"):
        optimum_bounds(rewards, GRID, all_of(2), 0.9)
    with pytest.raises(ValueError, match="not finite"):
        optimum_bounds(np.array([[0.0, math.nan]]), GRID, WHOLE, 1.0)
    for grid in (np.array([0.1, 1.0]), np.array([0.0, 1.0, 1.0])):
        with pytest.raises(ValueError, match="must ascend from 0"):
            optimum_bounds(rewards, grid, all_of(2), 1.0)
        with pytest.raises(ValueError, match="must ascend from 0"):
            optimum_of(rewards, rewards, grid, all_of(2))
    with pytest.raises(ValueError, match="not finite"):
        optimum_of(rewards, np.full((2, 2), np.inf), GRID, all_of(2))


# --- the optimum of another reward


def test_the_optimum_of_itself_is_the_lower_curve() -> None:
    rewards, shares = sampled("saturating", 64, 4), resamples(24, 20, 0)
    bounds = optimum_bounds(rewards, GRID, shares, 1.0)
    curve, draws = optimum_of(rewards, rewards, GRID, shares)
    known = bounds.trusted_kl >= GRID
    assert np.isfinite(curve).tolist() == known.tolist()
    assert curve[known] == pytest.approx(bounds.lower[known])
    assert draws[:, known] == pytest.approx(bounds.lower_draws[:, known])
    assert np.isnan(draws[:, ~known]).all()


def test_another_rewards_optimum_by_hand() -> None:
    # weights 1 : 3 for samples that the selector calls 0 and 1: R = 3/4 of what the better ones are worth
    selector, values = coins(3, 40), np.where(coins(3, 40) > 0, 0.2, 0.6)
    kl = 3 / 4 * math.log(3 / 2) - math.log(2) / 4
    curve, _ = optimum_of(selector, values, np.array([0.0, kl, 5.0]), all_of(3))
    assert curve[:2] == pytest.approx([0.4, 0.3], abs=1e-4)  # over-optimised: below the reference
    assert np.isnan(curve[2])  # log 2 is all that the selector can spend
    # on another scale the selector's optimum is the same
    assert optimum_of(1e4 * selector - 7, values, np.array([0.0, kl]), all_of(3))[0] == pytest.approx(curve[:2])


def test_a_selector_that_knows_nothing_gains_nothing() -> None:
    random = np.random.default_rng(0)
    values = random.uniform(size=(400, 64))
    curve, draws = optimum_of(random.normal(size=(400, 64)), values, np.array([0.0, 0.3]), resamples(400, 500, 0))
    low, high = percentile(draws[:, 1], 0.99)
    assert low <= 0.5 <= high


# --- the KL that is needed


def test_needed_kl_by_hand() -> None:
    kl, curve = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.7, 0.8])
    assert [needed_kl(kl, curve, reward) for reward in (0.4, 0.5, 0.6, 0.7, 0.75, 0.8)] == pytest.approx(
        [0, 0, 0.5, 1, 2, 3]
    )
    assert needed_kl(kl, curve, 0.81) == math.inf
    assert needed_kl(kl, np.array([0.5, 0.7, np.nan]), 0.75) == math.inf
    # at the first crossing of a curve that falls again
    assert needed_kl(kl, np.array([0.5, 0.9, 0.2]), 0.7) == pytest.approx(0.5)
