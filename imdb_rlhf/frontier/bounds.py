"""Bounds of the optimum of reward over KL: a lower curve that is surely within reach, and an upper one that is not.

All of it is read off M samples of the reference for each prompt. KL is in nats, beta in units of reward for each nat.
The lower curve is of policies that one can run: soft best-of-M (`optimum.plug_in`), and best-of-N where that gets
more. The upper curve is weak duality: for every beta and every policy, R <= beta KL + beta E_x log Z_beta(x), with
Z_beta(x) the reference's mean of exp(r / beta). All hold for an average budget of KL.
"""

from dataclasses import dataclass

import numpy as np

from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.optimum import tilted

BETAS = 100
PARTS = 4  # of a reservoir; each evaluates once what the others chose
LEAST_SAMPLES = 10  # effective ones, of all but 5 % of the prompts
REACHED = 1 - 1e-6  # of the KL at which all weight is on the best samples
LARGEST_EXPONENT = 300.0  # its square times 1e5 prompts is still a number


@dataclass(frozen=True)
class OptimumBounds:
    """The optimum of one world.

    Attributes:
        kl: (G,) nats, ascending from 0.
        lower: (G,) reward of soft best-of-M as far as the samples can tell, beyond that of best-of-N up to M.
        lower_draws: (count, G) the same on resamples of the prompts.
        upper: (G,) weak duality; concave and non-decreasing.
        upper_draws: (count, G).
        trusted_kl: nats up to which the samples can tell.
        cap: the largest reward that there is; may be infinite.
    """

    kl: np.ndarray
    lower: np.ndarray
    lower_draws: np.ndarray
    upper: np.ndarray
    upper_draws: np.ndarray
    trusted_kl: float
    cap: float


def optimum_bounds(rewards: np.ndarray, kl: np.ndarray, weights: np.ndarray, cap: float) -> OptimumBounds:
    """The optimum from samples of the reference.

    Trusted are the betas at which the 5th percentile over prompts of the effective sample size (1 / sum of the squared
    weights) is at least 10, and the lower curve's KL at most log M - 2. Beyond, soft best-of-M stays flat, best-of-N
    takes over where it gets more (it can be run, at a KL of log N - (N-1)/N at most), and the upper curve follows the
    line of the last trusted beta up to the cap.

    The upper curve needs the mean of log Z. The log of a mean of few samples is too small on average, so a prompt's own
    samples alone would put it below the frontier: prompts are pooled. Each quarter of a reservoir is evaluated with
    anchors a(x) from the other three, which also choose the beta for each KL:

        E_x log Z <= E_x a + log E_x (Z e^-a)

    by Jensen, whatever the anchors are; the nearer to log Z, the tighter (see `_anchors`; strata of prompts are anchors
    that are equal within a stratum). The last mean is over all prompts' samples, and what its log still lacks, half its
    relative variance, is added. The four quarters' bounds are averaged.

    Args:
        rewards: (prompts, M) of samples of the reference.
        kl: (G,) nats, ascending from 0.
        weights: (count, prompts) resamples of the prompts, rows sum to 1.
        cap: the largest reward that there is; infinite where nothing is known of it.

    Raises:
        ValueError: a grid that does not ascend from 0, a reward that is not finite or above the cap.
    """
    rewards = _checked(rewards, kl)
    if rewards.max() > cap:
        raise ValueError(f"a reward of {rewards.max():g} is above the cap, {cap:g}")
    betas, trusted_kl = _trusted(rewards)
    lower, lower_draws, _ = _achieved(rewards, rewards, betas, kl, weights)
    best, best_draws = _best_of_n(rewards, kl, weights)
    more = best > lower
    lower = np.where(more, best, lower)
    lower_draws = np.maximum.accumulate(np.where(more, best_draws, lower_draws), axis=1)  # a budget need not be spent

    per_prompt, line = _bounds(rewards, betas, kl)
    raw = per_prompt.mean(0) + line
    upper = _concave(kl, np.maximum.accumulate(np.maximum(raw, lower)))
    # What made the curve concave is added to its draws too, so that they lie around it.
    upper_draws = np.maximum.accumulate(weights @ per_prompt + (line + upper - raw), axis=1)
    return OptimumBounds(
        kl=kl,
        lower=lower,
        lower_draws=lower_draws,
        upper=np.minimum(upper, cap),
        upper_draws=np.minimum(np.maximum(upper_draws, lower_draws), cap),
        trusted_kl=trusted_kl,
        cap=cap,
    )


