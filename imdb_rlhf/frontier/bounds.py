"""Bounds of the optimum of reward over KL: a lower curve that policies reach, and an upper one that none surpasses.

Both are estimated from a reservoir (M reference samples per prompt). KL is in nats, beta in units of reward per nat.
The lower curve is that of policies that can be run: soft best-of-M (`optimum.plug_in`), and best-of-N where its reward
is higher. The upper curve is weak duality: for every beta and policy, R <= beta KL + beta E_x log Z_beta(x).
Z_beta(x) is the reference's mean of exp(r / beta). Both hold for an average budget of KL.
"""

from dataclasses import dataclass

import numpy as np

from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.optimum import tilted

BETAS = 100
PARTS = 4  # of a reservoir; each evaluates the choices that the other three made
LEAST_SAMPLES = 10  # effective samples that 95 % of the prompts must have
REACHED = 1 - 1e-6  # share of the KL at which all weight is on the best samples
LARGEST_EXPONENT = 300.0  # its square times 1e5 prompts is still a number


@dataclass(frozen=True)
class OptimumBounds:
    """The bounds of one world's optimum.

    Attributes:
        kl: (G,) nats, ascending from 0.
        lower: (G,) reward of soft best-of-M up to the trusted KL, and beyond it of best-of-N where that is higher.
        lower_draws: (count, G) the same on resamples of the prompts.
        upper: (G,) weak duality; concave and non-decreasing.
        upper_draws: (count, G) the same on resamples of the prompts.
        trusted_kl: nats up to which there are enough samples for tight bounds.
        cap: the supremum of the reward; may be infinite.
    """

    kl: np.ndarray
    lower: np.ndarray
    lower_draws: np.ndarray
    upper: np.ndarray
    upper_draws: np.ndarray
    trusted_kl: float
    cap: float


