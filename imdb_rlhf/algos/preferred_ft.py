"""Preferred-FT, a baseline of arXiv 2305.18290, section 6: supervised fine-tuning on the winners of the pairs.

It trains on the same pairs as the other methods, so a completion counts as often as it wins. Each distinct winner is
scored once and weighted by its count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import share
from imdb_rlhf.algos.population import Population, Winners
from imdb_rlhf.algos.preferences import Completions, PreferenceMethod
from imdb_rlhf.config.algos import PreferredFTRun
from imdb_rlhf.losses import negative_log_likelihood
from imdb_rlhf.models.logprobs import Rows


@dataclass(frozen=True)
class WinnerPart:
    """The input of one forward pass.

    Attributes:
        rows: the distinct winners.
        ref_logprob: (winners,) float32 log-prob of each under the reference, nats.
        counts: (winners,) float32, how often each counts in the part.
        mean_tokens: mean number of tokens per example of the global batch.
    """

    rows: Rows
    ref_logprob: Tensor
    counts: Tensor
    mean_tokens: float


@dataclass(frozen=True)
class WinnerBatch:
    """A global batch of winners: (batch,) rows of the group table; losses are averaged over their tokens."""

    notes: ClassVar[Mapping[str, float]] = {}
    completions: Completions
    winners: np.ndarray

    @property
    def size(self) -> float:
        """Number of tokens; a completion that occurs n times counts n times."""
        return float(sum(len(self.completions.completion_ids[row]) for row in self.winners))

    def parts(self, rank: int, world: int, limit: int | None) -> list[WinnerPart]:
        """This process's winners in pieces, each with its distinct ones."""
        mean_tokens, parts = self.size / len(self.winners), []
        for piece in share(self.winners, rank, world, limit):
            rows, reference, indices = self.completions.take(np.asarray(piece))
            counts = torch.bincount(indices, minlength=len(reference)).float()
            parts.append(WinnerPart(rows, reference, counts, mean_tokens))
        return parts


class PreferredFT(PreferenceMethod[PreferredFTRun]):
    """Minimises the mean negative log-likelihood per token of the winners, at the temperature of sampling."""

    stage = "preferred_ft"
    title = "Preferred-FT"
    colours: ClassVar[Mapping[str, int]] = {"Preferred-FT": 5}

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the winners' own distribution: likelihood is largest there; best-of-2 for deterministic labels."""
        return Winners.of(config["pairs"])

    def batch(self, chosen: np.ndarray) -> WinnerBatch:
        """The winners of these (batch,) pairs."""
        return WinnerBatch(self.completions, self.drawn.rows[chosen, 0])

    def loss(self, module: nn.Module, part: WinnerPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood of a part, nats; the log-ratio is a mean over examples, nats per sequence."""
        return weighted_likelihood(module, part)


def weighted_likelihood(module: nn.Module, part: WinnerPart) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed negative log-likelihood of a part, each completion as often as it counts, and the mean log-ratio."""
    device = next(module.parameters()).device
    rows, counts = part.rows.to(device), part.counts.to(device)
    losses = negative_log_likelihood(module(rows.ids, rows.starts, rows.lengths))
    ratio = -losses.detach() - part.ref_logprob.to(device)
    # the loop divides by tokens; multiplied by the mean tokens per example, the metric is a mean over examples
    return (counts * losses).sum(), {"train/chosen_log_ratio": (counts * ratio).sum() * part.mean_tokens}
