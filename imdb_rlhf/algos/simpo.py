"""SimPO (arXiv 2405.14734): preference optimization on log-probs per token, without a reference."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from imdb_rlhf.algos.pairwise import PairwiseMethod, Side
from imdb_rlhf.config.preference_algos import SimPORun
from imdb_rlhf.losses.offline import simpo


class SimPO(PairwiseMethod[SimPORun]):
    """Minimises `losses.offline.simpo` over preference pairs."""

    stage = "simpo"
    title = "SimPO"
    colours: ClassVar[Mapping[str, int]] = {"SimPO": 9}

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """(pairs,) losses of winners and losers."""
        return simpo(chosen.per_token, rejected.per_token, self.run.beta, self.run.simpo.gamma_beta_ratio)