def optimum_bounds(rewards: np.ndarray, kl: np.ndarray, weights: np.ndarray, cap: float) -> OptimumBounds:
    """Bound the optimum from samples of the reference.

    A beta is trusted if the effective sample size (1 / sum of the squared weights) of 95 % of the prompts is at least
    10, and the lower curve's KL is at most log M - 2. Beyond the last trusted beta, soft best-of-M stays flat,
    best-of-N takes over where its reward is higher (it can be run, at a KL of at most log N - (N-1)/N), and the
    upper curve follows the line of that beta up to the cap.

    The upper curve needs the mean of log Z. The log of a mean of few samples is too small on average, so an estimate
    from each prompt's own samples would be below the frontier: prompts are pooled. Each quarter of a reservoir is
    evaluated with anchors a(x) from the other three, which also choose the beta for each KL:

        E_x log Z <= E_x a + log E_x (Z e^-a)

    by Jensen, for any anchors; the nearer they are to log Z, the tighter the bound (see `_anchors`; strata of prompts
    are anchors that are equal within a stratum). The last mean is over all prompts' samples; the remaining bias of its
    log, half its relative variance, is added back. The four quarters' bounds are averaged.

    Args:
        rewards: (prompts, M) of samples of the reference.
        kl: (G,) nats, ascending from 0.
        weights: (count, prompts) resamples of the prompts; rows sum to 1.
        cap: the supremum of the reward; infinite where nothing is known.

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
    # the draws are shifted as the curve was to make it concave, so that they stay around it
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
    """One reward at the optimum of another, e.g. the true reward at the learned reward's optimum.

    It is a lower curve: soft best-of-M by the selector, reported in values.

    Args:
        selector: (prompts, M) the reward that is optimised; its scale does not matter.
        values: (prompts, M) the reward that is reported, of the same samples.
        kl: (G,) nats, ascending from 0.
        weights: (count, prompts) resamples of the prompts; rows sum to 1.

    Returns:
        (G,) mean values, and (count, G) on each resample; nan at a KL that the selector does not reach, or beyond
        the trusted one (see `optimum_bounds`).

    Raises:
        ValueError: a grid that does not ascend from 0, or a number that is not finite.
    """
    selector, values = _checked(selector, kl), _checked(values, kl)
    betas, _ = _trusted(selector)
    curve, draws, reach = _achieved(selector, values, betas, kl, weights)
    beyond = kl > reach
    return np.where(beyond, np.nan, curve), np.where(beyond, np.nan, draws)


def needed_kl(kl: np.ndarray, curve: np.ndarray, reward: float) -> float:
    """The least KL at which a curve, linear between its points, reaches a reward.

    Args:
        kl: (G,) nats, ascending.
        curve: (G,) reward; nan where it is unknown.
        reward: the reward to reach.

    Returns:
        nats; the first of `kl` if the curve starts at or above the reward, infinity if it never reaches it.
    """
    reaching = np.flatnonzero(curve >= reward)
    if not len(reaching):
        return float("inf")
    at = int(reaching[0])
    if at == 0 or not np.isfinite(curve[at - 1]):
        return float(kl[at])
    share = (reward - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(kl[at - 1] + share * (kl[at] - kl[at - 1]))


def _checked(rewards: np.ndarray, kl: np.ndarray) -> np.ndarray:
    if kl[0] != 0 or (np.diff(kl) <= 0).any():
        raise ValueError("the grid of KL must ascend from 0")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    return rewards.astype(np.float64)


def _trusted(rewards: np.ndarray) -> tuple[np.ndarray, float]:
    """(betas,) from one whose optimum is nearly the reference down to the last trusted one, and the trusted KL."""
    log_m = float(np.log(rewards.shape[1]))
    best = rewards.max(1, keepdims=True)
    spread = float((best - rewards.min(1, keepdims=True)).max())
    reach = float((log_m - np.log((rewards == best).sum(1))).mean())
    if spread == 0:  # beta's unit is unknown: a flat curve if there are enough equal rewards, a steep one if too few
        unit = max(float(np.abs(rewards).max()), 1.0)
        few = rewards.shape[1] < LEAST_SAMPLES
        return np.array([1e3 * unit if few else 1e-12 * unit]), 0.0 if few else log_m - 2

    def kl_at(beta: float) -> float | None:
        """The mean KL at a trusted beta; None for others."""
        policy, _, kl = tilted(np.full(rewards.shape, 1 / rewards.shape[1]), rewards, beta)
        effective, spent = float(np.quantile(1 / (policy**2).sum(1), 0.05)), float(kl.mean())
        # ten samples tied with the best count as ten, up to rounding
        return spent if effective >= LEAST_SAMPLES * (1 - 1e-9) and spent <= log_m - 2 else None

    high = spread / np.sqrt(8e-6)  # KL <= spread^2 / (8 beta^2): at most 1e-6
    last, spent = high, kl_at(high)
    if spent is None:
        return np.array([high]), 0.0
    beyond = high / 2
    while (further := kl_at(beyond)) is not None:
        if further >= REACHED * reach:  # nothing more can be gained: a larger budget need not be spent
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
    """Soft best-of-M over KL: (G,) on all prompts, (count, G) on resamples, and the largest KL that it reaches.

    Between two betas the curve is linear: a policy that draws one of the two for each completion has that reward, and
    at most that KL.
    """
    uniform = np.full(selector.shape, 1 / selector.shape[1])
    rewards, spent = [values.mean(1)], [np.zeros(len(values))]
    for beta in betas:
        policy, _, divergence = tilted(uniform, selector, float(beta))
        rewards.append((policy * values).sum(1))
        spent.append(divergence)
    reward_points, kl_points = np.array(rewards), np.array(spent)  # (betas + 1, prompts)
    reach = float(kl_points[-1].mean())
    curve = np.interp(kl, kl_points.mean(1), reward_points.mean(1))
    pairs = zip(weights @ kl_points.T, weights @ reward_points.T, strict=True)
    return curve, np.array([np.interp(kl, x, y) for x, y in pairs]), reach


def _best_of_n(rewards: np.ndarray, kl: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best-of-N up to M over the bound of its KL, mixtures between: (G,) on all prompts, (count, G) on resamples."""
    ns = range(1, rewards.shape[1] + 1)
    means, spent = best_of_n.curve(rewards, rewards, ns), np.array([best_of_n.kl_bound(n) for n in ns])
    share = np.array([np.interp(kl, spent, unit) for unit in np.eye(len(ns))])  # (N, G) weight of each N at each KL
    return means.mean(1) @ share, weights @ (means.T @ share)


