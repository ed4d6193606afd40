"""The learned reward: a scalar head trained on preferences among the completions of one prompt.

An example is a choice among completions, held as a ranking of which only the first place counts. A pair is a choice
between two: the Bradley-Terry model of arXiv 2305.18290, equation 2. A group gives one choice among its K: arXiv
1909.08593, equation 1. A completion that occurs in several choices of a batch is scored once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, steps_for
from imdb_rlhf.algos.preferences import Completions, RankingBatch, RankingPart
from imdb_rlhf.config.families import LearnedRun
from imdb_rlhf.config.reward import Objective
from imdb_rlhf.data.groups import read, without_appended_eos
from imdb_rlhf.data.pairs import load_pairs, shuffled
from imdb_rlhf.data.rankings import Rankings, draw_choices
from imdb_rlhf.errors import RunError
from imdb_rlhf.losses import best_of_k, bradley_terry
from imdb_rlhf.models.heads import RewardHead, score_rows
from imdb_rlhf.seeds import derive
from imdb_rlhf.training.loop import Plain


def held_out(prefixes: Sequence[tuple[int, ...]], usable: np.ndarray, portion: float, seed: int) -> np.ndarray:
    """Which rows are for validation: all rows of a prefix or none, by a hash of (seed, prefix).

    Prompts with equal tokens are thus on one side, and adding prompts moves none of the others. If one side would have
    no usable prefix, the one whose hash is nearest to the boundary crosses over.

    Args:
        prefixes: (rows,) the prompt's tokens.
        usable: (rows,) bool, whether the row is the chosen completion of an example.
        portion: share of validation in (0, 1/2].
        seed: of the hash.

    Returns:
        (rows,) bool.

    Raises:
        RunError: fewer than two usable prefixes.
    """
    place = {prefix: derive(seed, "validation", *prefix) / 2**63 for prefix in set(prefixes)}
    candidates = sorted({p for p, use in zip(prefixes, usable, strict=True) if use}, key=lambda p: (place[p], p))
    if len(candidates) < 2:
        raise RunError(
            "reward_model: only one prompt has completions with distinct rewards, and training and validation need "
            "one each; raise data.prompts.train or use another reward"
        )
    chosen = {prefix for prefix in place if place[prefix] < portion}
    if chosen.isdisjoint(candidates):
        chosen.add(candidates[0])
    elif chosen.issuperset(candidates):
        chosen.remove(candidates[-1])
    return np.array([prefix in chosen for prefix in prefixes])


def choice_accuracy(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(choices,) 1 where the chosen completion has the highest score, 1/n where it shares it with n - 1 others, else 0.

    Args:
        scores: (choices, K), the chosen completion's first.
        mask: (choices, K) bool, true for the completions of the choice, false for padding.
    """
    best = np.where(mask, scores, -np.inf)
    highest = best == best.max(1, keepdims=True)
    return highest[:, 0] / highest.sum(1)


class RewardModel(Plain):
    """Minimises -log of the modelled probability of the chosen completions.

    Attributes:
        plain: the head that is trained, unwrapped: for scores in the caller's precision.
        completions: of all groups, as they are scored.
        held_out: (completions,) bool, true for the validation prefixes.
        training, validation: the choices on either side.
    """

    stage = "reward_model"

    def __init__(self, head: RewardHead, groups: pd.DataFrame, choices: Rankings, run: LearnedRun) -> None:
        """Split the choices.

        Raises:
            RunError: fewer than two prefixes have examples.
        """
        config = run.reward_model
        self.module: nn.Module = head.eval()  # eval: no dropout
        # accelerate wraps the forward of `module` in its autocast, permanently; `plain` escapes that
        self.plain = RewardHead(head.model).eval()
        self.objective, self.completions = config.objective, Completions(groups)
        owners = choices.rows[:, 0]
        usable = np.zeros(len(groups), dtype=bool)
        usable[owners] = True
        prefixes = [tuple(ids) for ids in self.completions.prompt_ids]
        self.held_out = held_out(prefixes, usable, config.validation, config.seed)
        self.training, self.validation = (
            Rankings(choices.rows[side], choices.mask[side], choices.prompts[side], choices.dropped)
            for side in (~self.held_out[owners], self.held_out[owners])
        )
        examples = len(self.training.rows)
        self.steps = steps_for(examples, config.batch_size, config.epochs)
        self.stream = Stream(
            examples, config.batch_size, lambda epoch: shuffled(self.training, run.pairs.order, config.seed, epoch)
        )

    @classmethod
    def from_artifacts(cls, head: RewardHead, folder: Path, eos_id: int, run: LearnedRun) -> "RewardModel":
        """The examples of a groups artifact: drawn by the true reward, or the pairs of a preference file.

        Raises:
            RunError: no example is left, or only those of one prefix.
        """
        seed = run.reward_model.seed
        try:
            if run.reward_model.objective == Objective.pairs:
                groups, pairs = load_pairs(folder, run.pairs, seed)
                mask = np.ones(pairs.rows.shape, dtype=bool)
                choices = Rankings(pairs.rows, mask, pairs.prompts, pairs.dropped)
            else:
                groups = read(folder)
                choices = draw_choices(groups, run.pairs, seed)
        except RunError as error:
            raise RunError(f"reward_model: {error}") from error
        # the reward will score completions as sampled: none has an EOS that was appended
        return cls(head, without_appended_eos(groups, eos_id), choices, run)

    def batches(self, first: int) -> Iterator[RankingBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            yield RankingBatch(self.completions, self.training.rows[chosen], self.training.mask[chosen])

    def losses(self, scores: Tensor, mask: Tensor) -> Tensor:
        """(choices,) losses in nats of (choices, K) scores, the chosen completion's first."""
        if self.objective == Objective.pairs:
            return bradley_terry(scores[:, 0], scores[:, 1])
        return best_of_k(scores, mask, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))

    def loss(self, module: nn.Module, part: RankingPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part in nats, and how many choices are right."""
        part = part.to(next(module.parameters()).device)
        scores = module(part.rows.ids, part.rows.lengths)[part.rankings]
        others = scores.masked_fill(~part.mask, -torch.inf)[:, 1:].amax(-1)
        return self.losses(scores, part.mask).sum(), {"train/accuracy": (scores[:, 0] > others).float().sum()}

    def score(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """(n,) float64 scores of the completions in (n,) rows of the table, in the caller's autocast precision."""
        prompt_ids = [self.completions.prompt_ids[row] for row in rows]
        completion_ids = [self.completions.completion_ids[row] for row in rows]
        return score_rows(self.plain, prompt_ids, completion_ids, batch_size)

    def validate(self, batch_size: int) -> dict[str, float]:
        """Mean accuracy and loss (nats) of the validation choices; every process computes all of them."""
        distinct, places = np.unique(self.validation.rows, return_inverse=True)
        scores = self.score(distinct, batch_size)[places.reshape(self.validation.rows.shape)]
        losses = self.losses(torch.as_tensor(scores), torch.as_tensor(self.validation.mask))
        accuracy = choice_accuracy(scores, self.validation.mask)
        return {"eval/accuracy": float(accuracy.mean()), "eval/loss": float(losses.mean())}
