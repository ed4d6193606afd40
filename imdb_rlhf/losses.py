"""Every objective as a pure function of tensors: per-example losses out, no reduction, no config, no model."""

import torch.nn.functional as F
from torch import Tensor


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


def dpo_sigmoid(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta h): equation 7 of arXiv 2305.18290.

    Args:
        margin: (pairs,) `log_ratio_margin`.
        beta: strength of the KL penalty, above 0.

    Returns:
        (pairs,) losses; ln 2 where the margin is 0.
    """
    return -F.logsigmoid(beta * margin)


def negative_log_likelihood(token_logprobs: Tensor) -> Tensor:
    """Next-token loss of SFT.

    Args:
        token_logprobs: (rows, time) log-probs, 0 where nothing is predicted.

    Returns:
        (rows,) losses summed over tokens, nats.
    """
    return -token_logprobs.sum(-1)


def two_label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a two-label head.

    Args:
        logits: (rows, 2) scores of negative and positive.
        labels: (rows,) int64, 0 negative, 1 positive.

    Returns:
        (rows,) losses, nats.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")
