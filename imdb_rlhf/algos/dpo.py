"""Direct preference optimization (arXiv 2305.18290) and the losses that are functions of the same log-ratios.

The score of a completion is s = log pi(y|x) - log ref(y|x), and h = s_w - s_l is the margin of a pair. Plackett-Luce
takes whole rankings instead of pairs (appendix A.3). With another divergence than reverse KL (f-DPO, arXiv 2309.16240)
f'(pi / ref) takes the place of s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.population import Population, Selector, Tilted
from imdb_rlhf.algos.preferences import (
    PairBatch,
    PairPart,
    PreferenceMethod,
    RankingBatch,
    RankingPart,
)
from imdb_rlhf.config.algos import Divergence, DPOConfig, DPOLoss, DPORun
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.data.groups import read
from imdb_rlhf.data.pairs import Pairs, load_pairs
from imdb_rlhf.data.rankings import Rankings, draw_rankings
from imdb_rlhf.losses import dpo_hinge, dpo_ipo, dpo_robust, dpo_sigmoid, log_ratio_margin, plackett_luce
from imdb_rlhf.losses.offline import alpha_divergence_score, js_score


class DPO(PreferenceMethod[DPORun]):
    """Minimises a loss of the log-ratios of preferred and other completions."""

    stage = "dpo"
    title = "DPO"
    colours: ClassVar[Mapping[str, int]] = {
        "DPO": 0,
        "DPO (ipo)": 7,
        "DPO (forward_kl)": 14,
        "DPO (js)": 21,
        "DPO (alpha)": 28,
    }

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the reference tilted by the labels' log-odds, or by ranks for IPO; deterministic labels have none.

        Under Bradley-Terry labels the margin's expected loss is least at r / (tau beta) of the log-odds (Rafailov et
        al. 2023, section 4). IPO with deterministic labels is least squares: at (share beaten - share beating) / (2
        beta) (Azar et al. 2023, section 5).
        """
        loss, labels, dpo = DPOLoss(str(config["dpo"]["loss"])), Labels(str(config["pairs"]["labels"])), config["dpo"]
        if loss == DPOLoss.ipo and labels == Labels.deterministic:
            if config["pairs"]["min_margin"] or dpo["average_logprobs"]:
                return "IPO's optimum without near-ties, or per token, has no closed form here"
            return Tilted(Selector.rank)
        likelihood = loss in (DPOLoss.sigmoid, DPOLoss.plackett_luce) and not dpo["label_smoothing"]
        if labels == Labels.bradley_terry and likelihood:
            return Tilted(Selector.logit)
        if labels == Labels.deterministic and not dpo["label_smoothing"]:
            return "deterministic labels: the margin that minimises its expected loss is infinite"
        return super().population(config)

    @classmethod
    def draw(cls, folder: Path, run: DPORun) -> tuple[pd.DataFrame, Pairs | Rankings]:
        """The group table of an artifact, and its rankings for Plackett-Luce or its pairs for every other loss."""
        if run.dpo.loss != DPOLoss.plackett_luce:
            return load_pairs(folder, run.pairs, run.seed)
        groups = read(folder)
        return groups, draw_rankings(groups, run.pairs, run.seed)

    def batch(self, chosen: np.ndarray) -> PairBatch | RankingBatch:
        """The global batch of these (batch,) pairs or rankings."""
        rows = self.drawn.rows[chosen]
        if isinstance(self.drawn, Rankings):
            return RankingBatch(self.completions, rows, self.drawn.mask[chosen])
        return PairBatch(self.completions, rows)

    def loss(self, module: nn.Module, part: PairPart | RankingPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and the metrics that practitioners plot.

        The metrics are of whole sequences (log-probs summed over tokens), whatever the loss reads. A ranking's chosen
        completion is its best and its rejected one the worst; its accuracy is the share of neighbours in the right
        order.
        """
        part = part.to(next(module.parameters()).device)
        logprob = module(part.rows.ids, part.rows.starts, part.rows.lengths).sum(-1)
        ratio = (logprob - part.ref_logprob).detach()
        if isinstance(part, RankingPart):
            scores = self.run.beta * (logprob - part.ref_logprob)[part.rankings]
            losses = plackett_luce(scores, part.mask)
            ratios, neighbours = ratio[part.rankings], part.mask[:, 1:]
            right = (ratios[:, :-1] > ratios[:, 1:]) & neighbours
            correct = right.sum(-1) / neighbours.sum(-1)
            worst = part.mask.sum(-1, keepdim=True) - 1
            chosen, rejected = ratios[:, 0], ratios.gather(1, worst)[:, 0]
        else:
            losses = pair_losses(self._margin(logprob, part), self.run.beta, self.run.dpo)
            chosen, rejected = ratio[part.pairs].unbind(1)
            correct = (chosen > rejected).float()
        return losses.sum(), {
            "train/accuracy": correct.sum(),
            "train/margin": self.run.beta * (chosen - rejected).sum(),
            "train/chosen_log_ratio": chosen.sum(),
            "train/rejected_log_ratio": rejected.sum(),
        }

    def _margin(self, logprob: Tensor, part: PairPart) -> Tensor:
        """(pairs,) margins that the loss reads: of log-probs per sequence, or per token, in nats."""
        tokens = part.rows.lengths - part.rows.starts if self.run.dpo.average_logprobs else torch.ones_like(logprob)
        if self.run.dpo.divergence != Divergence.reverse_kl:
            scores = divergence_scores(logprob - part.ref_logprob, self.run.dpo)[part.pairs]
            return scores[:, 0] - scores[:, 1]
        policy, reference = (logprob / tokens)[part.pairs], (part.ref_logprob / tokens)[part.pairs]
        return log_ratio_margin(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])


def pair_losses(margin: Tensor, beta: float, config: DPOConfig) -> Tensor:
    """(pairs,) losses of (pairs,) margins under the configured loss.

    Raises:
        ValueError: the configured loss is not one of pairs.
    """
    match config.loss:
        case DPOLoss.sigmoid:
            return dpo_sigmoid(margin, beta, config.label_smoothing)
        case DPOLoss.robust:
            return dpo_robust(margin, beta, config.label_smoothing)
        case DPOLoss.ipo:
            return dpo_ipo(margin, beta)
        case DPOLoss.hinge:
            return dpo_hinge(margin, beta)
        case _:
            raise ValueError(f"{config.loss} is not a loss of pairs")


def divergence_scores(log_ratio: Tensor, config: DPOConfig) -> Tensor:
    """(completions,) f'(pi / ref) of (completions,) log-ratios in nats; the log-ratio itself for reverse KL."""
    match config.divergence:
        case Divergence.forward_kl:
            return alpha_divergence_score(log_ratio, 1.0)
        case Divergence.js:
            return js_score(log_ratio)
        case Divergence.alpha:
            assert config.divergence_alpha is not None  # as `DPOConfig.check` has it
            return alpha_divergence_score(log_ratio, config.divergence_alpha)
        case _:
            return log_ratio
