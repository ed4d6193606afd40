"""A batch of episodes as tensors, and the minibatches that are drawn from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from imdb_rlhf.algos.batches import share
from imdb_rlhf.losses import kl_error

# A process computes its share of a minibatch in at most 4 pieces of similar length, of at least 32 episodes each.
MAX_PIECES, MIN_EPISODES = 4, 32


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes; the (episodes, tokens) tensors begin at the completion's first token.

    Attributes:
        ids: (episodes, time) int64, right-padded prompt + completion.
        starts: (episodes,) int64, position of the completion's first token.
        lengths: (episodes,) int64, tokens of prompt + completion.
        mask: (episodes, tokens) bool, true for completion tokens, false for padding.
        logprob: (episodes, tokens) float32, log-prob under the policy that sampled, nats.
    """

    WHOLE: ClassVar[frozenset[str]] = frozenset()  # tables whose columns are no tokens
    ids: Tensor
    starts: Tensor
    lengths: Tensor
    mask: Tensor
    logprob: Tensor

    def at(self, chosen: Tensor) -> Self:
        """The rollout of some of its episodes."""
        return type(self)(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def trimmed(self) -> Self:
        """The same rollout without the columns that none of its episodes reaches."""
        time, tokens = int(self.lengths.max()), int(self.mask.sum(-1).max())

        def cut(name: str) -> Tensor:
            table: Tensor = getattr(self, name)
            if table.dim() == 1 or name in self.WHOLE:
                return table
            return table[:, : time if name == "ids" else tokens]

        return type(self)(*(cut(f.name) for f in fields(self)))

    def to(self, device: torch.device) -> Self:
        """The same rollout on another device."""
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Rollout(Episodes):
    """A batch of PPO's episodes, ready for training.

    Attributes:
        value: (episodes, tokens) float32, value of the state before each token.
        advantage: (episodes, tokens) float32, already whitened if whitening is over the batch.
        returns: (episodes, tokens) float32.
    """

    value: Tensor
    advantage: Tensor
    returns: Tensor


E = TypeVar("E", bound=Episodes)


@dataclass(frozen=True)
class Minibatch(Generic[E]):
    """The episodes of one optimizer step; losses are averaged over their tokens.

    Attributes:
        rollout: those episodes, advantages whitened.
        notes: metrics of the whole batch of episodes.
        first: whether this is the first step on the batch, where every ratio must be 1.
        skipped: whether early stopping skips the step.
    """

    rollout: E
    notes: Mapping[str, float]
    first: bool
    skipped: bool

    @property
    def group(self) -> int:
        """Neighbouring episodes that stay in one piece."""
        return 1

    @property
    def size(self) -> float:
        """Number of completion tokens."""
        return float(self.rollout.mask.sum())

    def parts(self, rank: int, world: int, limit: int | None) -> Sequence[tuple[E, bool]]:
        """This process's episodes, sorted by length into pieces that pad little; with each piece `first`."""
        if self.skipped:
            return []
        lengths = self.rollout.lengths.numpy().reshape(-1, self.group).max(-1)
        (local,) = share(np.arange(len(lengths)), rank, world, None)
        local = local[np.argsort(lengths[local], kind="stable")]
        least, most = math.ceil(MIN_EPISODES / self.group), max(1, (limit or len(self.rollout.ids)) // self.group)
        size = min(most, max(least, math.ceil(len(local) / MAX_PIECES)))
        pieces = [local[at : at + size, None] * self.group + np.arange(self.group) for at in range(0, len(local), size)]
        return [(self.rollout.at(torch.as_tensor(piece.ravel())).trimmed(), self.first) for piece in pieces]


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


def episode_metrics(
    start: str, episodes: Episodes, score: Tensor, ended: Tensor, kl: float, coefficient: float
) -> dict[str, float]:
    """What every online method says of a batch of episodes, under keys that begin with `start`; see docs/metrics.md.

    Args:
        start: `ppo/` or `rollout/`.
        episodes: the whole batch.
        score: (episodes,) the rewards that are optimised.
        ended: (episodes,) bool: sampled an EOS.
        kl: mean k1 to the reference, nats per sequence.
        coefficient: beta of the batch, reward per nat.
    """
    values = {
        "score": float(score.mean()),
        "score_std": float(score.std(correction=0)),
        "kl": kl,
        "kl_coefficient": coefficient,
        "kl_penalty": coefficient * kl,
        "objective": float(score.mean()) - coefficient * kl,
        "entropy": -float(episodes.logprob[episodes.mask].mean()),
        "length": float(episodes.mask.sum(-1).float().mean()),
        "eos_rate": float(ended.float().mean()),
    }
    return {f"{start}{key}": value for key, value in values.items()}


def batch_metrics(
    rollout: Rollout,
    score: Tensor,
    ended: Tensor,
    kl: float,
    coefficient: float,
    target_kl: float | None,
    episodes: int,
) -> dict[str, float]:
    """The metrics of a batch of PPO's episodes, `ppo/...` of docs/metrics.md.

    Args:
        rollout: the whole batch.
        score: (episodes,) the rewards that are optimised.
        ended: (episodes,) bool: sampled an EOS.
        kl: mean k1 to the reference, nats per sequence.
        coefficient: beta of the batch, reward per nat.
        target_kl: nats per sequence; None for a fixed beta.
        episodes: sampled so far, this batch included.
    """
    returns, value = rollout.returns[rollout.mask], rollout.value[rollout.mask]
    residual, spread = float((returns - value).var(correction=0)), float(returns.var(correction=0))
    metrics = episode_metrics("ppo/", rollout, score, ended, kl, coefficient) | {
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
