"""Reward over KL of the policies that losses ask for, read off a reservoir (M reference samples per prompt)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from imdb_rlhf.algos.population import BestOf, Population, Selector, Tilted, Winners
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.frontier.bounds import optimum_of

Column = Callable[[str], np.ndarray]  # name -> (prompts, M) that column of a reservoir


def with_true_reward(population: Population) -> Population:
    """The same policy with the true reward in place of the learned one."""
    if isinstance(population, Winners) or population.selector != Selector.learned:
        return population
    tilted = isinstance(population, Tilted)
    return replace(population, selector=Selector.reward if tilted else Selector.logit)


def population_curve(
    population: Population, column: Column, kl: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True reward over KL of a loss's population optimum.

    A single policy, such as best-of-n, is joined with the reference by a straight line: the mixture of the two.

    Args:
        population: what the loss asks for.
        column: the reservoir's; asked for `reward`, and for what the population selects by.
        kl: (G,) nats, ascending from 0.
        weights: (count, prompts) resamples of the prompts; rows sum to 1.

    Returns:
        (G,) rewards, and (count, G) on each resample; nan at a KL beyond the policy's own, or beyond the trusted one.

    Raises:
        KeyError: the reservoir lacks a column.
    """
    rewards = column("reward")
    if isinstance(population, Tilted):
        by_rank = population.selector == Selector.rank
        selector = ranks(column("reward_logit")) if by_rank else column(str(population.selector))
        return optimum_of(selector, rewards, kl, weights)
    if isinstance(population, BestOf):
        share = best_of_n.weights(column(str(population.selector)), population.n)
        spent = np.full(len(rewards), best_of_n.kl_bound(population.n))
    else:
        share = winners(population, column("reward_logit"))
        spent = (share * np.log(np.where(share > 0, share * share.shape[1], 1.0))).sum(1)
    reward = (share * rewards).sum(1)
    return _chord(kl, rewards.mean(1)[None], reward[None], spent[None])[0], _chord(
        kl, *((weights @ values)[:, None] for values in (rewards.mean(1), reward, spent))
    )


def _chord(kl: np.ndarray, start: np.ndarray, reward: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """(n, G) the line from (0, start) to (spent, reward), nan beyond; the last three are (n, k), averaged over k."""
    start, reward, spent = (values.mean(1)[:, None] for values in (start, reward, spent))
    with np.errstate(divide="ignore", invalid="ignore"):
        line = start + (reward - start) * kl / spent
    return np.where(kl == 0, start, np.where(kl > spent, np.nan, line))


def ranks(logits: np.ndarray) -> np.ndarray:
    """(prompts, M) the share of a prompt's other samples that a sample beats, less the share that beats it."""
    gaps = logits[:, :, None] - logits[:, None, :]
    shares: np.ndarray = np.sign(gaps).sum(2) / max(logits.shape[1] - 1, 1)
    return shares


def winners(population: Winners, logits: np.ndarray) -> np.ndarray:
    """(prompts, M) the share of each sample among the winners of all pairs; uniform where a prompt has no pair.

    Samples with equal log-odds make no pair.

    Args:
        population: how a pair's winner is drawn.
        logits: (prompts, M) log-odds of the true reward.
    """
    shares = np.empty(logits.shape)
    for row, values in enumerate(logits.astype(np.float64)):  # one prompt at a time: M x M pairs
        gap = values[:, None] - values
        if population.labels == Labels.bradley_terry:
            wins = 1 / (1 + np.exp(-np.clip(gap / population.tau, -500, 500)))
        else:
            wins = np.where(gap > 0, 1 - population.noise, population.noise)
        counts = np.where((np.abs(gap) >= population.min_margin) & (gap != 0), wins, 0.0).sum(1)
        shares[row] = counts / counts.sum() if counts.any() else 1 / len(values)
    return shares
