"""ORPO (arXiv 2403.07691): the winner's likelihood and an odds ratio, without a reference."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from imdb_rlhf.algos.pairwise import PairwiseMethod, Side
from imdb_rlhf.config.preference_algos import ORPORun
from imdb_rlhf.losses.offline import orpo


class ORPO(PairwiseMethod[ORPORun]):
    """Minimises `losses.offline.orpo` over preference pairs."""

    stage = "orpo"
    title = "ORPO"
    colours: ClassVar[Mapping[str, int]] = {"ORPO": 11}

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """(pairs,) losses of winners and losers."""
        return orpo(chosen.per_token, rejected.per_token, self.run.lam)
