"""Every objective as a pure function of tensors: per-example losses out, no reduction, no config, no model."""

import torch
import torch.nn.functional as F
from torch import Tensor

KL_ERROR_CLIP = 0.2  # of PPO's adaptive controller

# --- preferences ------------------------------------------------------------------------------------------------------


def log_ratio_margin(
    chosen_logprob: Tensor, rejected_logprob: Tensor, chosen_ref_logprob: Tensor, rejected_ref_logprob: Tensor
) -> Tensor:
    """Margin h = [log pi(y_w) - log ref(y_w)] - [log pi(y_l) - log ref(y_l)], nats.

    Args:
        chosen_logprob: (pairs,) log-prob of the preferred completion under the policy, summed over its tokens.
        rejected_logprob: (pairs,) the same for the other completion.
        chosen_ref_logprob: (pairs,) log-prob of the preferred completion under the reference.
        rejected_ref_logprob: (pairs,) the same for the other completion.

    Returns:
        (pairs,) margins.
    """
    return (chosen_logprob - chosen_ref_logprob) - (rejected_logprob - rejected_ref_logprob)


def dpo_sigmoid(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h): equation 7 of arXiv 2305.18290; with label smoothing e its conservative form.

    The conservative form is the cross-entropy with labels that are wrong with probability e:
    -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).

    Args:
        margin: (pairs,) `log_ratio_margin`.
        beta: strength of the KL penalty, above 0.
        label_smoothing: e in [0, 1/2).

    Returns:
        (pairs,) losses; ln 2 where the margin is 0.
    """
    loss = -F.logsigmoid(beta * margin)
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-beta * margin)


def dpo_robust(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e): rDPO, arXiv 2403.00409.

    Its mean over labels that are flipped with probability e is the loss of the clean ones.

    Args:
        margin: (pairs,) `log_ratio_margin`.
        beta: strength of the KL penalty, above 0.
        label_smoothing: e in (0, 1/2).

    Returns:
        (pairs,) losses; may be negative.
    """
    right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return (-(1 - label_smoothing) * right + label_smoothing * wrong) / (1 - 2 * label_smoothing)


