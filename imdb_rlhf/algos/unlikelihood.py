"""The unlikelihood baseline of arXiv 2305.18290, section 6: it makes winners likelier and losers less likely.

Its loss has no reference and no lower bound; only the metrics use the reference's log-probs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from imdb_rlhf.algos.population import Population, Winners
from imdb_rlhf.algos.preferences import PairPart, PreferenceMethod
from imdb_rlhf.config.algos import UnlikelihoodRun
from imdb_rlhf.losses import unlikelihood


class Unlikelihood(PreferenceMethod[UnlikelihoodRun]):
    """Minimises -log pi(y_w) + alpha log pi(y_l) over preference pairs."""

    stage = "unlikelihood"
    title = "Unlikelihood"
    colours: ClassVar[Mapping[str, int]] = {"Unlikelihood": 2}

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return that there is none: -log pi(y_w) + alpha log pi(y_l) falls without end as pi(y_l) goes to 0."""
        return "its loss has no lower bound" if config["alpha"] else Winners.of(config["pairs"])

    def loss(self, module: nn.Module, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and the metrics that practitioners plot."""
        part = part.to(next(module.parameters()).device)
        logprob = module(part.rows.ids, part.rows.starts, part.rows.lengths).sum(-1)
        chosen, rejected = (logprob - part.ref_logprob).detach()[part.pairs].unbind(1)
        winner, loser = logprob[part.pairs].unbind(1)
        return unlikelihood(winner, loser, self.run.alpha).sum(), {
            "train/accuracy": (chosen > rejected).float().sum(),
            "train/chosen_log_ratio": chosen.sum(),
            "train/rejected_log_ratio": rejected.sum(),
        }
