"""Direct preference optimization (arXiv 2305.18290).

A batch is distinct completions and the indices of its pairs: each completion of a group of 4 stands in 3 of its 6 pairs
and is scored once. The reference's log-probs are stored beside the completions, one number each, for every beta.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.config import DPORun
from imdb_rlhf.data.groups import Pairs, draw_pairs, flip, read, shuffled
from imdb_rlhf.losses import dpo_sigmoid, log_ratio_margin
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy


@dataclass(frozen=True)
class PairPart:
    """What one forward pass sees.

    Attributes:
        rows: the distinct completions.
        ref_logprob: (completions,) float32 log-prob of each under the reference.
        pairs: (pairs, 2) int64 indices into the completions, winner and loser.
    """

    rows: Rows
    ref_logprob: Tensor
    pairs: Tensor


class Completions:
    """The completions of all groups as token rows, with the reference's log-probs."""

    def __init__(self, groups: pd.DataFrame) -> None:
        self.prompts = [list(map(int, ids)) for ids in groups["prompt_ids"]]
        self.completions = [list(map(int, ids)) for ids in groups["completion_ids"]]
        self.ref_logprob = groups["ref_logprob"].to_numpy()

    def part(self, pairs: np.ndarray) -> PairPart:
        """Distinct completions of (pairs, 2) rows, and the pairs as indices into them."""
        distinct, indices = np.unique(pairs, return_inverse=True)
        rows = Rows.of([self.prompts[i] for i in distinct], [self.completions[i] for i in distinct])
        reference = torch.tensor(self.ref_logprob[distinct], dtype=torch.float32)
        return PairPart(rows, reference, torch.as_tensor(indices.reshape(pairs.shape)))


@dataclass(frozen=True)
class PairBatch:
    """A global batch of pairs: (batch, 2) rows of the group table; losses are averaged over pairs."""

    completions: Completions
    pairs: np.ndarray

    @property
    def size(self) -> float:
        """Number of pairs."""
        return float(len(self.pairs))

    def parts(self, rank: int, world: int, limit: int | None) -> list[PairPart]:
        """This process's pairs, with the distinct completions of each piece."""
        return [self.completions.part(piece) for piece in share(self.pairs, rank, world, limit)]


class DPO:
    """Minimises -log sigmoid(beta h) over preference pairs."""

    stage = "dpo"

    def __init__(self, policy: Policy, groups: pd.DataFrame, pairs: Pairs, run: DPORun) -> None:
        policy.lm.requires_grad_(True)
        self.module: nn.Module = LogProbs(policy.lm, run.generation.temperature).eval()  # eval: no dropout
        self.completions, self.pairs, self.beta = Completions(groups), pairs, run.beta
        batch_size = run.policy.batch_size
        self.steps = run.policy.steps or steps_for(len(pairs.rows), batch_size, run.policy.epochs)
        self.stream = Stream(len(pairs.rows), batch_size, lambda epoch: shuffled(pairs, run.dpo.order, run.seed, epoch))

    @classmethod
    def from_artifacts(cls, policy: Policy, folder: Path, run: DPORun) -> "DPO":
        """DPO on the groups of an artifact: pairs drawn by the true reward, or those of a preference file.

        Raises:
            RunError: no pair is left.
        """
        groups, pairs = read(folder)
        if pairs is None:
            pairs = draw_pairs(groups, run.dpo, run.seed)
        elif run.dpo.noise is not None:
            pairs = flip(pairs, run.dpo.noise, run.seed)
        return cls(policy, groups, pairs, run)

    def remark(self) -> str:
        """What a person wants to know before it starts."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.pairs.dropped.items() if count)
        return f"{len(self.pairs.rows)} pairs, {self.steps} steps" + (f"; left out: {left_out}" if left_out else "")

    def batches(self, first: int) -> Iterator[PairBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            yield PairBatch(self.completions, self.pairs.rows[self.stream.at(step)])

    def loss(self, module: nn.Module, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and what practitioners plot."""
        device = next(module.parameters()).device
        rows, pairs = part.rows.to(device), part.pairs.to(device)
        logprob = module(rows.ids, rows.starts, rows.lengths).sum(-1)[pairs]
        reference = part.ref_logprob.to(device)[pairs]
        margin = log_ratio_margin(logprob[:, 0], logprob[:, 1], reference[:, 0], reference[:, 1])
        log_ratio = (logprob - reference).detach()
        return dpo_sigmoid(margin, self.beta).sum(), {
            "train/accuracy": (margin > 0).float().sum(),
            "train/margin": self.beta * margin.detach().sum(),
            "train/chosen_log_ratio": log_ratio[:, 0].sum(),
            "train/rejected_log_ratio": log_ratio[:, 1].sum(),
        }
