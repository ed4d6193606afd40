"""Supervised fine-tuning (SFT): next-token prediction on reviews; the result is the reference policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.config.stages import SFTConfig
from imdb_rlhf.losses import negative_log_likelihood
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.loop import Plain


@dataclass(frozen=True)
class RowsBatch:
    """A global batch of token rows; every token but the first is predicted.

    Attributes:
        rows: all rows of the data, (tokens,) int32 each.
        chosen: (batch,) indices of the rows of this batch.
        size: number of predicted tokens, by which the loop divides the summed loss.
    """

    notes: ClassVar[Mapping[str, float]] = {}
    rows: Sequence[np.ndarray]
    chosen: np.ndarray
    size: float

    def parts(self, rank: int, world: int, limit: int | None) -> list[Rows]:
        """This process's rows, right-padded."""
        return [
            Rows.of([self.rows[i][:1].tolist() for i in piece], [self.rows[i][1:].tolist() for i in piece])
            for piece in share(self.chosen, rank, world, limit)
        ]


class SFT(Plain):
    """Minimises the mean negative log-likelihood per token, in nats (temperature 1)."""

    stage = "sft"

    def __init__(self, policy: Policy, rows: Sequence[np.ndarray], config: SFTConfig) -> None:
        policy.lm.requires_grad_(True)
        self.module: nn.Module = LogProbs(policy.lm).eval()  # eval: no dropout
        self.rows = rows
        self.steps = steps_for(len(rows), config.batch_size, config.epochs)
        self.stream = Stream(
            len(rows),
            config.batch_size,
            lambda epoch: generator(config.seed, "sft", epoch).permutation(len(rows)),
        )

    def batches(self, first: int) -> Iterator[RowsBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            yield RowsBatch(self.rows, chosen, float(sum(len(self.rows[i]) - 1 for i in chosen)))

    def loss(self, module: nn.Module, part: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood of a part."""
        rows = part.to(next(module.parameters()).device)
        return negative_log_likelihood(module(rows.ids, rows.starts, rows.lengths)).sum(), {}


@torch.no_grad()
def held_out_loss(policy: Policy, rows: Sequence[np.ndarray], batch_size: int) -> float:
    """Mean negative log-likelihood per token, in nats and float32, of rows that were not trained on."""
    total, tokens = 0.0, 0
    module = LogProbs(policy.lm)
    for at in range(0, len(rows), batch_size):
        batch = RowsBatch(rows, np.arange(at, min(at + batch_size, len(rows))), 1.0)
        for part in batch.parts(0, 1, None):
            part = part.to(policy.lm.device)
            total += float(negative_log_likelihood(cast(Tensor, module(part.ids, part.starts, part.lengths))).sum())
            tokens += int((part.lengths - part.starts).sum())
    return total / tokens
