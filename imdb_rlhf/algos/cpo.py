"""Contrastive preference optimization (arXiv 2401.08417): DPO without a reference, and the winner's likelihood."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from imdb_rlhf.algos.pairwise import PairwiseMethod, Side
from imdb_rlhf.config.preference_algos import CPORun
from imdb_rlhf.losses.offline import cpo


class CPO(PairwiseMethod[CPORun]):
    """Minimises `losses.offline.cpo` over preference pairs."""

    stage = "cpo"
    title = "CPO"
    colours: ClassVar[Mapping[str, int]] = {"CPO": 10}

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """(pairs,) losses of winners and losers."""
        difference = chosen.logprob - rejected.logprob
        return cpo(difference, chosen.per_token, self.run.beta, self.run.cpo.nll_weight)
