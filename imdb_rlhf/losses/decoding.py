"""Objectives of value-guided sampling, and of its distillation into one model."""

import torch.nn.functional as F
from torch import Tensor


def binned_cross_entropy(logits: Tensor, bins: Tensor) -> Tensor:
    """-log p(bin of the final reward | prefix, next token): the loss of a distributional action value.

    Its optimum is the law of the final reward under the policy that the completions were sampled from.

    Args:
        logits: (tokens, bins) of every bin at every token of a completion.
        bins: (tokens,) int64, the bin of the completion's final reward.

    Returns:
        (tokens,) losses, nats.
    """
    return F.cross_entropy(logits.float(), bins, reduction="none")


def forward_kl(teacher_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """KL(teacher || student) of one step, over the whole vocabulary (arXiv 1503.02531; per token, arXiv 1606.07947).

    Args:
        teacher_logprobs: (tokens, vocabulary) log-probs of the teacher.
        logprobs: (tokens, vocabulary) those of the student.

    Returns:
        (tokens,) divergences, nats.
    """
    return (teacher_logprobs.exp() * (teacher_logprobs - logprobs)).sum(-1)


def reverse_kl(teacher_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """KL(student || teacher) of one step, over the whole vocabulary (arXiv 2306.13649); arguments as in `forward_kl`.

    Returns:
        (tokens,) divergences, nats.
    """
    return (logprobs.exp() * (logprobs - teacher_logprobs)).sum(-1)
