"""Which examples a step trains on: a pure function of (order of each epoch, step)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np


def steps_for(examples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps for so many passes, at least 1; the next pass fills up a last step that would be too short."""
    return max(1, int(np.ceil(epochs * examples / batch_size - 1e-9)))


class Stream:
    """An endless sequence of epochs, read by position: any step can be had without those before it.

    Args:
        examples: number of examples in an epoch.
        batch_size: number of examples per step.
        order: epoch -> (examples,) permutation.
    """

    def __init__(self, examples: int, batch_size: int, order: Callable[[int], np.ndarray]) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.order = lru_cache(maxsize=2)(order)

    def at(self, step: int) -> np.ndarray:
        """(batch,) indices of the global batch of a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = positions // self.examples, positions % self.examples
        return np.array([self.order(int(e))[o] for e, o in zip(epochs, offsets, strict=True)], dtype=np.int64)


def share(items: np.ndarray, rank: int, world: int, limit: int | None) -> Sequence[np.ndarray]:
    """The contiguous slice of a global batch that one process computes, in pieces of at most `limit`.

    Args:
        items: (batch, ...) indices; batch is a multiple of `world` (the configuration is checked for that).
        rank: which process.
        world: number of processes.
        limit: examples per forward pass, None for all.
    """
    size = len(items) // world
    local = items[rank * size : (rank + 1) * size]
    return [local[at : at + (limit or size)] for at in range(0, size, limit or size)]
