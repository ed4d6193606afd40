"""The learned reward: a scalar head trained on what is preferred among completions of one prompt.

An example is a choice among completions, held as a ranking of which only the first place counts. A pair is a choice
between two: the Bradley-Terry model of arXiv 2305.18290, equation 2. A group gives one choice among its K: arXiv
1909.08593, equation 1. A completion that stands in several choices of a batch is scored once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, steps_for
from imdb_rlhf.algos.preferences import Completions, RankingBatch, RankingPart, load_pairs
from imdb_rlhf.config.algos import LearnedRun
from imdb_rlhf.config.stages import Labels, Objective, PairsConfig, Ties
from imdb_rlhf.data.groups import Rankings, read, shuffled
from imdb_rlhf.errors import RunError
from imdb_rlhf.losses import best_of_k, bradley_terry
from imdb_rlhf.models.heads import RewardHead, score_rows
from imdb_rlhf.seeds import derive, generator
from imdb_rlhf.training.loop import Plain

# --- examples ---------------------------------------------------------------------------------------------------------


def draw_choices(groups: pd.DataFrame, config: PairsConfig, seed: int) -> Rankings:
    """One choice a group: the completion with the highest log-odds, or with `bradley_terry` labels a draw.

    The draw is the highest of r / tau + Gumbel noise: completion i with probability softmax(r / tau)_i (Luce 1959).
    Completions that are the same count as one. A group is left out where the best two are equal (unless ties are
    drawn) or nearer than `min_margin`, whatever the labels: as a pair is.

    Args:
        groups: a group table.
        config: how the choice is drawn, and which groups are dropped.
        seed: the choice is a function of (seed, prompt id).

    Returns:
        A choice a row, the chosen completion first, the others in the order of the table.

    Raises:
        RunError: no choice is left.
    """
    logits = groups["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in groups["completion_ids"]]
    dropped = {"same completion": 0, "equal rewards": 0, "below min_margin": 0}
    found, prompts = [], []
    for prompt, indices in groups.groupby("prompt_id", sort=True).indices.items():
        members = np.asarray(indices, dtype=np.int64)
        random = generator(seed, "choice", int(str(prompt)))
        noise, coins = random.gumbel(size=len(members)), random.random(len(members))
        places: dict[tuple[int, ...], int] = {}
        for place, row in enumerate(members):
            places.setdefault(completions[row], place)
        distinct = np.array(list(places.values()))
        rows = members[distinct]
        rewards = logits[rows]
        gap = np.diff(np.sort(rewards)[-2:])
        if len(rows) == 1:
            dropped["same completion"] += 1
        elif gap[0] == 0 and config.ties == Ties.drop:
            dropped["equal rewards"] += 1
        elif gap[0] < config.min_margin:
            dropped["below min_margin"] += 1
        else:
            if config.labels == Labels.bradley_terry:
                best = int(np.argmax(rewards / (config.tau or 1.0) + noise[distinct]))
            else:
                best = int(np.argmax(np.where(rewards == rewards.max(), coins[distinct], -1.0)))
            found.append([int(rows[best]), *(int(row) for at, row in enumerate(rows) if at != best)])
            prompts.append(prompt)
    if not found:
        raise RunError(
            f"no choice is left of {sum(dropped.values())} groups "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.items())}); use more prompts or another reward"
        )
    return Rankings.of(found, prompts, dropped)


def held_out(prefixes: Sequence[tuple[int, ...]], usable: np.ndarray, portion: float, seed: int) -> np.ndarray:
    """Which rows are for validation: all of a prefix or none, by a hash of (seed, prefix).

    So prompts with equal tokens are on one side, and further prompts move none of these. Where one side would have no
    usable prefix, the nearest one crosses over.

    Args:
        prefixes: (rows,) the prompt's tokens.
        usable: (rows,) bool, whether an example stands on the row.
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


