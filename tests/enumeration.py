"""Worlds of a few outcomes, where best-of-n is enumerated: what the package only estimates or bounds."""

import numpy as np


def exact_policy(probability: np.ndarray, selector: np.ndarray, n: int) -> np.ndarray:
    """(outcomes,) the law of best-of-n in a discrete world.

    The best level of n draws is j with probability F_j^n - F_{j-1}^n, F the cumulative mass; within the level the
    outcome is drawn in proportion to the reference.

    Args:
        probability: (outcomes,) the reference; sums to 1, zeros are allowed.
        selector: (outcomes,) equal numbers are ties.
        n: samples drawn, at least 1.

    Raises:
        ValueError: n below 1, probabilities that are negative or do not sum to 1, or a selector is nan.
    """
    level, mass, share = _levels(probability, selector, n)
    return probability * (share / np.where(mass > 0, mass, 1.0))[level]


def exact_kl(probability: np.ndarray, selector: np.ndarray, n: int) -> float:
    """KL of best-of-n to the reference: sum_j (F_j^n - F_{j-1}^n) log[(F_j^n - F_{j-1}^n) / p_j].

    Arguments as in `exact_policy`; j are the levels of the selector, p_j their masses.
    """
    _, mass, share = _levels(probability, selector, n)
    seen = share > 0
    return max(0.0, float((share[seen] * np.log(share[seen] / mass[seen])).sum()))


def exact_expected(probability: np.ndarray, selector: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean of values (outcomes,) under `exact_policy`."""
    return float(exact_policy(probability, selector, n) @ values)


def _levels(probability: np.ndarray, selector: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The level (outcomes,) of each outcome, each level's mass under the reference and under best-of-n (levels,)."""
    if n < 1:
        raise ValueError(f"best-of-n needs n of at least 1, not {n}")
    if np.isnan(selector).any():
        raise ValueError("a selector is nan, which has no rank")
    if not (probability >= 0).all() or abs(probability.sum() - 1) > 1e-6:
        raise ValueError("a reference's probabilities are at least 0 and sum to 1")
    level = np.unique(selector, return_inverse=True)[1]
    mass = np.bincount(level, weights=probability)
    cumulative = np.cumsum(mass)
    powers = (cumulative / cumulative[-1]) ** n  # exactly 1 on top, also for a large n
    return level, mass, np.diff(powers, prepend=0.0)


def exact_optimum(reference: np.ndarray, rewards: np.ndarray, beta: float) -> tuple[float, float]:
    """Reward and KL of pi = reference * exp(r / beta) / Z in a discrete world, outcome by outcome."""
    masses = [p * np.exp((r - rewards.max()) / beta) for p, r in zip(reference, rewards, strict=True)]
    policy = np.array(masses) / sum(masses)
    kl = sum(p * np.log(p / q) for p, q in zip(policy, reference, strict=True) if p > 0)
    return float(policy @ rewards), float(kl)
