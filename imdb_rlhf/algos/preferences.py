"""Learning from preferences: completions and the pairs or rankings over them in batches, and what all methods share.

A batch is its distinct completions and the indices of its pairs or rankings into them: each completion of a group of 4
occurs in 3 of its 6 pairs and is scored once. The reference's log-prob of each completion is stored beside it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.algos.inputs import Inputs
from imdb_rlhf.algos.method import Method
from imdb_rlhf.config.families import PreferenceRun
from imdb_rlhf.data.pairs import Pairs, load_pairs, shuffled
from imdb_rlhf.data.rankings import Rankings
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.loop import Batch

R = TypeVar("R", bound=PreferenceRun)


@dataclass(frozen=True)
class PairPart:
    """Pairs and their completions: the input of one forward pass.

    Attributes:
        rows: the distinct completions.
        ref_logprob: (completions,) float32 log-prob of each under the reference, nats.
        pairs: (pairs, 2) int64 indices into the completions, winner and loser.
    """

    rows: Rows
    ref_logprob: Tensor
    pairs: Tensor

    def to(self, device: torch.device) -> "PairPart":
        """The same part on another device."""
        return PairPart(self.rows.to(device), self.ref_logprob.to(device), self.pairs.to(device))


@dataclass(frozen=True)
class RankingPart:
    """Rankings and their completions: the input of one forward pass.

    Attributes:
        rows: the distinct completions.
        ref_logprob: (completions,) float32 log-prob of each under the reference, nats.
        rankings: (rankings, K) int64 indices into the completions, best first.
        mask: (rankings, K) bool, true for the completions that are ranked, before all padding.
    """

    rows: Rows
    ref_logprob: Tensor
    rankings: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "RankingPart":
        """The same part on another device."""
        return RankingPart(
            self.rows.to(device), self.ref_logprob.to(device), self.rankings.to(device), self.mask.to(device)
        )


class Completions:
    """The prompts and completions of a group table as token rows, with the reference's log-probs."""

    def __init__(self, groups: pd.DataFrame) -> None:
        self.prompt_ids = [list(map(int, ids)) for ids in groups["prompt_ids"]]
        self.completion_ids = [list(map(int, ids)) for ids in groups["completion_ids"]]
        self.ref_logprob = groups["ref_logprob"].to_numpy()

    def take(self, rows: np.ndarray) -> tuple[Rows, Tensor, Tensor]:
        """The distinct completions among (n, K) row numbers of the table.

        Returns:
            Their token rows, their (completions,) float32 log-probs under the reference in nats, and (n, K) indices
            into both.
        """
        distinct, indices = np.unique(rows, return_inverse=True)
        tokens = Rows.of([self.prompt_ids[i] for i in distinct], [self.completion_ids[i] for i in distinct])
        reference = torch.tensor(self.ref_logprob[distinct], dtype=torch.float32)
        return tokens, reference, torch.as_tensor(indices.reshape(rows.shape))


@dataclass(frozen=True)
class PairBatch:
    """A global batch of pairs: (batch, 2) rows of the group table; losses are averaged over pairs."""

    notes: ClassVar[Mapping[str, float]] = {}
    completions: Completions
    pairs: np.ndarray

    @property
    def size(self) -> float:
        """Number of pairs."""
        return float(len(self.pairs))

    def parts(self, rank: int, world: int, limit: int | None) -> list[PairPart]:
        """This process's pairs in pieces, each with its distinct completions."""
        return [PairPart(*self.completions.take(piece)) for piece in share(self.pairs, rank, world, limit)]


@dataclass(frozen=True)
class RankingBatch:
    """A global batch of rankings; losses are averaged over rankings.

    Attributes:
        completions: of all groups.
        rankings: (batch, K) rows of the group table, best first.
        mask: (batch, K) bool, true for the completions that are ranked.
    """

    notes: ClassVar[Mapping[str, float]] = {}
    completions: Completions
    rankings: np.ndarray
    mask: np.ndarray

    @property
    def size(self) -> float:
        """Number of rankings."""
        return float(len(self.rankings))

    def parts(self, rank: int, world: int, limit: int | None) -> list[RankingPart]:
        """This process's rankings in pieces, each with its distinct completions."""
        pieces = zip(share(self.rankings, rank, world, limit), share(self.mask, rank, world, limit), strict=True)
        return [RankingPart(*self.completions.take(rows), torch.as_tensor(mask)) for rows, mask in pieces]


def describe(examples: Pairs | Rankings, steps: int) -> str:
    """The numbers of examples and steps, and how much was left out for which reason."""
    name = "rankings" if isinstance(examples, Rankings) else "pairs"
    left_out = ", ".join(f"{count} {reason}" for reason, count in examples.dropped.items() if count)
    return f"{len(examples.rows)} {name}, {steps} steps" + (f"; left out: {left_out}" if left_out else "")


class PreferenceMethod(Method, ABC, Generic[R]):
    """A method that trains a policy on preferences: all but the loss, which the method adds."""

    stage: str

    def __init__(self, policy: Policy, groups: pd.DataFrame, drawn: Pairs | Rankings, run: R) -> None:
        policy.lm.requires_grad_(True)
        self.module: nn.Module = LogProbs(policy.lm, run.generation.temperature).eval()  # eval: no dropout
        self.completions, self.drawn, self.run = Completions(groups), drawn, run
        examples, batch_size = len(drawn.rows), run.policy.batch_size
        self.steps = run.policy.steps or steps_for(examples, batch_size, run.policy.epochs)
        self.stream = Stream(examples, batch_size, lambda epoch: shuffled(drawn, run.pairs.order, run.seed, epoch))

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: R) -> Self:
        """The method on the artifact of groups.

        Raises:
            RunError: no pair, or no ranking, is left.
        """
        groups, drawn = cls.draw(inputs.groups, run)
        return cls(inputs.policy, groups, drawn, run)

    @classmethod
    def draw(cls, folder: Path, run: R) -> tuple[pd.DataFrame, Pairs | Rankings]:
        """The group table of an artifact, and the examples drawn from it."""
        return load_pairs(folder, run.pairs, run.seed)

    def summary_line(self) -> str:
        """Return the number of examples and steps, and what was left out."""
        return describe(self.drawn, self.steps)

    def batches(self, first: int) -> Iterator[Batch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            yield self.batch(self.stream.at(step))

    def batch(self, chosen: np.ndarray) -> Batch:
        """The global batch of these (batch,) examples."""
        return PairBatch(self.completions, self.drawn.rows[chosen])

    @abstractmethod
    def loss(self, module: nn.Module, part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and the metrics that practitioners plot."""
