"""Log-probs of completions, without ever holding (tokens x vocabulary) logits.

Rows are right-padded. Under causal attention no position looks to its right, so neither a mask nor position ids are
needed and padding cannot change a result. The output layer is applied to completion positions only, block by block, and
again in the backward pass; log-softmax is computed in float32 whatever the precision of the model.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model, PreTrainedModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import gpt2
from imdb_rlhf.models.blocks import Blocks, OutputLayer, Probabilities, indices_in, log_sum_exp, tiles
from imdb_rlhf.models.embedding import TiedEmbedding, TiedLookups
from imdb_rlhf.models.products import outside_autocast, rounded_up

# What configurations call a factor of the logits (Cohere; Falcon-H1), a divisor (Granite), and their soft cap (Gemma 2
# and 3; RecurrentGemma).
MULTIPLIERS, DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of prompt + completion.

    Attributes:
        ids: (rows, time) int64 tokens; those beyond `lengths` are not read.
        starts: (rows,) int64, the column where the completion begins, at least 1.
        lengths: (rows,) int64, tokens of prompt + completion.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> "Rows":
        """Join prompts and completions into rows, on the CPU."""
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        ids = torch.zeros(len(lengths), max(lengths, default=1), dtype=torch.int64)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            ids[row, : lengths[row]] = torch.tensor([*prompt, *completion], dtype=torch.int64)
        return Rows(ids, torch.tensor([len(p) for p in prompts]), torch.tensor(lengths))

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        return Rows(self.ids.to(device), self.starts.to(device), self.lengths.to(device))


def output_layer(lm: PreTrainedModel) -> OutputLayer:
    """The layer that computes a model's logits.

    What it does beyond a product is told by the model's configuration; `policy.load` checks it against the model.

    Raises:
        RunError: its weight alone does not give the logits, for example because it is an adapter's.
    """
    layer = lm.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise RunError(
            f"the model's output layer is a {type(layer).__name__}, not a plain linear layer, so its weight alone does "
            "not give the logits; merge adapters into the model first"
        )
    return configured_layer(lm.config, layer.weight, layer.bias)


def configured_layer(config: Any, weight: Tensor, bias: Tensor | None = None) -> OutputLayer:
    """An output layer with the scale and the cap that a model's configuration states."""
    scale, cap = 1.0, None
    for key in MULTIPLIERS:
        scale *= getattr(config, key, None) or 1.0
    for key in DIVISORS:
        scale /= getattr(config, key, None) or 1.0
    for key in CAPS:
        cap = getattr(config, key, None) or cap
    return OutputLayer(weight, bias, scale, cap)


