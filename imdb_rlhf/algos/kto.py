"""Kahneman-Tversky optimization (arXiv 2402.01306): each completion is desirable or undesirable by itself.

The winner of a pair is a desirable example and its loser an undesirable one. The reference point is an estimate of
KL(pi || ref) from completions under prompts that are not theirs (section 4.1), over the whole batch, before each step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.inputs import Inputs
from imdb_rlhf.algos.pairwise import sides
from imdb_rlhf.algos.preferences import Completions, PairBatch, PairPart, PreferenceMethod
from imdb_rlhf.config.preference_algos import KTORun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.rankings import Rankings
from imdb_rlhf.losses.offline import kto
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime

ROWS = 64  # mismatched completions scored at once


@dataclass(frozen=True)
class KTOPart:
    """Pairs whose completions are examples of their own.

    Attributes:
        pairs: desirable and undesirable completions.
        kl: the reference point, nats.
    """

    pairs: PairPart
    kl: float


@dataclass(frozen=True)
class KTOBatch:
    """A global batch: (batch, 2) rows of the group table; losses are averaged over examples, two for each pair."""

    completions: Completions
    pairs: np.ndarray
    kl: float

    @property
    def notes(self) -> Mapping[str, float]:
        """The reference point."""
        return {"train/kl_estimate": self.kl}

    @property
    def size(self) -> float:
        """Number of examples."""
        return 2.0 * len(self.pairs)

    def parts(self, rank: int, world: int, limit: int | None) -> list[KTOPart]:
        """This process's pairs in pieces, each with its distinct completions."""
        parts = PairBatch(self.completions, self.pairs).parts(rank, world, limit)
        return [KTOPart(part, self.kl) for part in parts]


class KTO(PreferenceMethod[KTORun]):
    """Minimises `losses.offline.kto` over desirable and undesirable completions.

    Args:
        policy: the policy to train.
        reference: the policy that the KL is taken to; frozen.
        groups: a group table.
        drawn: pairs over its rows.
        run: the configuration.
        runtime: precision and processes.
    """

    stage = "kto"
    title = "KTO"
    colours: ClassVar[Mapping[str, int]] = {"KTO": 8}

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel,
        groups: pd.DataFrame,
        drawn: Pairs | Rankings,
        run: KTORun,
        runtime: Runtime,
    ) -> None:
        super().__init__(policy, groups, drawn, run)
        self.reference = LogProbs(reference, run.generation.temperature).eval()
        self.runtime, self.context = runtime, policy.context

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: KTORun) -> Self:
        """KTO on the artifact of groups.

        Raises:
            RunError: no pair is left.
        """
        groups, drawn = cls.draw(inputs.groups, run)
        return cls(inputs.policy, inputs.reference, groups, drawn, run, inputs.runtime)

    def batches(self, first: int) -> Iterator[KTOBatch]:
        """The batch of each step from `first` on, with the KL of the policy as it is then."""
        for step in range(first, self.steps):
            pairs = self.drawn.rows[self.stream.at(step)]
            yield KTOBatch(self.completions, pairs, self.kl_estimate(pairs))

    def loss(self, module: nn.Module, part: KTOPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and the metrics that practitioners plot."""
        config, beta = self.run.kto, self.run.beta
        chosen, rejected = (side.log_ratio for side in sides(module, part.pairs))
        log_ratio = torch.cat([chosen, rejected])
        desirable = torch.arange(len(log_ratio), device=log_ratio.device) < len(chosen)
        losses = kto(log_ratio, desirable, part.kl, beta, config.lambda_d, config.lambda_u)
        up, down = chosen.detach(), rejected.detach()
        # the loop divides by examples, of which a pair has two
        return losses.sum(), {
            "train/accuracy": 2 * (up > down).float().sum(),
            "train/chosen_log_ratio": 2 * up.sum(),
            "train/rejected_log_ratio": 2 * down.sum(),
        }

    @torch.no_grad()
    def kl_estimate(self, pairs: np.ndarray) -> float:
        """The reference point of a batch: max(0, mean of log pi - log ref over mismatched completions), nats.

        Args:
            pairs: (batch, 2) rows of the group table.
        """
        prompts, completions = self.completions.prompt_ids, self.completions.completion_ids
        rows = mismatched(np.unique(pairs), prompts)
        rows = rows[[len(prompts[x]) + len(completions[y]) <= self.context for x, y in rows]]
        mine = np.array_split(rows, self.runtime.world)[self.runtime.rank]
        ratios: list[float] = []
        for at in range(0, len(mine), ROWS):
            piece = mine[at : at + ROWS]
            tokens = Rows.of([prompts[x] for x, _ in piece], [completions[y] for _, y in piece])
            ratios += self._log_ratios(tokens.to(self.runtime.device))
        everyone = self.runtime.gather(ratios)
        return max(0.0, float(np.mean(everyone))) if everyone else 0.0

    def _log_ratios(self, rows: Rows) -> list[float]:
        """The log-ratios of completions, nats per sequence."""
        with self.runtime.autocast():
            logprobs = [
                model.to(self.runtime.device)(rows.ids, rows.starts, rows.lengths).float().sum(-1)
                for model in (self.module, self.reference)
            ]
        ratios: list[float] = (logprobs[0] - logprobs[1]).tolist()
        return ratios


def mismatched(rows: np.ndarray, prompt_ids: list[list[int]]) -> np.ndarray:
    """Completions under prompts that are not theirs: each under the prompt of the row that is s places on.

    s is the least number that leaves as few completions as possible under a prompt of the same tokens; those are left
    out. Where all prompts differ it is 1, as in TRL.

    Args:
        rows: (n,) rows of a group table, each once.
        prompt_ids: the prompt of every row of the table.

    Returns:
        (m, 2) int64, the row of the prompt and the row of the completion; none where all prompts are one.
    """
    numbers: dict[tuple[int, ...], int] = {}
    prompts = np.array([numbers.setdefault(tuple(prompt_ids[row]), len(numbers)) for row in rows])
    differing = [int((np.roll(prompts, -s) != prompts).sum()) for s in range(1, len(rows))]
    if not any(differing):
        return np.zeros((0, 2), dtype=np.int64)
    shift = 1 + int(np.argmax(differing))
    kept = np.roll(prompts, -shift) != prompts
    return np.stack([np.roll(rows, -shift), rows], axis=1)[kept].astype(np.int64)