def as_sampled(groups: pd.DataFrame, eos_id: int) -> pd.DataFrame:
    """The same table without an EOS that was appended: where the reward is used there is none to be read.

    Args:
        groups: a group table.
        eos_id: the token that ends a completion that was not cut.
    """
    tails = [
        ids[:-1] if not finished and len(ids) > 1 and ids[-1] == eos_id else ids
        for ids, finished in zip(groups["completion_ids"], groups["finished"], strict=True)
    ]
    return groups.assign(completion_ids=tails)


def choice_accuracy(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(choices,) chance that the highest score is the chosen completion's; of n equal highest ones each has 1/n.

    Args:
        scores: (choices, K), the chosen completion's first.
        mask: (choices, K) bool, true for the completions that are there.
    """
    best = np.where(mask, scores, -np.inf)
    highest = best == best.max(1, keepdims=True)
    return highest[:, 0] / highest.sum(1)


# --- the algorithm ----------------------------------------------------------------------------------------------------


class RewardModel(Plain):
    """Minimises -log of the modelled probability of what was chosen.

    Attributes:
        plain: the head that is trained, for scores in the caller's precision.
        completions: of all groups, as they are scored.
        held_out: (completions,) bool, those of the validation prefixes.
        training, validation: the choices on either side.
    """

    stage = "reward_model"

    def __init__(self, head: RewardHead, groups: pd.DataFrame, choices: Rankings, run: LearnedRun) -> None:
        """Split the choices.

        Raises:
            RunError: there are no two prefixes to split.
        """
        config = run.reward_model
        self.module: nn.Module = head.eval()  # eval: no dropout
        # accelerate puts its autocast around the forward of what is trained, for good
        self.plain = RewardHead(head.model).eval()
        self.objective, self.completions = config.objective, Completions(groups)
        owners = choices.rows[:, 0]
        usable = np.zeros(len(groups), dtype=bool)
        usable[owners] = True
        prefixes = [tuple(ids) for ids in self.completions.prompts]
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
            RunError: no example is left, or those of one prefix alone.
        """
        seed = run.reward_model.seed
        try:
            if run.reward_model.objective == Objective.pairs:
                groups, pairs = load_pairs(folder, run.pairs, seed)
                mask = np.ones(pairs.rows.shape, dtype=bool)
                choices = Rankings(pairs.rows, mask, pairs.prompts, pairs.dropped)
            else:
                groups, _ = read(folder)
                choices = draw_choices(groups, run.pairs, seed)
        except RunError as error:
            raise RunError(f"reward_model: {error}") from error
        return cls(head, as_sampled(groups, eos_id), choices, run)

    def batches(self, first: int) -> Iterator[RankingBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            yield RankingBatch(self.completions, self.training.rows[chosen], self.training.mask[chosen])

    def losses(self, scores: Tensor, mask: Tensor) -> Tensor:
        """(choices,) losses of (choices, K) scores, the chosen completion's first."""
        if self.objective == Objective.pairs:
            return bradley_terry(scores[:, 0], scores[:, 1])
        return best_of_k(scores, mask, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))

    def loss(self, module: nn.Module, part: RankingPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part, and how many it got right."""
        part = part.to(next(module.parameters()).device)
        scores = module(part.rows.ids, part.rows.lengths)[part.rankings]
        others = scores.masked_fill(~part.mask, -torch.inf)[:, 1:].amax(-1)
        return self.losses(scores, part.mask).sum(), {"train/accuracy": (scores[:, 0] > others).float().sum()}

    def score(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """(n,) float64 scores of n completions by their row of the table, in the caller's autocast precision."""
        prompts, completions = self.completions.prompts, self.completions.completions
        return score_rows(self.plain, [prompts[i] for i in rows], [completions[i] for i in rows], batch_size)

    def validate(self, batch_size: int) -> dict[str, float]:
        """Accuracy and loss on the validation choices; every process computes all of it."""
        distinct, places = np.unique(self.validation.rows, return_inverse=True)
        scores = self.score(distinct, batch_size)[places.reshape(self.validation.rows.shape)]
        losses = self.losses(torch.as_tensor(scores), torch.as_tensor(self.validation.mask))
        accuracy = choice_accuracy(scores, self.validation.mask)
        return {"eval/accuracy": float(accuracy.mean()), "eval/loss": float(losses.mean())}
