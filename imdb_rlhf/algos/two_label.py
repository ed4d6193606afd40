"""The two-label true reward: a sequence-classification head fine-tuned on crops of labelled reviews.

Crops are as long as the texts that the reward will score: a prompt plus the longest completion. The stage also trains
`ngram.py`'s linear classifier on the same crops, so that a reward that learned little is seen at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.config.data import PromptsConfig
from imdb_rlhf.config.reward import Crop, Positions, TwoLabelReward
from imdb_rlhf.data.prompts import beginning
from imdb_rlhf.losses import two_label_cross_entropy
from imdb_rlhf.models.label_head import LabelHead
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.loop import Plain


def crop(
    tokens: Sequence[int], where: Crop, prompts: PromptsConfig, new_tokens: int, seed: int, *names: str | int
) -> list[int]:
    """A piece of a review, as long as the texts that will be scored; a function of (seed, names).

    Args:
        tokens: a whole review.
        where: at its opening, anywhere in it, or one of the two with equal odds.
        prompts: the lengths of the shortest and the longest prompt.
        new_tokens: the length of the longest completion.
        seed: of the length and the place, with `names`.
        *names: what the crop is for, pass, index.
    """
    random = generator(seed, *names)
    length = int(random.integers(prompts.min_tokens, prompts.max_tokens + 1)) + new_tokens
    start = int(random.integers(0, max(1, len(tokens) - length + 1)))
    if where == Crop.opening or (where == Crop.mixed and random.random() < 0.5):
        start = 0
    return list(tokens[start : start + length])


@dataclass(frozen=True)
class LabelledRows:
    """Right-padded rows with labels, the input of one forward pass.

    Attributes:
        ids: (rows, time) int64.
        lengths: (rows,) int64.
        labels: (rows,) int64, 1 for positive.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelledBatch:
    """A global batch of crops with labels; `size` is their number."""

    notes: ClassVar[Mapping[str, float]] = {}
    rows: Sequence[list[int]]
    labels: np.ndarray
    size: float

    def parts(self, rank: int, world: int, limit: int | None) -> list[LabelledRows]:
        """This process's rows, right-padded."""
        parts = []
        for piece in share(np.arange(len(self.rows)), rank, world, limit):
            lengths = [len(self.rows[i]) for i in piece]
            ids = torch.zeros(len(piece), max(lengths), dtype=torch.int64)
            for row, index in enumerate(piece):
                ids[row, : lengths[row]] = torch.tensor(self.rows[index])
            parts.append(LabelledRows(ids, torch.tensor(lengths), torch.as_tensor(self.labels[piece])))
        return parts


def position_weights(lengths: Tensor, time: int, positions: Positions) -> Tensor:
    """(rows, time) weights that sum to 1 per row: all on the last token, or even over the second half of the row.

    Args:
        lengths: (rows,) int64, at least 1.
        time: number of columns.
        positions: where the label is predicted.
    """
    at = torch.arange(time, device=lengths.device)
    first = lengths - 1 if positions == Positions.last else lengths // 2
    mask = ((at >= first[:, None]) & (at < lengths[:, None])).float()
    return mask / mask.sum(1, keepdim=True)


class TwoLabel(Plain):
    """Minimises the cross-entropy of labels given crops; each pass draws new crops."""

    stage = "two_label"

    def __init__(
        self,
        head: LabelHead,
        reviews: Sequence[Sequence[int]],
        labels: Sequence[int],
        config: TwoLabelReward,
        prompts: PromptsConfig,
        new_tokens: int,
        bos_id: int | None,
    ) -> None:
        self.module: nn.Module = head.train()
        self.reviews, self.labels = reviews, np.asarray(labels, dtype=np.int64)
        self.config, self.sizes, self.bos_id = config, (prompts, new_tokens), bos_id
        self.steps = steps_for(len(reviews), config.batch_size, config.epochs)
        self.stream = Stream(
            len(reviews),
            config.batch_size,
            lambda epoch: generator(config.seed, "two_label", epoch).permutation(len(reviews)),
        )

    def crop_of(self, index: int, epoch: int) -> list[int]:
        """The crop of a review in a pass, after BOS if rows begin with it."""
        names = ("crop", epoch, int(index))
        piece = crop(self.reviews[index], self.config.crop, *self.sizes, self.config.seed, *names)
        return [*beginning(self.bos_id), *piece]

    def batches(self, first: int) -> Iterator[LabelledBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            epochs = np.arange(step * len(chosen), (step + 1) * len(chosen)) // len(self.reviews)
            rows = [self.crop_of(index, int(epoch)) for index, epoch in zip(chosen, epochs, strict=True)]
            yield LabelledBatch(rows, self.labels[chosen], float(len(rows)))

    def loss(self, module: nn.Module, part: LabelledRows) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part in nats (cross-entropy and weighted next-token loss), and how many are right."""
        device = next(module.parameters()).device
        labels, lengths = part.labels.to(device), part.lengths.to(device)
        logits, next_token = module(part.ids.to(device), lengths)
        rows, time, _ = logits.shape
        losses = two_label_cross_entropy(logits.reshape(-1, 2), labels.repeat_interleave(time)).reshape(rows, time)
        weights = position_weights(lengths, time, self.config.positions)
        last = logits[torch.arange(rows, device=device), lengths - 1]
        loss = (losses * weights).sum() - self.config.lm_weight * next_token.sum()
        return loss, {"train/accuracy": (last.argmax(-1) == labels).float().sum()}
