"""The learned reward's network: a causal LM with a scalar head."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from imdb_rlhf.models.logprobs import Rows, located_states
from imdb_rlhf.seeds import derive


class RewardHead(nn.Module):
    """A one-label sequence classifier on a causal LM, read at the last token of right-padded rows.

    Under causal attention no position looks to its right, so padding cannot change a row's score. The last token is
    found by the row's length and never by the padding token, which may also be a sampled token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def layer(self) -> nn.Linear:
        """The linear map from a state to a score."""
        return cast(nn.Linear, self.model.score)

    @torch.no_grad()
    def scale(self, gain: float) -> None:
        """Multiply all scores by `gain`, by scaling the head's weights."""
        for parameter in self.layer.parameters():
            parameter.mul_(gain)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Score rows.

        Args:
            ids: (rows, time) int64 tokens; those beyond `lengths` are not read.
            lengths: (rows,) int64, at least 1.

        Returns:
            (rows,) float32 scores.
        """
        states, indices = located_states(self.model.base_model, ids, lengths)
        last = states.index_select(0, indices.gather(1, lengths[:, None] - 1)[:, 0])
        # in float32: bf16 has 8 significant bits, so scores that differ by a hundredth would become equal
        with torch.autocast(ids.device.type, enabled=False):
            return self.layer(last.float())[:, 0]


def make_reward_head(folder: Path, attention: str, seed: int, pad_id: int) -> RewardHead:
    """Put a reward head on the causal LM of a folder: on the CPU, in float32, with dropout off.

    The head's weights are drawn from N(0, 1 / (width + 1)), as in lm-human-preferences, and are a function of the seed.

    Args:
        folder: written by `save_pretrained`.
        attention: transformers' attention implementation.
        seed: of the head's weights.
        pad_id: is written into the configuration, for users who load the classifier in transformers; not used here.
    """
    config = AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=False)
    config.pad_token_id = pad_id
    with torch.random.fork_rng(devices=[]):  # transformers draws a head from the global generator
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    head = RewardHead(model).eval()
    weight, random = head.layer.weight, torch.Generator().manual_seed(derive(seed, "reward_head"))
    with torch.no_grad():
        weight.normal_(0.0, (weight.shape[1] + 1) ** -0.5, generator=random)
        if head.layer.bias is not None:
            head.layer.bias.zero_()
    return head


@torch.no_grad()
def score_rows(
    head: RewardHead, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], batch_size: int
) -> np.ndarray:
    """Score token rows in the caller's autocast precision, in batches of similar length to avoid padding.

    Args:
        head: on any device.
        prompts: n lists of tokens.
        completions: n lists of tokens; prompt and completion together have at least one.
        batch_size: rows per batch.

    Returns:
        (n,) float64 scores.
    """
    scores = np.zeros(len(prompts), dtype=np.float64)
    device = head.layer.weight.device
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    order = np.argsort(lengths, kind="stable")
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        rows = Rows.of([prompts[i] for i in part], [completions[i] for i in part]).to(device)
        scores[part] = head(rows.ids, rows.lengths).double().cpu().numpy()
    return scores
