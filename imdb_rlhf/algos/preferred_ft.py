"""Preferred-FT, a baseline of arXiv 2305.18290, section 6: supervised fine-tuning on the winners of the pairs.

The pairs are those of the other methods, so a completion counts as often as it wins. Distinct winners are scored once
and weighted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import share
from imdb_rlhf.algos.preferences import Completions, PreferenceMethod
from imdb_rlhf.config.algos import PreferredFTRun
from imdb_rlhf.losses import negative_log_likelihood
from imdb_rlhf.models.logprobs import Rows


@dataclass(frozen=True)
class WinnerPart:
    """What one forward pass sees.

    Attributes:
        rows: the distinct winners.
        ref_logprob: (winners,) float32 log-prob of each under the reference, nats.
        counts: (winners,) float32, how often each stands in the part.
        mean_tokens: tokens of an average example of the global batch.
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
        """Number of tokens, those of a completion counted as often as it stands here."""
        return float(sum(len(self.completions.completions[row]) for row in self.winners))

    def parts(self, rank: int, world: int, limit: int | None) -> list[WinnerPart]:
        """This process's winners, the distinct ones of each piece."""
        mean_tokens, parts = self.size / len(self.winners), []
        for piece in share(self.winners, rank, world, limit):
            rows, reference, indices = self.completions.take(np.asarray(piece))
            counts = torch.bincount(indices, minlength=len(reference)).float()
            parts.append(WinnerPart(rows, reference, counts, mean_tokens))
        return parts


class PreferredFT(PreferenceMethod[PreferredFTRun]):
    """Minimises the mean negative log-likelihood of a winner's token, at the temperature of sampling."""

    stage = "preferred_ft"
    title = "Preferred-FT"
    colours: ClassVar[Mapping[str, int]] = {"Preferred-FT": 5}

    def batch(self, chosen: np.ndarray) -> WinnerBatch:
        """The winners of these (batch,) pairs."""
        return WinnerBatch(self.completions, self.drawn.rows[chosen, 0])

    def loss(self, module: nn.Module, part: WinnerPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood of a part; the log-ratio is a mean over examples, nats a sequence."""
        device = next(module.parameters()).device
        rows, counts = part.rows.to(device), part.counts.to(device)
        losses = negative_log_likelihood(module(rows.ids, rows.starts, rows.lengths))
        ratio = -losses.detach() - part.ref_logprob.to(device)
        # the loop divides by tokens; times the tokens of an example this is a mean over examples
        return (counts * losses).sum(), {"train/chosen_log_ratio": (counts * ratio).sum() * part.mean_tokens}
