"""A batch of PPO's episodes as tensors, and the minibatches that are drawn from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from imdb_rlhf.algos.batches import share
from imdb_rlhf.losses import kl_error

# A process computes its share of a minibatch in at most 4 pieces of similar length, of at least 32 episodes each.
MAX_PIECES, MIN_EPISODES = 4, 32


@dataclass(frozen=True)
class Rollout:
    """A batch of episodes, ready for training; the (episodes, tokens) tensors begin at the completion's first token.

    Attributes:
        ids: (episodes, time) int64, right-padded prompt + completion.
        starts: (episodes,) int64, position of the completion's first token.
        lengths: (episodes,) int64, tokens of prompt + completion.
        mask: (episodes, tokens) bool, true for completion tokens, false for padding.
        logprob: (episodes, tokens) float32, log-prob under the policy that sampled, nats.
        value: (episodes, tokens) float32, value of the state before each token.
        advantage: (episodes, tokens) float32, already whitened if whitening is over the batch.
        returns: (episodes, tokens) float32.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor
    mask: Tensor
    logprob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor

    def at(self, chosen: Tensor) -> "Rollout":
        """The rollout of some of its episodes."""
        return Rollout(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def trimmed(self) -> "Rollout":
        """The same rollout without the columns that none of its episodes reaches."""
        time, tokens = int(self.lengths.max()), int(self.mask.sum(-1).max())
        widths = {"ids": time, "starts": None, "lengths": None}
        return Rollout(*(getattr(self, f.name)[..., : widths.get(f.name, tokens)] for f in fields(self)))

    def to(self, device: torch.device) -> "Rollout":
        """The same rollout on another device."""
        return Rollout(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Minibatch:
    """The episodes of one optimizer step; losses are averaged over their tokens.

    Attributes:
        rollout: those episodes, advantages whitened.
        notes: metrics of the whole batch of episodes.
        first: whether this is the first step on the batch, where every ratio must be 1.
        skipped: whether early stopping skips the step.
    """

    rollout: Rollout
    notes: Mapping[str, float]
    first: bool
    skipped: bool

    @property
    def size(self) -> float:
        """Number of completion tokens."""
        return float(self.rollout.mask.sum())

    def parts(self, rank: int, world: int, limit: int | None) -> Sequence[tuple[Rollout, bool]]:
        """This process's episodes, sorted by length into pieces that pad little; with each piece `first`."""
        if self.skipped:
            return []
        (local,) = share(np.arange(len(self.rollout.ids)), rank, world, None)
        local = local[np.argsort(self.rollout.lengths[local].numpy(), kind="stable")]
        size = min(limit or len(local), max(MIN_EPISODES, math.ceil(len(local) / MAX_PIECES)))
        pieces = [torch.as_tensor(local[at : at + size]) for at in range(0, len(local), size)]
        return [(self.rollout.at(piece).trimmed(), self.first) for piece in pieces]


def aligned(values: Tensor, starts: Tensor, mask: Tensor) -> Tensor:
    """(rows, tokens) the (rows, time) values shifted to begin at each completion; 0 outside the mask."""
    at = starts[:, None] + torch.arange(mask.shape[1], device=values.device)
    return values.gather(1, at.clamp(max=values.shape[1] - 1)) * mask


def padded(rows: Sequence[np.ndarray], width: int) -> Tensor:
    """(rows, width) float32 rows of different lengths, zeros after the end of each."""
    table = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.float32))
    return table


def batch_metrics(
    rollout: Rollout,
    score: Tensor,
    ended: Tensor,
    kl: float,
    coefficient: float,
    target_kl: float | None,
    episodes: int,
) -> dict[str, float]:
    """The metrics of a batch of episodes, `ppo/...` of docs/metrics.md.

    Args:
        rollout: the whole batch.
        score: (episodes,) the rewards that are optimised.
        ended: (episodes,) bool: sampled an EOS.
        kl: mean k1 to the reference, nats per sequence.
        coefficient: beta of the batch, reward per nat.
        target_kl: nats per sequence; None for a fixed beta.
        episodes: sampled so far, this batch included.
    """
    mask = rollout.mask
    returns, value = rollout.returns[mask], rollout.value[mask]
    residual, spread = float((returns - value).var(correction=0)), float(returns.var(correction=0))
    metrics = {
        "ppo/score": float(score.mean()),
        "ppo/score_std": float(score.std(correction=0)),
        "ppo/kl": kl,
        "ppo/kl_coefficient": coefficient,
        "ppo/kl_penalty": coefficient * kl,
        "ppo/objective": float(score.mean()) - coefficient * kl,
        "ppo/entropy": -float(rollout.logprob[mask].mean()),
        "ppo/length": float(mask.sum(-1).float().mean()),
        "ppo/eos_rate": float(ended.float().mean()),
        "ppo/value": float(value.mean()),
        "ppo/return": float(returns.mean()),
        "ppo/return_std": math.sqrt(spread),
        "ppo/explained_variance": 1 - residual / spread if spread > 0 else 0.0,
        "ppo/episodes": float(episodes),
    }
    if coefficient:
        metrics["ppo/log_kl_coefficient"] = math.log(coefficient)
    if target_kl is not None:
        metrics |= {"ppo/kl_target": target_kl, "ppo/kl_error": kl_error(kl, target_kl)}
    return metrics
