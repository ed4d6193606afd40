"""The two-label true reward: a sequence-classification head fine-tuned on crops of labelled reviews.

Crops have the lengths that will be scored: a prompt's length plus the completion limit. A linear n-gram classifier is
trained on the same crops and held to the same account, so that a reward that learned little is seen at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.config.data import PromptsConfig
from imdb_rlhf.config.reward import Crop, Positions, TwoLabelReward
from imdb_rlhf.errors import RunError
from imdb_rlhf.losses import two_label_cross_entropy
from imdb_rlhf.models.logprobs import completion_mask, located_states, token_logprobs
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.loop import Plain

DROPOUTS = ["resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"]
DROPOUTS += ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]


@dataclass(frozen=True)
class LabelledRows:
    """Right-padded rows with labels: ids (rows, time), lengths (rows,), labels (rows,), all int64."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor


class Head(nn.Module):
    """A sequence classifier on a causal LM, read at every position of right-padded rows.

    What it says at a position depends on nothing to the right, so it is what it would say of the text cut there.
    """

    def __init__(self, model: PreTrainedModel, lm_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.lm_weight = model, lm_weight

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, time, 2) logits of negative and positive; (rows,) mean log-prob of a next token, 0 at weight 0."""
        states, places = located_states(self.model.base_model, ids, lengths)
        inside = completion_mask(ids, torch.zeros_like(lengths), lengths)
        logits = cast(Tensor, self.model.score(states))[torch.where(inside, places, 0)]
        if not self.lm_weight:
            return logits, torch.zeros(len(ids), device=ids.device)
        mask = completion_mask(ids, torch.ones_like(lengths), lengths)
        table = self.model.get_input_embeddings().weight  # tied to the output layer; `make_head` sees to it
        values = token_logprobs(states.index_select(0, places[mask] - 1), table, None, ids[mask])
        owner = mask.nonzero()[:, 0]
        sums = torch.zeros(len(ids), device=ids.device).index_add(0, owner, values)
        return logits, sums / (lengths - 1).clamp(min=1)


def position_weights(lengths: Tensor, time: int, positions: Positions) -> Tensor:
    """(rows, time) weights that sum to 1 a row: all on the last token, or even over the second half of the row.

    Args:
        lengths: (rows,) int64, at least 1.
        time: columns.
        positions: where the label is predicted.
    """
    at = torch.arange(time, device=lengths.device)
    first = lengths - 1 if positions == Positions.last else lengths // 2
    mask = ((at >= first[:, None]) & (at < lengths[:, None])).float()
    return mask / mask.sum(1, keepdim=True)


def make_head(folder: Path, attention: str, wanted: TwoLabelReward, pad_id: int) -> Head:
    """A two-label head on the causal LM of a folder; the head's weights are a function of the seed.

    Raises:
        RunError: a next-token loss is wanted of a model whose output layer is not its embedding.
    """
    config = AutoConfig.from_pretrained(
        folder, num_labels=2, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
    )
    config.pad_token_id = pad_id
    for name in DROPOUTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, wanted.dropout)
    if wanted.lm_weight and not config.tie_word_embeddings:
        raise RunError("reward.lm_weight needs a model whose output layer is its embedding; set reward.lm_weight=0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=attention
        )
    return Head(model, wanted.lm_weight)


def crop(
    tokens: Sequence[int], where: Crop, prompts: PromptsConfig, new_tokens: int, seed: int, *names: str | int
) -> list[int]:
    """A piece of a review as long as what will be scored, a function of (seed, names).

    Args:
        tokens: a whole review.
        where: at its opening, anywhere in it, or one of the two with equal odds.
        prompts: the shortest and the longest prompt.
        new_tokens: the longest completion.
        seed: with `names`, of the length and the place.
        *names: stage, pass, index.
    """
    random = generator(seed, *names)
    length = int(random.integers(prompts.min_tokens, prompts.max_tokens + 1)) + new_tokens
    start = int(random.integers(0, max(1, len(tokens) - length + 1)))
    if where == Crop.opening or (where == Crop.mixed and random.random() < 0.5):
        start = 0
    return list(tokens[start : start + length])


@dataclass(frozen=True)
class LabelledBatch:
    """A global batch of crops with labels."""

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


class TwoLabel(Plain):
    """Minimises the cross-entropy of labels given crops; each pass crops anew."""

    stage = "two_label"

    def __init__(
        self,
        head: Head,
        reviews: Sequence[Sequence[int]],
        labels: Sequence[int],
        config: TwoLabelReward,
        prompts: PromptsConfig,
        new_tokens: int,
    ) -> None:
        self.module: nn.Module = head.train()
        self.reviews, self.labels = reviews, np.asarray(labels, dtype=np.int64)
        self.config, self.prompts, self.new_tokens = config, prompts, new_tokens
        self.steps = steps_for(len(reviews), config.batch_size, config.epochs)
        self.stream = Stream(
            len(reviews),
            config.batch_size,
            lambda epoch: generator(config.seed, "two_label", epoch).permutation(len(reviews)),
        )

    def crop_of(self, index: int, epoch: int) -> list[int]:
        """The crop of a review in a pass."""
        names = ("crop", epoch, int(index))
        return crop(self.reviews[index], self.config.crop, self.prompts, self.new_tokens, self.config.seed, *names)

    def batches(self, first: int) -> Iterator[LabelledBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            chosen = self.stream.at(step)
            epochs = np.arange(step * len(chosen), (step + 1) * len(chosen)) // len(self.reviews)
            rows = [self.crop_of(index, int(epoch)) for index, epoch in zip(chosen, epochs, strict=True)]
            yield LabelledBatch(rows, self.labels[chosen], float(len(rows)))

    def loss(self, module: nn.Module, part: LabelledRows) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed cross-entropy of a part, and how many it got right."""
        device = next(module.parameters()).device
        labels, lengths = part.labels.to(device), part.lengths.to(device)
        logits, next_token = module(part.ids.to(device), lengths)
        rows, time, _ = logits.shape
        losses = two_label_cross_entropy(logits.reshape(-1, 2), labels.repeat_interleave(time)).reshape(rows, time)
        weights = position_weights(lengths, time, self.config.positions)
        last = logits[torch.arange(rows, device=device), lengths - 1]
        loss = (losses * weights).sum() - self.config.lm_weight * next_token.sum()
        return loss, {"train/accuracy": (last.argmax(-1) == labels).float().sum()}


def ngram_accuracy(
    texts: Sequence[str], labels: Sequence[int], held_out: Sequence[str], held_out_labels: Sequence[int]
) -> float:
    """Accuracy of a logistic regression on uni- and bigrams weighted by naive-Bayes log-count ratios.

    The features of Wang and Manning (2012), "Baselines and Bigrams", section 2: presence of an n-gram times the log of
    its smoothed share among positive over its share among negative texts.
    """
    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, min_df=2)
    features, truth = vectorizer.fit_transform(texts), np.asarray(labels)
    counts = [np.asarray(features[truth == label].sum(0)).ravel() + 1.0 for label in (1, 0)]
    ratio = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
    model = LogisticRegression(C=0.1, max_iter=300).fit(features.multiply(ratio).tocsr(), truth)
    return float(model.score(vectorizer.transform(held_out).multiply(ratio).tocsr(), np.asarray(held_out_labels)))
