"""Objectives of methods that learn from whole completions of their own: REINFORCE, RLOO, GRPO."""

from torch import Tensor

GROUP_EPSILON = 1e-4  # added to a group's standard deviation, as in TRL 1.16


def penalised_reward(score: Tensor, logprob: Tensor, ref_logprob: Tensor, beta: float) -> Tensor:
    """R = r - beta [log pi_old(y) - log ref(y)]: the reward with the KL in it (arXiv 2402.14740, section 2).

    Args:
        score: (episodes,) reward of the whole.
        logprob: (episodes,) log-prob of the completion under the policy that sampled it, summed over its tokens.
        ref_logprob: (episodes,) the same under the reference.
        beta: reward per nat.

    Returns:
        (episodes,) rewards. At the optimum reference * exp(r / beta) / Z all completions of a prompt have the same.
    """
    return score - beta * (logprob - ref_logprob)


def reinforce(logprob: Tensor, advantage: Tensor) -> Tensor:
    """-A log pi(y): its gradient is that of -E[A] where y was sampled from pi (Williams 1992).

    Args:
        logprob: (episodes,) log-prob of the completion, summed over its tokens.
        advantage: (episodes,) reward minus a baseline that does not depend on the completion.

    Returns:
        (episodes,) losses; their value means nothing, their gradient does.
    """
    return -advantage * logprob


def leave_one_out_advantage(reward: Tensor) -> Tensor:
    """R_i minus the mean of the group's other rewards: RLOO's advantage, arXiv 2402.14740, section 2.

    Args:
        reward: (groups, K) rewards of the K completions of a prompt, K at least 2.

    Returns:
        (groups, K) advantages; those of a group sum to 0.
    """
    others = (reward.sum(-1, keepdim=True) - reward) / (reward.shape[-1] - 1)
    return reward - others


def group_advantage(reward: Tensor, scale: bool) -> Tensor:
    """(R_i - mean) / standard deviation of the group: GRPO's advantage, arXiv 2402.03300, section 4.1.2.

    Args:
        reward: (groups, K) rewards of the K completions of a prompt, K at least 2.
        scale: whether to divide; not doing it is Dr. GRPO's (arXiv 2503.20783), (K - 1) / K of RLOO's advantage.

    Returns:
        (groups, K) advantages; 0 where all rewards of a group are equal. The variance has Bessel's correction.
    """
    centred = reward - reward.mean(-1, keepdim=True)
    return centred / (reward.std(-1, keepdim=True) + GROUP_EPSILON) if scale else centred


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """The k3 estimator ref / pi - log(ref / pi) - 1: equation 4 of arXiv 2402.03300.

    Its value is unbiased under samples of pi. Its gradient is not that of KL(pi || ref): averaged over samples of pi it
    is, token by token, the gradient of KL(ref || pi).

    Args:
        logprob: any shape, log-probs under the policy.
        ref_logprob: the same shape, under the reference.

    Returns:
        The same shape; never below 0.
    """
    log_ratio = ref_logprob - logprob
    return log_ratio.exp() - log_ratio - 1
