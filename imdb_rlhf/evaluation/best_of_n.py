"""Best-of-N: draw N samples from the reference and keep the one with the highest selector; all N from one reservoir.

A reservoir (M reference samples per prompt) has a selector, the score that picks, and a value per sample: the reward
that is reported, which may be the selector itself. Ties in the selector are split evenly among the drawn samples, so
the policy is a constant times the reference on each level of the selector. KL is in nats.
"""

from collections.abc import Sequence

import numpy as np


def weights(selector: np.ndarray, n: int) -> np.ndarray:
    """The probability that each sample is the best of n drawn without replacement from its prompt's reservoir.

    In ascending order of the selector, sample i of M is the best with probability C(i-1, n-1) / C(M, n); tied samples
    share theirs evenly. `(weights * values).sum(1)` is the mean over all subsets of n samples, hence an unbiased
    estimate of best-of-n's mean.

    Args:
        selector: (prompts, M).
        n: 1 (uniform) to M (the best alone).

    Returns:
        (prompts, M), each row sums to 1.

    Raises:
        ValueError: n outside 1..M, or a selector is nan.
    """
    _check(selector, n)
    return _weights(*_ranks(selector), n)


def expected(selector: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(prompts,) unbiased estimate of the mean value of the best of n; selector and values are (prompts, M)."""
    return curve(selector, values, [n])[0]


def curve(selector: np.ndarray, values: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """(len(ns), prompts) `expected` for several n; the samples are ranked once."""
    for n in ns:
        _check(selector, n)
    below, upto = _ranks(selector)
    means = [(_weights(below, upto, n) * values).sum(1) for n in ns]
    return np.array(means, dtype=np.float64).reshape(len(ns), len(selector))


def win_rate(selector: np.ndarray, values: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    """(prompts,) the probability that the value of the best of n is above one of `other`; ties count half.

    Args:
        selector: (prompts, M).
        values: (prompts, M).
        other: (prompts, S) values of other samples of the same prompts. They must not come from the reservoir, where a
            sample would be compared with itself.
        n: 1 to M.

    Raises:
        ValueError: as `weights`.
    """
    # the number of `other` that each value is above, plus half of those that equal it
    beaten = np.empty(values.shape, dtype=np.float64)
    for row, (own, others) in enumerate(zip(values, np.sort(other, axis=1), strict=True)):
        beaten[row] = (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / 2
    return expected(selector, beaten / other.shape[1], n)


def blocks(selector: np.ndarray, n: int, count: int) -> list[int]:
    """Actual draws of the best-of-n policy: the best of each of the first disjoint blocks of n samples.

    Args:
        selector: (M,) one prompt's reservoir, in the order in which it was drawn.
        n: 1 to M.
        count: the number of draws, at least 1.

    Returns:
        min(count, M // n) indices into the reservoir. Ties go to the earliest sample, which is a fair draw, since the
        samples are in random order.

    Raises:
        ValueError: as `weights`, or count below 1.
    """
    _check(selector[None], n)
    if count < 1:
        raise ValueError(f"at least one block is needed, not {count}")
    starts = range(0, n * min(count, len(selector) // n), n)
    return [start + int(selector[start : start + n].argmax()) for start in starts]


def top_mass(selector: np.ndarray) -> np.ndarray:
    """(prompts,) the share of each reservoir that is tied with its best: the plug-in estimate of a top atom's mass.

    It is at least 1/M even where there is no atom, and a better sample may exist that was not drawn. So `kl_bound_atom`
    at this mass is not a certain bound; without any atom it is below `kl_bound` by at most 0.03 nats.

    Raises:
        ValueError: a selector is nan.
    """
    _check(selector, 1)
    return (selector == selector.max(1, keepdims=True)).mean(1)


def kl_bound(n: int) -> float:
    """An upper bound of the KL of best-of-n to the reference, equal to it without ties: log n - (n-1)/n."""
    _check_n(n)
    return float(np.log(n) - (n - 1) / n)


def kl_bound_atom(n: int, mass: np.ndarray) -> np.ndarray:
    """An upper bound of the KL of best-of-n if the highest selector has at least this mass under the reference.

    (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1 - (1-e)^n) log[(1 - (1-e)^n) / e], where e is the mass: the exact KL
    in a world with one atom on top and no ties below it. It falls from `kl_bound` at e = 0 to 0 at e = 1.

    Args:
        n: samples drawn, at least 1.
        mass: any shape, within 0..1.

    Raises:
        ValueError: n below 1 or a mass outside 0..1.
    """
    _check_n(n)
    mass = np.asarray(mass, dtype=np.float64)
    if not ((mass >= 0) & (mass <= 1)).all():
        raise ValueError("a probability mass must be within 0..1")
    # the limits at the ends are filled in afterwards: log(1-e) has no value at e = 1, nor the ratio at e = 0
    inner = np.where((mass == 0) | (mass == 1), 0.5, mass)
    log_rest = np.log1p(-inner)
    rest, top = np.exp(n * log_rest), -np.expm1(n * log_rest)
    bound = rest * (kl_bound(n) + (n - 1) * log_rest) + top * (np.log(top) - np.log(inner))
    return np.select([mass == 0, mass == 1], [kl_bound(n), 0.0], np.maximum(bound, 0.0))


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"best-of-n needs n of at least 1, not {n}")


def _check(selector: np.ndarray, n: int) -> None:
    if not 1 <= n <= selector.shape[1]:
        raise ValueError(f"n = {n} samples cannot be drawn from a reservoir of {selector.shape[1]}")
    if np.isnan(selector).any():
        raise ValueError("a selector is nan, which has no rank")


def _ranks(selector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prompts, M) each: how many samples of its prompt are below a sample, and how many are at or below it."""
    prompts, size = selector.shape
    order = np.argsort(selector, axis=1)
    ascending = np.take_along_axis(selector, order, axis=1)
    rises = ascending[:, 1:] != ascending[:, :-1]
    place = np.arange(size)
    edge = np.ones((prompts, 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, rises]), place, 0), axis=1)
    last = np.where(np.hstack([rises, edge]), place + 1, size)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    below, upto = np.empty_like(first), np.empty_like(last)
    np.put_along_axis(below, order, first, axis=1)
    np.put_along_axis(upto, order, last, axis=1)
    return below, upto


def _weights(below: np.ndarray, upto: np.ndarray, n: int) -> np.ndarray:
    """(prompts, M) `weights` from the counts of `_ranks`."""
    # cumulative[i] = C(i, n) / C(M, n), the probability that the best of n is among the i lowest. Downwards from
    # cumulative[M] = 1 each step is a factor (i - n) / i: no large number, and exact zeros below n.
    size = below.shape[1]
    i = np.arange(size, 0, -1)
    cumulative = np.ones(size + 1)
    cumulative[:-1] = np.cumprod((i - n).clip(0) / i)[::-1]
    return (cumulative[upto] - cumulative[below]) / (upto - below)