def _bounds(rewards: np.ndarray, betas: np.ndarray, kl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper curve before it is averaged over prompts: (prompts, G) beta times log Z's bound, (G,) beta times KL."""
    parts = min(PARTS, rewards.shape[1])
    part = np.arange(rewards.shape[1]) % parts
    per_prompt, line = np.zeros((len(rewards), len(kl))), np.zeros(len(kl))
    for held_out in range(parts):
        evaluated = rewards[:, part == held_out]
        others = rewards[:, part != held_out] if parts > 1 else evaluated  # a single sample is its own anchor
        anchors = np.array([_anchors(others, float(beta)) for beta in betas])  # (betas, prompts)
        log_z = np.array([_log_mean_exp(evaluated / beta) for beta in betas])
        ratio = np.exp(np.minimum(log_z - anchors, LARGEST_EXPONENT))  # Z e^-a
        pooled = ratio.mean(1, keepdims=True)
        bias = ratio.var(1, keepdims=True) / (2 * len(rewards) * pooled**2)
        # each prompt's contribution to the mean, and to first order to the mean of a resample
        bounds = anchors + np.log(pooled) + (ratio / pooled - 1) + bias
        intercepts = betas * anchors.mean(1)  # the bounds that the other parts expect
        at = np.argmin(betas[:, None] * kl + intercepts[:, None], axis=0)  # (G,) index of the best beta for each KL
        per_prompt += (betas[:, None] * bounds)[at].T / parts
        line += betas[at] * kl / parts
    per_prompt[:, kl == 0] = rewards.mean(1, keepdims=True)  # the limit of an infinite beta
    return per_prompt, line


def _anchors(rewards: np.ndarray, beta: float) -> np.ndarray:
    """(prompts,) the expected log Z: each prompt's own estimate, shrunk towards the mean of all.

    Empirical Bayes: log Z is normal over prompts, and the estimates are normal around it with one variance, the mean
    over prompts of an estimate's squared relative error. If that exceeds the variance of the estimates, all anchors are
    equal.
    """
    samples = rewards.shape[1]
    own = _log_mean_exp(rewards / beta)
    squared = np.exp(np.maximum(_log_mean_exp(2 * rewards / beta) - 2 * own, 0.0)) - 1  # (std of e^(r/beta) / mean)^2
    noise = float(squared.mean()) / max(samples - 1, 1)
    between = max(float(own.var()) - noise, 0.0)
    shrinkage = between / (between + noise) if between > 0 else 0.0
    # noise / 2 is the bias of the log of a mean; shrinkage * noise / 2 is half the posterior variance of log Z
    return own.mean() + shrinkage * (own - own.mean()) + noise / 2 + shrinkage * noise / 2


def _log_mean_exp(exponents: np.ndarray) -> np.ndarray:
    """The log of the mean of e^exponents over the last axis, without overflow."""
    most = exponents.max(-1, keepdims=True)
    return most[..., 0] + np.log(np.exp(exponents - most).mean(-1))


def _concave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least concave curve that is nowhere below the points (x, y), at each x."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) > (y[i] - y[b]) * (x[b] - x[a]):  # the slope falls at b
                break
            corners.pop()
        corners.append(i)
    return np.interp(x, x[corners], y[corners])
