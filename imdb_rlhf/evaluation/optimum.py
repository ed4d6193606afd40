"""The optimum of reward against KL: the policy in proportion to reference * exp(reward / beta).

Everything is estimated from a reservoir (M reference samples per prompt). KL is in nats, beta in units of reward per
nat. One beta for all prompts is the best use of an average budget of KL.
"""

import numpy as np


def plug_in(rewards: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Reward and KL of the optimum, with each prompt's samples in place of its reference.

    With weights w in proportion to exp(r / beta), R = sum w r and KL = sum w log(M w). This is soft best-of-M, a policy
    that can be run; its own KL to the reference is at most the mean of this KL. So the point of the two means over
    reservoirs is never above the exact frontier. The point of a single reservoir may be, by chance.

    Args:
        rewards: (prompts, M) of samples of the reference.
        beta: above 0.

    Returns:
        R and KL, (prompts,) each.

    Raises:
        ValueError: beta is not above 0, or a reward is not finite.
    """
    _, reward, kl = tilted(np.full(rewards.shape, 1 / rewards.shape[1]), rewards, beta)
    return reward, kl


def coefficient_for(rewards: np.ndarray, target_kl: float) -> float:
    """The beta at which the mean over prompts of the plug-in KL equals the target, or the largest KL below it.

    The target is capped twice. The first cap is log M - 2 nats (for M below e^4, half of log M): beyond it a few
    samples carry all the weight and say nothing about the reference. The second is 99 % of the largest KL: as beta
    falls, the KL saturates at log(M / samples tied with the best), which is 0 where a prompt's rewards are all equal.

    Args:
        rewards: (prompts, M) of samples of the reference.
        target_kl: nats, above 0.

    Raises:
        ValueError: the target is not above 0, a reward is not finite, or no prompt's rewards differ.
    """
    if not target_kl > 0:
        raise ValueError(f"a target KL is above 0, not {target_kl}")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    rewards = rewards.astype(np.float64)
    best = rewards.max(1, keepdims=True)
    spread = float((best - rewards.min(1, keepdims=True)).max())
    if spread == 0:
        raise ValueError("all rewards of each prompt are equal: every beta gives the reference")
    log_m = np.log(rewards.shape[1])
    reachable = float((log_m - np.log((rewards == best).sum(1))).mean())
    goal = min(target_kl, max(log_m - 2, log_m / 2), 0.99 * reachable)

    # the upper end: KL <= spread^2 / (8 beta^2), since the variance of a tilted reward is at most spread^2 / 4
    high = spread / np.sqrt(8 * goal)
    low = high / 4
    while plug_in(rewards, low)[1].mean() < goal:
        low, high = low / 4, low
    while high / low > 1 + 1e-10:  # bisection on log beta; the KL falls as beta rises
        middle = np.sqrt(low) * np.sqrt(high)
        if plug_in(rewards, middle)[1].mean() < goal:
            high = middle
        else:
            low = middle
    return float(np.sqrt(low) * np.sqrt(high))


def tilted(reference: np.ndarray, rewards: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The optima of many discrete worlds at once, over the last axis: pi = reference * exp(r / beta) / Z.

    Args:
        reference: (..., outcomes) probabilities, sum to 1; zeros are allowed.
        rewards: (..., outcomes).
        beta: above 0.

    Returns:
        pi (..., outcomes), reward (...) and KL (...).

    Raises:
        ValueError: beta is not above 0, or a reward is not finite.
    """
    if not beta > 0:
        raise ValueError(f"beta is above 0, not {beta}")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    rewards = rewards.astype(np.float64)
    # rewards are taken relative to the best that can occur, so that no exponential overflows; far below, weights are 0
    best = np.where(reference > 0, rewards, -np.inf).max(-1, keepdims=True)
    with np.errstate(over="ignore"):
        tilt = np.where(reference > 0, (rewards - best) / beta, -np.inf)
    mass = reference * np.exp(tilt)
    z = mass.sum(-1, keepdims=True)
    policy = mass / z
    reward = best[..., 0] + (policy * (rewards - best)).sum(-1)
    # log(pi / reference) = tilt - log Z; where pi is 0 so is its term of the KL
    log_ratio = np.where(policy > 0, tilt, 0.0) - np.log(z)
    return policy, reward, np.maximum((policy * log_ratio).sum(-1), 0.0)