def optimum_of(
    selector: np.ndarray, values: np.ndarray, kl: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the optimum of one reward gets of another, e.g. the learned reward's of the true one.

    As a lower curve: soft best-of-M by the selector, reported in values.

    Args:
        selector: (prompts, M) the reward that is optimised; its scale does not matter.
        values: (prompts, M) the reward that is reported, of the same samples.
        kl: (G,) nats, ascending from 0.
        weights: (count, prompts) resamples of the prompts, rows sum to 1.

    Returns:
        (G,) mean values, and (count, G) on each resample; nan at a KL that the selector does not reach, or beyond
        what its samples can tell (see `optimum_bounds`).

    Raises:
        ValueError: a grid that does not ascend from 0, or a number that is not finite.
    """
    selector, values = _checked(selector, kl), _checked(values, kl)
    betas, _ = _trusted(selector)
    curve, draws, reach = _achieved(selector, values, betas, kl, weights)
    beyond = kl > reach
    return np.where(beyond, np.nan, curve), np.where(beyond, np.nan, draws)


def needed_kl(kl: np.ndarray, curve: np.ndarray, reward: float) -> float:
    """The least KL at which a curve has a reward, linear between its points.

    Args:
        kl: (G,) ascending.
        curve: (G,) reward; nan where it is unknown.
        reward: what is to be reached.

    Returns:
        nats: the first of kl at or below the curve's start, infinite where the curve never gets there.
    """
    there = np.flatnonzero(curve >= reward)
    if not len(there):
        return float("inf")
    at = int(there[0])
    if at == 0 or not np.isfinite(curve[at - 1]):
        return float(kl[at])
    share = (reward - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(kl[at - 1] + share * (kl[at] - kl[at - 1]))


def _checked(rewards: np.ndarray, kl: np.ndarray) -> np.ndarray:
    if kl[0] != 0 or (np.diff(kl) <= 0).any():
        raise ValueError("a grid of KL ascends from 0")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    return rewards.astype(np.float64)


def _trusted(rewards: np.ndarray) -> tuple[np.ndarray, float]:
    """Betas from nearly the reference down to the last that the samples can tell of, and the KL that is trusted."""
    log_m = float(np.log(rewards.shape[1]))
    best = rewards.max(1, keepdims=True)
    spread = float((best - rewards.min(1, keepdims=True)).max())
    reach = float((log_m - np.log((rewards == best).sum(1))).mean())
    if spread == 0:  # beta's unit is unknown: flat where equal rewards tell something, steep where they are too few
        unit = max(float(np.abs(rewards).max()), 1.0)
        few = rewards.shape[1] < LEAST_SAMPLES
        return np.array([1e3 * unit if few else 1e-12 * unit]), 0.0 if few else log_m - 2

    def kl_at(beta: float) -> float | None:
        """The mean KL where it is trusted."""
        policy, _, kl = tilted(np.full(rewards.shape, 1 / rewards.shape[1]), rewards, beta)
        effective, spent = float(np.quantile(1 / (policy**2).sum(1), 0.05)), float(kl.mean())
        # ten samples tied with the best are ten, but for rounding
        return spent if effective >= LEAST_SAMPLES * (1 - 1e-9) and spent <= log_m - 2 else None

    high = spread / np.sqrt(8e-6)  # KL <= spread^2 / (8 beta^2): at most 1e-6
    last, spent = high, kl_at(high)
    if spent is None:
        return np.array([high]), 0.0
    beyond = high / 2
    while (further := kl_at(beyond)) is not None:
        if further >= REACHED * reach:  # nothing is left to gain: a larger budget need not be spent
            return np.geomspace(high, beyond, BETAS), log_m - 2
        last, spent, beyond = beyond, further, beyond / 2
    for _ in range(30):  # bisection on log beta
        middle = float(np.sqrt(beyond * last))
        if (further := kl_at(middle)) is None:
            beyond = middle
        else:
            last, spent = middle, further
    return np.geomspace(high, last, BETAS), spent


def _achieved(
    selector: np.ndarray, values: np.ndarray, betas: np.ndarray, kl: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Soft best-of-M over KL, on all prompts and on resamples, and how far it reaches.

    Between two betas it is linear: the reward of drawing one of the two for each completion, whose KL is at most that.
    """
    uniform = np.full(selector.shape, 1 / selector.shape[1])
    rewards, spent = [values.mean(1)], [np.zeros(len(values))]
    for beta in betas:
        policy, _, divergence = tilted(uniform, selector, float(beta))
        rewards.append((policy * values).sum(1))
        spent.append(divergence)
    points, places = np.array(rewards), np.array(spent)  # (betas + 1, prompts)
    reach = float(places[-1].mean())
    curve = np.interp(kl, places.mean(1), points.mean(1))
    pairs = zip(weights @ places.T, weights @ points.T, strict=True)
    return curve, np.array([np.interp(kl, x, y) for x, y in pairs]), reach


def _best_of_n(rewards: np.ndarray, kl: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best-of-N over the bound of its KL, for N up to M, on all prompts and on resamples; mixtures between."""
    ns = range(1, rewards.shape[1] + 1)
    means, spent = best_of_n.curve(rewards, rewards, ns), np.array([best_of_n.kl_bound(n) for n in ns])
    share = np.array([np.interp(kl, spent, unit) for unit in np.eye(len(ns))])  # (N, G) of each N at each KL
    return means.mean(1) @ share, weights @ (means.T @ share)


def _bounds(rewards: np.ndarray, betas: np.ndarray, kl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper curve before it is averaged: (prompts, G) beta times the bound of log Z, and (G,) beta times KL."""
    parts = min(PARTS, rewards.shape[1])
    part = np.arange(rewards.shape[1]) % parts
    per_prompt, line = np.zeros((len(rewards), len(kl))), np.zeros(len(kl))
    for held_out in range(parts):
        evaluated = rewards[:, part == held_out]
        chosen = rewards[:, part != held_out] if parts > 1 else evaluated  # of one sample there is no other
        anchors = np.array([_anchors(chosen, float(beta)) for beta in betas])  # (betas, prompts)
        of_log_z = np.array([_log_mean_exp(evaluated / beta) for beta in betas])
        off = np.exp(np.minimum(of_log_z - anchors, LARGEST_EXPONENT))
        pooled = off.mean(1, keepdims=True)
        lacking = off.var(1, keepdims=True) / (2 * len(rewards) * pooled**2)
        # Of each prompt: what it adds to the mean, and to first order to that of a resample.
        bounds = anchors + np.log(pooled) + (off / pooled - 1) + lacking
        intercepts = betas * anchors.mean(1)  # what the other parts expect of the bound
        at = np.argmin(betas[:, None] * kl + intercepts[:, None], axis=0)  # (G,) which beta is best for each KL
        per_prompt += (betas[:, None] * bounds)[at].T / parts
        line += betas[at] * kl / parts
    per_prompt[:, kl == 0] = rewards.mean(1, keepdims=True)  # beta without end
    return per_prompt, line


def _anchors(rewards: np.ndarray, beta: float) -> np.ndarray:
    """(prompts,) what log Z is expected to be: each prompt's own estimate, drawn towards the mean of all.

    By empirical Bayes, with a normal log Z over prompts and around it normal estimates of one variance: the mean square
    over prompts of an estimate's relative error. Where it drowns the differences between prompts all anchors are equal.
    """
    samples = rewards.shape[1]
    own = _log_mean_exp(rewards / beta)
    squared = np.exp(np.maximum(_log_mean_exp(2 * rewards / beta) - 2 * own, 0.0)) - 1  # (std of e^(r/beta) / mean)^2
    noise = float(squared.mean()) / max(samples - 1, 1)
    between = max(float(own.var()) - noise, 0.0)
    shrinkage = between / (between + noise) if between > 0 else 0.0
    # noise / 2 is the bias of the log of a mean; shrinkage noise / 2 is half the variance that is left of log Z
    return own.mean() + shrinkage * (own - own.mean()) + noise / 2 + shrinkage * noise / 2


def _log_mean_exp(exponents: np.ndarray) -> np.ndarray:
    """Log of the mean over the last axis of e to the exponents."""
    most = exponents.max(-1, keepdims=True)
    return most[..., 0] + np.log(np.exp(exponents - most).mean(-1))


def _concave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least concave curve that is nowhere below the points, at their places."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) > (y[i] - y[b]) * (x[b] - x[a]):  # the slope falls at b
                break
            corners.pop()
        corners.append(i)
    return np.interp(x, x[corners], y[corners])