def hidden_states(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """The (rows, time, width) states that the output layer reads, of (rows, time) right-padded ids."""
    return base_states(lm.base_model, ids)


def base_states(base: nn.Module, ids: Tensor) -> Tensor:
    """`hidden_states`, given the model's layers without its output layer."""
    if gpt2.is_plain(base):
        return gpt2.states(cast(GPT2Model, base), ids)
    return cast(Tensor, base(input_ids=ids, use_cache=False).last_hidden_state)


def located_states(
    base: nn.Module, ids: Tensor, lengths: Tensor, embedding: TiedEmbedding | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `base_states` as one flat table, with less padding where the model allows it.

    Args:
        base: the model without its output layer.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each row, at least 1.
        embedding: the model's tied embedding, to add its gradient to the output layer's; None keeps them apart.

    Returns:
        (n, width) states, and (rows, time) int64 the index in them of each token's state (arbitrary for padding).
    """
    rows, time = ids.shape
    if gpt2.is_plain(base):
        states, first = gpt2.packed_states(cast(GPT2Model, base), ids, lengths, embedding)
    else:
        with nullcontext() if embedding is None else TiedLookups(embedding):
            states = base_states(base, ids).reshape(rows * time, -1)
        first = time * torch.arange(rows, device=ids.device)
    return states, first[:, None] + torch.arange(time, device=ids.device)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(logits / temperature)[target], block by block, logits recomputed in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        chosen = hidden.new_zeros(len(hidden), dtype=torch.float32)
        normalisers = torch.full((len(hidden),), -torch.inf, dtype=torch.float64, device=hidden.device)
        parts, blocks = tiles(len(hidden), len(weight), hidden.device.type)
        memory = Blocks(hidden, OutputLayer(weight, bias, scale, cap), parts, blocks, temperature)
        for entries, part in product(blocks, parts):
            logits = memory.logits(part, entries)
            indices, inside = indices_in(targets[part], entries)
            chosen[part] += torch.where(inside, logits.gather(1, indices), 0.0)[:, 0]
            normalisers[part] = torch.logaddexp(normalisers[part], log_sum_exp(logits))
        logprobs = chosen - normalisers.float()
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers.float(), logprobs)
        ctx.temperature, ctx.scale, ctx.cap = temperature, scale, cap
        return logprobs

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, weight, bias, targets, normalisers, logprobs = ctx.saved_tensors
        scale = gradient.float()[:, None] * (ctx.scale / ctx.temperature)
        scaled = (hidden * -scale).to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        # not zeroed, since the first block of tokens writes it: that saves a pass over a table of the vocabulary's size
        allocate = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = allocate(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        parts, blocks = tiles(len(hidden), len(weight), hidden.device.type)
        layer = OutputLayer(weight, bias, ctx.scale, ctx.cap)
        probabilities = Probabilities(hidden, layer, parts, blocks, ctx.temperature, normalisers)
        others = logprobs.exp()[:, None] - 1  # of the target itself: what is rounded is the difference
        for entries in blocks:
            table = probabilities.table(entries)
            for part in parts:
                # -d logprob / d logits = softmax - onehot(target); the incoming gradient, one number per token,
                # multiplies the factors of width columns, which are narrower than a block of the vocabulary
                change, slope = probabilities.block(part, entries)
                indices, inside = indices_in(targets[part], entries)
                here = torch.where(inside, others[part].to(change.dtype), change.gather(1, indices))
                change.scatter_(1, indices, here)
                if slope is not None:
                    change *= slope
                if grad_bias is not None:
                    grad_bias[entries] -= (change * scale[part]).sum(0)
                lowered = change.to(hidden.dtype)
                grad_hidden[part] += lowered @ table
                if grad_weight is None:
                    continue
                product_of_part = lowered.t() @ scaled[part]
                if part.start:
                    grad_weight[entries] += product_of_part
                else:
                    grad_weight[entries] = product_of_part
        return (
            grad_hidden.mul_(-scale).to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def token_logprobs(hidden: Tensor, layer: OutputLayer, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute log-probs of target tokens; logits are float32 whatever the precision of the factors.

    Args:
        hidden: (n, width) states; cast to autocast's precision where autocast is on.
        layer: the output layer.
        targets: (n,) int64 tokens.
        temperature: divides the logits; above 0.

    Returns:
        (n,) float32 log-probs, nats.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    tokens = len(targets)
    spare = rounded_up(tokens) - tokens
    with torch.autocast(kind, enabled=False):
        hidden, targets = F.pad(hidden.to(dtype), (0, 0, 0, spare)), F.pad(targets, (0, spare))
        values = _TokenLogProbs.apply(hidden, layer.weight, layer.bias, targets, temperature, layer.scale, layer.cap)
        return cast(Tensor, values)[:tokens]


class LogProbs(nn.Module):
    """A causal LM whose forward returns log-probs of completion tokens instead of logits.

    The computation is inside `forward` so that the hooks of DDP and FSDP see it.
    """

    def __init__(self, lm: PreTrainedModel, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm = lm
        self.temperature = temperature

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """(rows, time) float32 log-probs; 0 outside the completions. Arguments as in `Rows`."""
        mask = completion_mask(ids, starts, lengths)
        states, layer = states_and_layer(self.lm, ids, lengths, mask)
        values = token_logprobs(states, layer, ids[mask], self.temperature)
        return torch.zeros(ids.shape, dtype=values.dtype, device=ids.device).masked_scatter(mask, values)


def completion_mask(ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(rows, time) bool: the positions of completion tokens."""
    time = torch.arange(ids.shape[1], device=ids.device)
    return (time >= starts[:, None]) & (time < lengths[:, None])


def states_before(
    base: nn.Module, ids: Tensor, lengths: Tensor, mask: Tensor, embedding: TiedEmbedding | None = None
) -> Tensor:
    """Compute the states that predict tokens: the state to the left of each.

    Args:
        base: the model without its output layer.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each row, at least 1.
        mask: (rows, time) bool, true for the n tokens to be predicted, none of them first in its row.
        embedding: as in `located_states`.

    Returns:
        (n, width) states, row by row.

    Raises:
        ValueError: a token of the mask is first in its row.
    """
    if mask[:, 0].any():
        raise ValueError("a completion begins its row: no state precedes its first token")
    states, indices = located_states(base, ids, lengths, embedding)
    return states.index_select(0, indices[mask] - 1)


def states_and_layer(lm: PreTrainedModel, ids: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, OutputLayer]:
    """`states_before` of a causal LM, with its output layer; gradients flow through both."""
    layer = output_layer(lm)
    tied = layer.weight is cast(nn.Embedding, lm.get_input_embeddings()).weight
    # on a CPU alone: a GPU adds gradients of one token in no fixed order, so its results would not repeat
    embedding = TiedEmbedding(layer.weight) if tied and layer.weight.device.type == "cpu" else None
    states = states_before(lm.base_model, ids, lengths, mask, embedding)
    return states, layer if embedding is None else replace(layer, weight=embedding.table)


@torch.no_grad()
def sequence_logprobs(lm: PreTrainedModel, rows: Rows, temperature: float = 1.0) -> Tensor:
    """(rows,) float32 log-probs of the completions, summed over their tokens, without gradients."""
    rows = rows.to(lm.device)
    return cast(Tensor, LogProbs(lm, temperature)(rows.ids, rows.starts, rows.lengths)).sum(-1)
