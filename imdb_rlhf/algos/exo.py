"""EXO (arXiv 2402.00856) on pairs: the KL of DPO's classifier to the labels, the other way round."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from imdb_rlhf.algos.pairwise import PairwiseMethod, Side
from imdb_rlhf.config.preference_algos import EXORun
from imdb_rlhf.losses.offline import exo


class EXO(PairwiseMethod[EXORun]):
    """Minimises `losses.offline.exo` over preference pairs."""

    stage = "exo"
    title = "EXO"
    colours: ClassVar[Mapping[str, int]] = {"EXO": 12}

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """(pairs,) losses of winners and losers."""
        return exo(chosen.log_ratio - rejected.log_ratio, self.run.beta, self.run.exo.label_smoothing)
