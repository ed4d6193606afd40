"""What methods share whose loss is a function of both completions of a pair."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic

from torch import Tensor, nn

from imdb_rlhf.algos.preferences import PairPart, PreferenceMethod, R


@dataclass(frozen=True)
class Side:
    """The winners, or the losers, of some pairs.

    Attributes:
        logprob: (pairs,) log-prob under the policy, summed over tokens, nats.
        ref_logprob: (pairs,) the same under the reference.
        tokens: (pairs,) number of tokens.
    """

    logprob: Tensor
    ref_logprob: Tensor
    tokens: Tensor

    @property
    def per_token(self) -> Tensor:
        """(pairs,) mean log-prob per token under the policy, nats."""
        return self.logprob / self.tokens

    @property
    def log_ratio(self) -> Tensor:
        """(pairs,) log pi - log ref, nats per sequence."""
        return self.logprob - self.ref_logprob


class PairwiseMethod(PreferenceMethod[R], Generic[R]):
    """A method that adds a loss of winners and losers."""

    @abstractmethod
    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """(pairs,) losses of winners and losers."""

    def loss(self, module: nn.Module, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and the metrics that practitioners plot."""
        chosen, rejected = sides(module, part)
        up, down = chosen.log_ratio.detach(), rejected.log_ratio.detach()
        return self.losses(chosen, rejected).sum(), {
            "train/accuracy": (up > down).float().sum(),
            "train/chosen_log_ratio": up.sum(),
            "train/rejected_log_ratio": down.sum(),
        }


def sides(module: nn.Module, part: PairPart) -> tuple[Side, Side]:
    """The winners and the losers of a part, each distinct completion scored once."""
    part = part.to(next(module.parameters()).device)
    logprob = module(part.rows.ids, part.rows.starts, part.rows.lengths).sum(-1)
    tables = (logprob, part.ref_logprob, part.rows.lengths - part.rows.starts)
    columns = [table[part.pairs] for table in tables]
    return Side(*(column[:, 0] for column in columns)), Side(*(column[:, 1] for column in columns))
