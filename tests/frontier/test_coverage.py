"""How often the frontier's intervals hold the truth, in worlds whose truth is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.stats import percentile, resamples
from imdb_rlhf.frontier.bounds import optimum_bounds
from imdb_rlhf.frontier.world import World

PROMPTS, SAMPLES, COUNT = 200, 48, 400
WEIGHTS = resamples(PROMPTS, COUNT, 0)
LEVELS = np.linspace(0.05, 0.95, 12)  # the rewards of a prompt's outcomes


def references(random: np.random.Generator, prompts: int) -> np.ndarray:
    """(prompts, outcomes) probabilities: each prompt has an inclination of its own."""
    logits = random.normal(0, 1.5, (prompts, 1)) * (LEVELS - 0.5) * 3 + random.normal(0, 0.7, (prompts, len(LEVELS)))
    exponents = np.exp(logits)
    return exponents / exponents.sum(1, keepdims=True)


def reservoir(random: np.random.Generator, prompts: int) -> np.ndarray:
    """(prompts, samples) rewards of samples of newly drawn prompts."""
    cumulative = references(random, prompts).cumsum(1)
    return LEVELS[(random.random((prompts, SAMPLES, 1)) > cumulative[:, None, :-1]).sum(2)]


def optimum_of(reference: np.ndarray, beta: float) -> tuple[float, float]:
    """KL and reward of the optimum at a beta, by enumeration of the (prompts, outcomes) probabilities."""
    tilted = reference * np.exp((LEVELS - 1) / beta)
    policy = tilted / tilted.sum(1, keepdims=True)
    return float((policy * np.log(policy / reference)).sum(1).mean()), float((policy @ LEVELS).mean())


@pytest.mark.slow
def test_best_of_n() -> None:
    ns = (1, 4, 16, 48)
    cumulative = references(np.random.default_rng(0), 40_000).cumsum(1)
    gaps = np.diff(LEVELS, prepend=0.0)
    below = np.concatenate([np.zeros((len(cumulative), 1)), cumulative[:, :-1]], axis=1)
    truth = [float(((1 - below**n) * gaps).sum(1).mean()) for n in ns]  # the mean of a maximum, level by level
    random, held = np.random.default_rng(1), np.zeros(len(ns))
    for _ in range(1500):
        rewards = reservoir(random, PROMPTS)
        low, high = percentile(WEIGHTS @ best_of_n.curve(rewards, rewards, ns).T, 0.95)
        held += (low <= truth) & (truth <= high)
    assert ((held / 1500 >= 0.93) & (held / 1500 <= 0.97)).all()


@pytest.mark.slow
def test_the_optimums_curves() -> None:
    # Each curve's interval is about its own mean: the lower one is below the optimum by what 48 samples lose, the upper
    # one above it. From end to end they hold the optimum itself.
    grid, repetitions = np.array([0.0, 0.1, 0.2, 0.3]), 700
    points = [optimum_of(references(np.random.default_rng(0), 40_000), beta) for beta in np.geomspace(30, 0.05, 60)]
    kl, reward = np.array(points).T
    truth = np.interp(grid, kl, reward)[1:]
    random, curves, intervals = np.random.default_rng(2), [], []
    for _ in range(repetitions):
        bounds = optimum_bounds(reservoir(random, PROMPTS), grid, WEIGHTS, 1.0)
        assert bounds.trusted_kl > 0.3
        curves.append((bounds.lower[1:], bounds.upper[1:]))
        intervals.append([percentile(draws[:, 1:], 0.95) for draws in (bounds.lower_draws, bounds.upper_draws)])
    means, ends = np.mean(curves, axis=0), np.array(intervals)  # (2, G), (repetitions, 2, 2, G)
    held = ((ends[:, :, 0] <= means) & (means <= ends[:, :, 1])).mean(0)
    assert ((held >= 0.93) & (held <= 0.97)).all(), held
    around = ((ends[:, 0, 0] <= truth) & (truth <= ends[:, 1, 1])).mean(0)
    assert (around >= 0.93).all(), around


def pool_of(count: int) -> Any:
    """A world of several references, without runs."""
    world = World.__new__(World)
    world.origins = [SimpleNamespace(place=place) for place in range(count)]  # type: ignore[misc]
    world.confidence, world.prompts, world.seed = 0.95, PROMPTS, 0
    return world


@pytest.mark.parametrize(
    ("count", "of_reference", "of_seed"), [(3, 0.3, 0.3), (3, 0.02, 0.3), (5, 0.3, 0.1), (10, 0.1, 0.1)]
)
def test_means_over_references(count: int, of_reference: float, of_seed: float) -> None:
    random, world, seeds = np.random.default_rng(count), pool_of(count), 4
    origins, held = [origin for origin in world.origins for _ in range(seeds)], 0
    for _ in range(2000):
        values = random.normal(0, of_reference, (count, 1, 1)) + random.normal(0, of_seed, (count, seeds, 1))
        values = values + random.normal(0, 1, PROMPTS) + random.normal(0, 0.5, (count, 1, PROMPTS))
        runs = (values + random.normal(0, 0.5, (count, seeds, PROMPTS))).reshape(-1, PROMPTS)
        low, high = world.interval(world.means(runs.mean(1), origins), world.means(runs @ WEIGHTS.T, origins))
        held += low <= 0 <= high
    assert 0.93 <= held / 2000 <= 0.97
