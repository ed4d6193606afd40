"""Online DPO (arXiv 2402.04792; iterative with a reward model: arXiv 2312.11456).

1. K completions of each prompt are sampled from the policy as it is now;
2. the reward labels all pairs of a prompt: the better one wins, or wins with the Bradley-Terry chance;
3. one or more steps down DPO's loss, -log sigmoid(beta h), h the margin of log-ratios to the frozen reference.
Nothing is differentiated through the sampling. Pairs of the same completion, and ties, teach nothing and are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from imdb_rlhf.algos.fixed_beta import FixedBetaMethod
from imdb_rlhf.algos.online import Sampled
from imdb_rlhf.algos.population import Population
from imdb_rlhf.algos.rollout import Episodes, Minibatch
from imdb_rlhf.config.online_algos import OnlineDPORun
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.losses import dpo_sigmoid, log_ratio_margin
from imdb_rlhf.seeds import generator


@dataclass(frozen=True)
class Compared(Episodes):
    """Episodes in groups of K, and which of each pair of a group wins.

    Attributes:
        ref_logprob: (episodes, tokens) float32, log-prob under the reference, nats.
        wins: (episodes, K) bool, whether the episode is preferred to its group's k-th; of a pair at most one is.
    """

    WHOLE: ClassVar[frozenset[str]] = frozenset({"wins"})
    ref_logprob: Tensor
    wins: Tensor


@dataclass(frozen=True)
class PairMinibatch(Minibatch[Compared]):
    """The groups of one optimizer step; losses are averaged over their pairs."""

    @property
    def group(self) -> int:
        """K: pairs are within a piece."""
        return self.rollout.wins.shape[1]

    @property
    def size(self) -> float:
        """Number of pairs."""
        return float(self.rollout.wins.sum())

    @classmethod
    def of(cls, rollout: Compared, notes: dict[str, float], first: bool) -> Self:
        """The step on these groups; one without a pair is skipped."""
        return cls(rollout, notes, first, skipped=not bool(rollout.wins.any()))


class OnlineDPO(FixedBetaMethod[OnlineDPORun, Compared]):
    """Minimises DPO's loss on pairs of the policy's own completions."""

    stage = "online_dpo"
    title = "Online DPO"
    rollout_type = Compared

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the tilted reference for Bradley-Terry labels; deterministic ones have none."""
        if config["online_dpo"]["labels"] == Labels.bradley_terry:
            return super().population(config)
        return "deterministic labels: the margin that minimises its expected loss is infinite"

    def prepare(self, sampled: Sampled, number: int) -> Compared:
        """The batch with its winners."""
        score, k = sampled.score.double().reshape(-1, self.group), self.group
        gap = score[:, :, None] - score[:, None, :]
        config = self.run.online_dpo
        if config.labels == Labels.bradley_terry:
            coins = torch.from_numpy(generator(self.run.seed, "online_dpo/labels", number).random(gap.shape))
            upper = torch.ones(k, k).triu(1).bool()  # a coin for each pair, of the first against the second
            first = (coins < torch.sigmoid(gap / (config.tau or 1.0))) & upper
            wins = first | (~first & upper).transpose(1, 2)
        else:
            wins = gap > 0
        rows, (logprob, ref_logprob, *_) = sampled.rows, sampled.tables
        texts = rows.ids.reshape(-1, k, rows.ids.shape[1])
        same = (texts[:, :, None] == texts[:, None, :]).all(-1) & (
            rows.lengths.reshape(-1, k, 1) == rows.lengths.reshape(-1, 1, k)
        )
        wins = (wins & ~same).flatten(0, 1)
        return Compared(rows.ids, rows.starts, rows.lengths, sampled.mask, logprob, ref_logprob, wins)

    def minibatch(self, rollout: Compared, first: bool) -> PairMinibatch:
        """The groups of a step, averaged over pairs."""
        return PairMinibatch.of(rollout, self.notes, first)

    def loss(self, module: nn.Module, part: tuple[Compared, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part's pairs, and the metrics that practitioners plot."""
        rollout, beta = part[0].to(next(module.parameters()).device), self.run.beta
        logprob = self.token_logprobs(module, rollout, part[1]).sum(-1)
        reference = rollout.ref_logprob.sum(-1)
        winner, other = rollout.wins.nonzero(as_tuple=True)
        loser = winner // self.group * self.group + other
        margin = log_ratio_margin(logprob[winner], logprob[loser], reference[winner], reference[loser])
        ratio = (logprob - reference).detach()
        chosen, rejected = ratio[winner], ratio[loser]
        return dpo_sigmoid(margin, beta).sum(), {
            "train/accuracy": (chosen > rejected).float().sum(),
            "train/margin": beta * (chosen - rejected).sum(),
            "train/chosen_log_ratio": chosen.sum(),
            "train/rejected_log_ratio": rejected.sum(),
        }
