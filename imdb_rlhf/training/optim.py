"""Optimizers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from imdb_rlhf.config.optim import AdamWConfig, OptimConfig, RMSpropConfig, Schedule

# The squares of this many numbers are summed in float32, and such sums in float64.
NORM_PART = 1 << 20


def make(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the configured optimizer over the parameters that require gradients.

    Raises:
        TypeError: the configuration is of an unknown optimizer.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if isinstance(config, AdamWConfig):
        # no weight decay of norms and biases
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if isinstance(config, RMSpropConfig):
        return torch.optim.RMSprop(trained, lr=config.lr, alpha=config.alpha, eps=config.eps, foreach=True)
    raise TypeError(f"no optimizer for {type(config).__name__}")


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale all gradients in place so that their common 2-norm is at most `limit`; None leaves them as they are.

    Returns:
        The norm before scaling.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients and gradients[0].device.type != "cpu":
        norm = float(nn.utils.get_total_norm(gradients))
    else:
        norm = _norm(gradients)
    if limit is not None and norm + 1e-6 > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def _norm(gradients: list[Tensor]) -> float:
    """The common 2-norm, on a CPU."""
    # a dot product reads a gradient once, at the memory's speed; float32 within parts is accurate, float64 between them
    parts = [part for gradient in gradients for part in gradient.flatten().split(NORM_PART)]
    squares = torch.stack([torch.dot(part, part) for part in parts]) if parts else torch.zeros(1)
    return float(squares.double().sum().sqrt())


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate of a step.

    Linear warm-up from 0 as in the DPO authors' code, (step + 1) / (warm-up + 1), then the schedule.

    Args:
        config: peak, warm-up and schedule.
        step: 0 for the first.
        total: number of steps.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == Schedule.linear:
        return config.lr * (1 - done)
    if config.schedule == Schedule.cosine:
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr
