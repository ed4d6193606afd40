"""What losses ask for, read off a reservoir, against enumeration of worlds of a few outcomes."""

import numpy as np
import pytest
from scipy.optimize import minimize

from imdb_rlhf.algos.population import BestOf, Selector, Tilted, Winners
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.evaluation.best_of_n import expected
from imdb_rlhf.frontier.population import population_curve, ranks, winners, with_true_reward
from tests.enumeration import exact_expected, exact_optimum

# A prompt's outcomes in proportion to their probabilities: 100 samples that are the whole world.
PROBABILITY, LOGITS = np.array([0.4, 0.3, 0.2, 0.1]), np.array([-1.0, 0.5, 1.5, 3.0])
SAMPLES = np.repeat(LOGITS, (100 * PROBABILITY).astype(int))[None]
GRID, WEIGHTS = np.linspace(0, 1.5, 301), np.ones((3, 1))
REWARDS = 1 / (1 + np.exp(-SAMPLES))


def curve(population):
    columns = {"reward": REWARDS, "reward_logit": SAMPLES, "learned": -SAMPLES}
    values, draws = population_curve(population, columns.__getitem__, GRID, WEIGHTS)
    np.testing.assert_allclose(draws, np.tile(values, (3, 1)), atol=1e-12)
    return values


@pytest.mark.parametrize("labels", ["deterministic", "noisy", "bradley_terry"])
def test_winners_are_as_often_as_they_win(labels):
    population = Winners(Labels(labels), tau=0.7, noise=0.2 if labels == "noisy" else 0.0)
    expected = np.zeros(4)
    for i, p in enumerate(PROBABILITY):
        for j, q in enumerate(PROBABILITY):
            if i == j:
                continue
            gap = LOGITS[i] - LOGITS[j]
            wins = {
                "deterministic": gap > 0,
                "noisy": 0.8 if gap > 0 else 0.2,
                "bradley_terry": 1 / (1 + np.exp(-gap / 0.7)),
            }
            expected[i] += p * q * wins[labels]
    shares = winners(population, SAMPLES)[0]
    np.testing.assert_allclose([shares[SAMPLES[0] == logit].sum() for logit in LOGITS], expected / expected.sum())


def test_winners_of_distinct_samples_are_best_of_2():
    logits = np.random.default_rng(0).normal(size=(1, 2000))
    rewards = 1 / (1 + np.exp(-logits))
    values, _ = population_curve(
        Winners(Labels.deterministic), {"reward": rewards, "reward_logit": logits}.__getitem__, GRID, WEIGHTS
    )
    end = GRID[np.isfinite(values)][-1]
    assert end == pytest.approx(np.log(2) - 0.5, abs=0.006)  # a step of the grid
    best = exact_expected(np.full(2000, 1 / 2000), logits[0], rewards[0], 2)
    assert values[end == GRID][0] == pytest.approx(best, abs=0.006)


def test_a_margin_leaves_pairs_out():
    shares = winners(Winners(Labels.deterministic, min_margin=3.0), SAMPLES)[0]
    assert set(SAMPLES[0][shares > 0]) == {3.0}  # 3 beats -1 alone by that much
    assert winners(Winners(Labels.deterministic, min_margin=9.0), SAMPLES)[0] == pytest.approx(np.full(100, 0.01))


@pytest.mark.parametrize(("selector", "values"), [("reward", REWARDS), ("reward_logit", SAMPLES)])
def test_a_tilted_reference_is_the_optimum_of_its_selector(selector, values):
    known = curve(Tilted(Selector(selector)))
    distinct = np.unique(values)
    for beta in (0.7, 1.0, 2.0):
        _, kl = exact_optimum(PROBABILITY, distinct, beta)
        tilt = PROBABILITY * np.exp(distinct / beta)
        reward = float(tilt / tilt.sum() @ np.unique(REWARDS))
        assert np.interp(kl, GRID, known) == pytest.approx(reward, abs=1e-3)


def test_ranks_are_what_ipo_fits():
    """Least squares on all ordered pairs of samples, by a general optimiser."""
    logits, beta = np.array([0.0, 1.0, 1.0, 2.5, 4.0]), 0.3
    better = np.argwhere(logits[:, None] > logits)

    def loss(scores):
        return float(((scores[better[:, 0]] - scores[better[:, 1]] - 1 / (2 * beta)) ** 2).sum())

    distinct = np.array([0.0, 1.0, 2.5, 4.0])  # without ties, where the closed form holds
    better = np.argwhere(distinct[:, None] > distinct)
    fitted = minimize(loss, np.zeros(4), tol=1e-12).x
    closed = ranks(distinct[None])[0] * 3 / 4 / (2 * beta)  # a share of all 4 samples in place of the other 3
    np.testing.assert_allclose(fitted - fitted.mean(), closed - closed.mean(), atol=1e-5)


def test_best_of_n_is_joined_with_the_reference():
    values = curve(BestOf(4, Selector.logit))
    end = np.log(4) - 0.75
    assert np.isnan(values[end < GRID]).all() and values[0] == pytest.approx(REWARDS.mean())
    halfway = np.interp(end / 2, GRID, values)
    assert halfway == pytest.approx((REWARDS.mean() + expected(SAMPLES, REWARDS, 4)[0]) / 2, abs=1e-6)


def test_the_true_reward_takes_the_learned_ones_place():
    assert with_true_reward(Tilted(Selector.learned)) == Tilted(Selector.reward)
    assert with_true_reward(BestOf(4, Selector.learned)) == BestOf(4, Selector.logit)
    for other in (Tilted(Selector.logit), Winners(Labels.noisy, noise=0.1)):
        assert with_true_reward(other) == other
