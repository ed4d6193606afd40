"""A batch of PPO's episodes as tensors, and the minibatches that are drawn from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from imdb_rlhf.algos.batches import share

# A minibatch is computed in up to so many pieces of like length, none smaller than so many episodes.
PIECES, PIECE = 4, 32


@dataclass(frozen=True)
class Rollout:
    """A batch of episodes, ready to be trained on; (episodes, tokens) tensors begin at the completion's first token.

    Attributes:
        ids: (episodes, time) int64, right-padded prompt + completion.
        starts: (episodes,) int64, where completions begin.
        lengths: (episodes,) int64, tokens of prompt + completion.
        mask: bool, which tokens there are.
        logprob: float32, under the policy that sampled.
        value: float32, V before each token.
        advantage: float32, whitened if that is done over the batch.
        returns: float32.
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
        """The same of some episodes."""
        return Rollout(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def trimmed(self) -> "Rollout":
        """The same without the columns that none of its episodes reaches."""
        time, tokens = int(self.lengths.max()), int(self.mask.sum(-1).max())
        widths = {"ids": time, "starts": None, "lengths": None}
        return Rollout(*(getattr(self, f.name)[..., : widths.get(f.name, tokens)] for f in fields(self)))

    def to(self, device: torch.device) -> "Rollout":
        """The same on another device."""
        return Rollout(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Minibatch:
    """The episodes of one optimizer step; losses are averaged over their tokens.

    Attributes:
        rollout: those episodes, advantages whitened.
        notes: numbers of the whole batch of episodes.
        first: whether nothing was trained on this batch yet, so that every ratio has to be 1.
        skipped: whether the step is left out (the policy has moved far enough).
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
        """This process's episodes in pieces of like length, which pad little, and whether they are the first."""
        if self.skipped:
            return []
        (mine,) = share(np.arange(len(self.rollout.ids)), rank, world, None)
        mine = mine[np.argsort(self.rollout.lengths[mine].numpy(), kind="stable")]
        size = min(limit or len(mine), max(PIECE, math.ceil(len(mine) / PIECES)))
        pieces = [torch.as_tensor(mine[at : at + size]) for at in range(0, len(mine), size)]
        return [(self.rollout.at(piece).trimmed(), self.first) for piece in pieces]


def aligned(values: Tensor, starts: Tensor, mask: Tensor) -> Tensor:
    """(rows, tokens) what stands at the completions' tokens in (rows, time) values; 0 outside the mask."""
    at = starts[:, None] + torch.arange(mask.shape[1], device=values.device)
    return values.gather(1, at.clamp(max=values.shape[1] - 1)) * mask


def padded(rows: Sequence[np.ndarray], width: int) -> Tensor:
    """(rows, width) float32, zeros where a row has ended."""
    table = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.float32))
    return table
