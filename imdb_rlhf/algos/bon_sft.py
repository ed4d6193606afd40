"""Best-of-N distillation: supervised fine-tuning on the best of N completions of each group.

With N below the size of a group, every completion counts as often as it is the best of N of its group.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import share
from imdb_rlhf.algos.inputs import Inputs
from imdb_rlhf.algos.population import BestOf, Population, Selector
from imdb_rlhf.algos.preferences import Completions, PreferenceMethod
from imdb_rlhf.algos.preferred_ft import WinnerPart, weighted_likelihood
from imdb_rlhf.config.preference_algos import BonSFTRun
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.data.best_of import best_of_weights
from imdb_rlhf.data.groups import read
from imdb_rlhf.data.rankings import Rankings
from imdb_rlhf.models.policy import Policy


@dataclass(frozen=True)
class BestBatch:
    """A global batch of groups; losses are averaged over the tokens of their best completions.

    Attributes:
        completions: of all groups.
        rows: (batch, K) rows of the group table.
        weights: (batch, K) how often each is the best of n; a row sums to 1.
    """

    notes: ClassVar[Mapping[str, float]] = {}
    completions: Completions
    rows: np.ndarray
    weights: np.ndarray

    @property
    def size(self) -> float:
        """Number of tokens, each completion's as often as it is the best."""
        lengths = [[len(self.completions.completion_ids[row]) for row in group] for group in self.rows]
        return float((np.array(lengths) * self.weights).sum())

    def parts(self, rank: int, world: int, limit: int | None) -> list[WinnerPart]:
        """This process's groups in pieces of so many, without the completions that are never the best."""
        mean_tokens, parts = self.size / len(self.rows), []
        for piece in share(np.arange(len(self.rows)), rank, world, limit):
            rows, weights = self.rows[piece].ravel(), self.weights[piece].ravel()
            seen = weights > 0
            tokens, reference, indices = self.completions.take(rows[seen])
            total = torch.zeros(len(reference)).index_add(
                0, indices, torch.as_tensor(weights[seen], dtype=torch.float32)
            )
            parts.append(WinnerPart(tokens, reference, total, mean_tokens))
        return parts


class BonSFT(PreferenceMethod[BonSFTRun]):
    """Minimises the negative log-likelihood per token of the best of N, at the temperature of sampling.

    Args:
        policy: the policy to train.
        groups: a group table.
        scores: (rows of the table,) by which the best is chosen.
        run: the configuration.
    """

    stage = "bon_sft"
    title = "BoN-SFT"
    colours: ClassVar[Mapping[str, int]] = {"BoN-SFT": 17, "BoN-SFT-GT": 18}

    def __init__(self, policy: Policy, groups: pd.DataFrame, scores: np.ndarray, run: BonSFTRun) -> None:
        members = groups.groupby("prompt_id", sort=True).indices
        rows = [np.asarray(each, dtype=np.int64) for each in members.values()]
        drawn = Rankings.of([each.tolist() for each in rows], list(members), {})
        super().__init__(policy, groups, drawn, run)
        self.weights = np.stack([best_of_weights(scores[each], run.n) for each in rows])

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the best of n: likelihood is largest there."""
        learned = config["bon_sft"]["selector"] == RewardSource.learned
        return BestOf(int(config["n"]), Selector.learned if learned else Selector.logit)

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: BonSFTRun) -> Self:
        """The method on the artifact of groups."""
        groups = read(inputs.groups)
        if run.bon_sft.selector == RewardSource.ground_truth:
            return cls(inputs.policy, groups, groups["reward_logit"].to_numpy(), run)
        tokens = ([list(map(int, ids)) for ids in groups[name]] for name in ("prompt_ids", "completion_ids"))
        return cls(inputs.policy, groups, inputs.learned_score(*tokens), run)

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """By the learned reward, or by the true one."""
        return cls.title if variant == RewardSource.learned else f"{cls.title}-GT"

    def summary_line(self) -> str:
        """Return the number of groups and steps, and N."""
        return f"the best of {self.run.n} of {len(self.weights)} groups, {self.steps} steps"

    def batches(self, first: int) -> Iterator[BestBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            yield BestBatch(self.completions, self.drawn.rows[chosen], self.weights[chosen])

    def loss(self, module: nn.Module, part: WinnerPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood of a part, nats; the log-ratio is a mean over groups, nats per sequence."""
        return weighted_likelihood(module, part)
