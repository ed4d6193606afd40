"""The two-label reward's network: a causal LM with a head of two labels."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from imdb_rlhf.config.reward import TwoLabelReward
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import completion_mask, configured_layer, located_states, token_logprobs

# The names of dropout rates in transformers' configurations.
DROPOUTS = ["resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"]
DROPOUTS += ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]


class LabelHead(nn.Module):
    """A sequence classifier on a causal LM, read at every position of right-padded rows.

    Under causal attention the logits at a position are those of the text up to there.
    """

    def __init__(self, model: PreTrainedModel, lm_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.lm_weight = model, lm_weight

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score rows at every position.

        Args:
            ids: (rows, time) int64, right-padded.
            lengths: (rows,) int64, at least 1.

        Returns:
            (rows, time, 2) float32 logits of negative and positive, and the (rows,) mean log-prob per next token in
            nats, 0 if `lm_weight` is 0.
        """
        states, indices = located_states(self.model.base_model, ids, lengths)
        inside = completion_mask(ids, torch.zeros_like(lengths), lengths)
        with torch.autocast(ids.device.type, enabled=False):  # in float32, as RewardHead's scores
            logits = cast(Tensor, self.model.score(states.float()))[torch.where(inside, indices, 0)]
        if not self.lm_weight:
            return logits, torch.zeros(len(ids), device=ids.device)
        mask = completion_mask(ids, torch.ones_like(lengths), lengths)
        # tied to the output layer, as `make_head` ensures
        layer = configured_layer(self.model.config, self.model.get_input_embeddings().weight)
        values = token_logprobs(states.index_select(0, indices[mask] - 1), layer, ids[mask])
        owner = mask.nonzero()[:, 0]
        sums = torch.zeros(len(ids), device=ids.device).index_add(0, owner, values)
        return logits, sums / (lengths - 1).clamp(min=1)


def make_head(folder: Path, attention: str, reward: TwoLabelReward, pad_id: int) -> LabelHead:
    """Put a two-label head on the causal LM of a folder: on the CPU, in float32, weights drawn from the reward's seed.

    Args:
        folder: written by `save_pretrained`.
        attention: transformers' attention implementation.
        reward: seed, dropout and weight of the next-token loss.
        pad_id: padding token, is written into the configuration.

    Raises:
        RunError: there is to be a next-token loss, but the model's output layer is not its embedding.
    """
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = AutoConfig.from_pretrained(folder, num_labels=2, trust_remote_code=False, **labels)
    config.pad_token_id = pad_id
    for name in DROPOUTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, reward.dropout)
    if reward.lm_weight and not config.tie_word_embeddings:
        raise RunError("reward.lm_weight needs a model whose output layer is its embedding; set reward.lm_weight=0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reward.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    return LabelHead(model, reward.lm_weight)
