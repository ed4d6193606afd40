"""Objectives on a fixed set of preferences beside DPO's own: f-DPO's scores, EXO, KTO, SimPO, CPO, ORPO."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Nats above which exp is continued by its tangent: its square still fits into float32 when gradients are clipped.
LINEAR_FROM = 20.0
# A mean log-prob per token nearer to 0 counts as this: odds are infinite at 0.
LARGEST_LOGPROB = -1e-6

# --- f-DPO ------------------------------------------------------------------------------------------------------------


def alpha_divergence_score(log_ratio: Tensor, alpha: float) -> Tensor:
    """f'(u) = (1 - u^-alpha) / alpha at u = pi / ref: the alpha-divergence of f-DPO, arXiv 2309.16240, table 1.

    It takes the place of DPO's log u, which is the limit at alpha = 0 (reverse KL); alpha = 1 is forward KL,
    f'(u) = 1 - 1/u. With preferences of the Bradley-Terry model beta f'(pi / ref) = r - c, c normalising.

    Args:
        log_ratio: (completions,) log u, nats; where alpha log u is below -20 the tangent at -20 goes on, so that
            gradients fit into float32.
        alpha: above 0, at most 1.

    Returns:
        (completions,) scores; 0 where the ratio is 1.
    """
    exponent = -alpha * log_ratio
    tangent = math.exp(LINEAR_FROM) * F.relu(exponent - LINEAR_FROM)
    return -(torch.expm1(exponent.clamp(max=LINEAR_FROM)) + tangent) / alpha


def js_score(log_ratio: Tensor) -> Tensor:
    """f'(u) = log(2u / (1 + u)) at u = pi / ref: Jensen-Shannon's divergence in f-DPO, arXiv 2309.16240, table 1.

    Args:
        log_ratio: (completions,) log u, nats.

    Returns:
        (completions,) scores; 0 where the ratio is 1, at most ln 2.
    """
    return math.log(2) + F.logsigmoid(log_ratio)


# --- with a reference -------------------------------------------------------------------------------------------------


def exo(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """KL(q || p) with q = (sigmoid(beta h), sigmoid(-beta h)), p = (1 - e, e): EXO-pref, arXiv 2402.00856, equation 16.

    DPO's loss is the KL the other way round, up to a constant. Over labels that the winner has with probability w, it
    is least where beta h = (2 w - 1) log((1 - e) / e).

    Args:
        margin: (pairs,) `log_ratio_margin`.
        beta: scale of the margin, above 0.
        label_smoothing: e in (0, 1/2).

    Returns:
        (pairs,) losses, at least 0; 0 where beta h = log((1 - e) / e).
    """
    right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return right.exp() * (right - math.log1p(-label_smoothing)) + wrong.exp() * (wrong - math.log(label_smoothing))


def kto(log_ratio: Tensor, desirable: Tensor, kl: float, beta: float, lambda_d: float, lambda_u: float) -> Tensor:
    """lambda_D (1 - sigmoid(beta (s - z))) or lambda_U (1 - sigmoid(beta (z - s))): KTO, arXiv 2402.01306, section 4.1.

    Args:
        log_ratio: (examples,) s = log pi(y|x) - log ref(y|x), nats.
        desirable: (examples,) bool; the others are undesirable.
        kl: z, the reference point, nats; no gradient flows through it.
        beta: how fast the value saturates, above 0.
        lambda_d: weight of a desirable example.
        lambda_u: weight of an undesirable one.

    Returns:
        (examples,) losses, between 0 and the weight.
    """
    gain = beta * (log_ratio - kl)
    return torch.where(desirable, lambda_d * torch.sigmoid(-gain), lambda_u * torch.sigmoid(gain))


# --- without a reference ----------------------------------------------------------------------------------------------


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma_beta_ratio: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma), gamma = ratio * beta: the objective of arXiv 2405.14734.

    Args:
        chosen: (pairs,) mean log-prob per token of the preferred completion, nats.
        rejected: (pairs,) the same for the other completion.
        beta: scale of the difference, above 0.
        gamma_beta_ratio: the difference that is aimed at, nats per token.

    Returns:
        (pairs,) losses.
    """
    return -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))


def cpo(difference: Tensor, chosen: Tensor, beta: float, nll_weight: float) -> Tensor:
    """-log sigmoid(beta d) - weight * chosen: contrastive preference optimization, arXiv 2401.08417.

    The paper sums the likelihood over tokens; its authors' code and TRL take the mean, as here.

    Args:
        difference: (pairs,) d = log pi(y_w) - log pi(y_l), each summed over its tokens, nats.
        chosen: (pairs,) mean log-prob per token of the preferred completion, nats.
        beta: scale of the difference, above 0.
        nll_weight: weight of the likelihood, at least 0.

    Returns:
        (pairs,) losses.
    """
    return -F.logsigmoid(beta * difference) - nll_weight * chosen


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; a log p above -1e-6 counts as that.

    Args:
        logprob: any shape, at most 0.

    Returns:
        The same shape.
    """
    logprob = logprob.clamp(max=LARGEST_LOGPROB)
    return logprob - torch.log(-torch.expm1(logprob))


def orpo(chosen: Tensor, rejected: Tensor, lam: float) -> Tensor:
    """-chosen - lambda log sigmoid(log odds(chosen) - log odds(rejected)): equations 6 and 7 of arXiv 2403.07691.

    Args:
        chosen: (pairs,) log-prob per token of the preferred completion, nats; odds are of the geometric mean of its
            tokens' probabilities (equation 2).
        rejected: (pairs,) the same for the other completion.
        lam: lambda, weight of the odds ratio, at least 0.

    Returns:
        (pairs,) losses.
    """
    return -chosen - lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