def dpo_ipo(margin: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2: IPO, equation 17 of arXiv 2310.12036.

    Args:
        margin: (pairs,) `log_ratio_margin`, of summed or of averaged log-probs.
        beta: strength of the regularisation, above 0.

    Returns:
        (pairs,) losses.
    """
    return (margin - 1 / (2 * beta)).square()


def dpo_hinge(margin: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta h): the hinge of SLiC-HF (arXiv 2305.10425) on log-ratios, as in arXiv 2309.06657.

    Args:
        margin: (pairs,) `log_ratio_margin`.
        beta: scale of the margin, above 0.

    Returns:
        (pairs,) losses.
    """
    return F.relu(1 - beta * margin)


def plackett_luce(scores: Tensor, mask: Tensor) -> Tensor:
    """-sum_k log[exp s_k / sum_{j >= k} exp s_j] of a ranking: equation 18 (appendix A.3) of arXiv 2305.18290.

    Args:
        scores: (rankings, K) scores, best first; beta times the log-ratio for DPO.
        mask: (rankings, K) bool, true for the completions that exist, which come first.

    Returns:
        (rankings,) losses; with K = 2 that of `dpo_sigmoid`.
    """
    hidden = scores.masked_fill(~mask, -torch.inf)
    # log of the sum over all that rank at k or below; in a padded place it is -inf and left out
    below = hidden.flip(-1).logcumsumexp(-1).flip(-1)
    return torch.where(mask, below.masked_fill(~mask, 0.0) - scores, torch.zeros_like(scores)).sum(-1)


def unlikelihood(chosen_logprob: Tensor, rejected_logprob: Tensor, alpha: float) -> Tensor:
    """-log pi(y_w) + alpha log pi(y_l): the unlikelihood baseline of arXiv 2305.18290, section 6; unbounded below.

    Args:
        chosen_logprob: (pairs,) log-prob of the preferred completion, summed over its tokens.
        rejected_logprob: (pairs,) the same for the other completion.
        alpha: weight of the second term, at least 0.

    Returns:
        (pairs,) losses, nats.
    """
    return -chosen_logprob + alpha * rejected_logprob


# --- rewards ----------------------------------------------------------------------------------------------------------


def bradley_terry(chosen_score: Tensor, rejected_score: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l): equation 2 of arXiv 2305.18290.

    Args:
        chosen_score: (pairs,) score of the preferred completion.
        rejected_score: (pairs,) score of the other one.

    Returns:
        (pairs,) losses; ln 2 where both are equal.
    """
    return -F.logsigmoid(chosen_score - rejected_score)


def best_of_k(scores: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    """-log softmax(r)[chosen]: one choice among K, equation 1 of arXiv 1909.08593.

    Args:
        scores: (groups, K) scores.
        mask: (groups, K) bool, true for the completions that are there.
        chosen: (groups,) int64, index of the choice.

    Returns:
        (groups,) losses; log K where all are equal.
    """
    hidden = scores.masked_fill(~mask, -torch.inf)
    return hidden.logsumexp(-1) - scores.gather(-1, chosen[:, None])[:, 0]


def two_label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a two-label head.

    Args:
        logits: (rows, 2) scores of negative and positive.
        labels: (rows,) int64, 0 negative, 1 positive.

    Returns:
        (rows,) losses, nats.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


# --- likelihood -------------------------------------------------------------------------------------------------------


def negative_log_likelihood(token_logprobs: Tensor) -> Tensor:
    """Next-token loss of SFT.

    Args:
        token_logprobs: (rows, time) log-probs, 0 where nothing is predicted.

    Returns:
        (rows,) losses summed over tokens, nats.
    """
    return -token_logprobs.sum(-1)


# --- PPO (arXiv 1707.06347; rewards and constants of arXiv 1909.08593 and its code) -----------------------------------


def token_rewards(logprob: Tensor, ref_logprob: Tensor, mask: Tensor, score: Tensor, coefficient: float) -> Tensor:
    """r_t = -beta (log pi_old - log ref), and the score of the whole on the last token.

    Args:
        logprob: (episodes, time) log-probs of the completion's tokens under the policy that sampled them.
        ref_logprob: (episodes, time) the same under the reference.
        mask: (episodes, time) bool; a completion has at least one token, and its tokens come first.
        score: (episodes,) reward of the whole.
        coefficient: beta, nats to reward.

    Returns:
        (episodes, time) rewards; 0 outside the mask.
    """
    rewards = torch.where(mask, -coefficient * (logprob - ref_logprob), torch.zeros_like(logprob))
    last = mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, score[:, None].to(rewards.dtype))


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False, bessel: bool = False) -> Tensor:
    """(x - mean) / standard deviation over what the mask holds, plus the mean again if it is to be kept.

    Args:
        values: any shape.
        mask: the same shape, bool.
        keep_mean: as for rewards: `(x - mean)/std + mean`.
        bessel: the variance of n numbers divided by n - 1 (TRL 0.11.4) instead of n (lm-human-preferences).

    Returns:
        The same shape; 0 outside the mask.
    """
    count = mask.sum()
    mean = torch.where(mask, values, 0.0).sum() / count
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (count - 1 if bessel else count).clamp(min=1)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened + mean, 0.0) if keep_mean else whitened


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over one episode per row.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}, R = A + V; V is 0 after the last token.

    Args:
        rewards: (episodes, time).
        values: (episodes, time) V of the state before each token.
        mask: (episodes, time) bool; a completion's tokens come first.
        gamma: discount.
        lam: lambda.

    Returns:
        Advantages and returns, (episodes, time) each; 0 outside the mask.
    """
    inside = mask.to(rewards.dtype)
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] * inside[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * inside[:, t]
        advantages[:, t] = following
    return advantages, advantages + values * inside


def ppo_policy_loss(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - c, 1 + c)) with rho = pi / pi_old: equation 7 of arXiv 1707.06347, negated.

    Args:
        logprob: (episodes, time) log-probs under the policy.
        old_logprob: (episodes, time) under the policy that sampled.
        advantage: (episodes, time).
        clip: c, above 0.

    Returns:
        (episodes, time) losses of single tokens.
    """
    ratio = (logprob - old_logprob).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def ppo_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2, as in lm-human-preferences.

    Args:
        value: (episodes, time) V now.
        old_value: (episodes, time) V when the episodes were sampled.
        returns: (episodes, time).
        clip: c, above 0.

    Returns:
        (episodes, time) losses of single tokens.
    """
    clipped = torch.clamp(value, old_value - clip, old_value + clip)
    return 0.5 * torch.maximum((value - returns).square(), (clipped - returns).square())


def mean_kl(logprob: Tensor, ref_logprob: Tensor) -> float:
    """The mean sequence KL of samples of the policy, with less variance than the mean of log pi - log ref.

    At each token ref / pi - 1 has mean 0 under the policy, so its sum over a sequence is a control variate: c times it
    is taken off log pi - log ref, with c the regression coefficient over sequences. Near the reference c is -1, which
    gives k3 (Schulman, "Approximating KL divergence", 2020); far from it ref / pi has a heavy tail, and c is near 0.

    Args:
        logprob: (episodes, time) of sampled tokens under the policy, nats; 0 for padding.
        ref_logprob: (episodes, time) of the same tokens under the reference.

    Returns:
        Nats per sequence.
    """
    ratio = (logprob - ref_logprob).double()
    k1, control = ratio.sum(-1), torch.expm1(-ratio).sum(-1)
    spread = float((control - control.mean()).square().sum())
    slope = float(((control - control.mean()) * k1).sum()) / spread if spread > 0 else 0.0
    return float(k1.mean() - slope * control.mean())


def kl_error(kl: float, target: float) -> float:
    """What the adaptive controller sees: KL / target - 1, clipped to +-0.2 (arXiv 1909.08593, section 2.2)."""
    return min(max(kl / target - 1, -KL_ERROR_CLIP), KL_ERROR_CLIP)


def next_kl_coefficient(
    coefficient: float, kl: float, target: float, episodes: int, horizon: float, low: float, high: float
) -> float:
    """The adaptive controller of arXiv 1909.08593, section 2.2: beta (1 + clip(KL / target - 1, +-0.2) n / horizon).

    Args:
        coefficient: beta.
        kl: mean sequence KL of a batch, nats.
        target: what it should be, nats.
        episodes: n, size of the batch.
        horizon: episodes over which the error is worked off.
        low: floor of beta.
        high: ceiling of beta.

    Returns:
        Beta of the next batch.
    """
    return min(max(coefficient * (1 + kl_error(kl, target) * episodes / horizon), low), high)
