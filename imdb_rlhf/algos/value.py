"""The action value that guides sampling, learned from completions of the reference and their final rewards alone.

At every token of a completion, the head is asked for the bin of the completion's final reward. The optimum of that loss
is the law of the reward given prefix and token, under the reference; every beta's value follows from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.errors import RunError
from imdb_rlhf.losses.decoding import binned_cross_entropy
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.value import ActionValue
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.loop import Plain


def centres_of(rewards: np.ndarray, bins: int) -> np.ndarray:
    """(bins,) float64 centres of evenly spaced bins over the range of (n,) rewards.

    Raises:
        RunError: all rewards are equal.
    """
    low, high = float(rewards.min()), float(rewards.max())
    if not high > low:
        raise RunError(
            "value: all completions have the same reward, so there is nothing to foresee; use another reward"
        )
    return low + (high - low) * (np.arange(bins) + 0.5) / bins


def bins_of(rewards: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) int64 the bin of each of (n,) rewards; one beyond the outer bins counts to them."""
    width = centres[1] - centres[0]
    places = np.floor((rewards - (centres[0] - width / 2)) / width)
    return places.clip(0, len(centres) - 1).astype(np.int64)


@dataclass(frozen=True)
class ValuePart:
    """Completions and the bins of their final rewards: the input of one forward pass; bins are (rows,) int64."""

    rows: Rows
    bins: Tensor


@dataclass(frozen=True)
class Rewarded:
    """Completions with the bins of their final rewards; bins are (completions,) int64."""

    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    bins: np.ndarray

    def take(self, chosen: np.ndarray) -> ValuePart:
        """The completions of (n,) indices."""
        rows = Rows.of([self.prompt_ids[i] for i in chosen], [self.completion_ids[i] for i in chosen])
        return ValuePart(rows, torch.as_tensor(self.bins[chosen]))

    def tokens(self, chosen: np.ndarray) -> int:
        """The number of completion tokens of (n,) indices."""
        return sum(len(self.completion_ids[i]) for i in chosen)


@dataclass(frozen=True)
class ValueBatch:
    """A global batch of completions; losses are averaged over their tokens."""

    notes: ClassVar[Mapping[str, float]] = {}
    data: Rewarded
    chosen: np.ndarray

    @property
    def size(self) -> float:
        """Number of completion tokens."""
        return float(self.data.tokens(self.chosen))

    def parts(self, rank: int, world: int, limit: int | None) -> list[ValuePart]:
        """This process's completions, right-padded."""
        return [self.data.take(piece) for piece in share(self.chosen, rank, world, limit)]


class ValueLearning(Plain):
    """Minimises the cross-entropy of the final reward's bin at every token of the completions."""

    stage = "value"

    def __init__(self, network: ActionValue, data: Rewarded, batch_size: int, epochs: float, seed: int) -> None:
        """Lay out the training.

        Args:
            network: what is trained.
            data: completions of the reference.
            batch_size: completions per step.
            epochs: passes over them.
            seed: of their order.
        """
        self.module: nn.Module = network.eval()  # eval: no dropout
        self.data = data
        count = len(data.bins)
        self.steps = steps_for(count, batch_size, epochs)
        self.stream = Stream(count, batch_size, lambda epoch: generator(seed, self.stage, epoch).permutation(count))

    def batches(self, first: int) -> Iterator[ValueBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            yield ValueBatch(self.data, self.stream.at(step))

    def loss(self, module: nn.Module, part: ValuePart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed cross-entropy of a part, nats."""
        device = next(module.parameters()).device
        rows = part.rows.to(device)
        logits = module(rows.ids, rows.starts, rows.lengths)
        tokens = rows.lengths - rows.starts
        return binned_cross_entropy(logits, part.bins.to(device).repeat_interleave(tokens)).sum(), {}


@torch.no_grad()
def held_out_loss(network: ActionValue, data: Rewarded, batch_size: int) -> tuple[float, float]:
    """How well a value foresees the rewards of completions that it was not trained on, in the caller's precision.

    Returns:
        The mean cross-entropy per token in nats, and that of one law for all tokens: the completions' own histogram.
    """
    algorithm = ValueLearning(network, data, batch_size, 1.0, 0)
    total, tokens = 0.0, 0
    for at in range(0, len(data.bins), batch_size):
        chosen = np.arange(at, min(at + batch_size, len(data.bins)))
        total += float(algorithm.loss(network, data.take(chosen))[0])
        tokens += data.tokens(chosen)
    weights = np.array([len(ids) for ids in data.completion_ids], dtype=float)
    law = np.bincount(data.bins, weights=weights) / weights.sum()
    return total / tokens, float(-(law[law > 0] * np.log(law[law > 0])).sum())
