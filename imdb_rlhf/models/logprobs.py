"""Log-probs of completions and the exact KL between two policies, never holding (tokens x vocabulary) logits.

Rows are right-padded. Under causal attention no position looks to its right, so neither a mask nor position ids are
needed and padding cannot change a result. The output layer is applied to completion positions only, a chunk at a time,
and again in the backward pass; log-softmax and KL are computed in float32 whatever the precision of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model, PreTrainedModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import gpt2
from imdb_rlhf.models.blocks import Blocks, Normaliser, places_in, slices
from imdb_rlhf.models.embedding import Shared
from imdb_rlhf.models.products import few_sizes, outside_autocast

# Logits held at once, in numbers: small enough for a CPU's cache, large enough for a GPU to be busy.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
# Entries of the vocabulary in a block of logits. A larger vocabulary is cut, so that many tokens share a block: the
# gradient of the output layer, as large as the layer, is then written once and not once a handful of tokens.
TILE = {"cpu": 1 << 10, "cuda": 1 << 14}


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of prompt + completion.

    Attributes:
        ids: (rows, time) int64 tokens; what stands beyond `lengths` is not read.
        starts: (rows,) int64, where the completion begins, at least 1.
        lengths: (rows,) int64, tokens of prompt + completion.
    """

    ids: Tensor
    starts: Tensor
    lengths: Tensor

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> "Rows":
        """Join prompts and completions, one row each, on the CPU."""
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        ids = torch.zeros(len(lengths), max(lengths, default=1), dtype=torch.int64)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            ids[row, : lengths[row]] = torch.tensor([*prompt, *completion], dtype=torch.int64)
        return Rows(ids, torch.tensor([len(p) for p in prompts]), torch.tensor(lengths))

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        return Rows(self.ids.to(device), self.starts.to(device), self.lengths.to(device))


def output_layer(lm: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight (vocabulary, width) and bias (vocabulary,) or None of the layer that makes logits.

    Raises:
        RunError: the layer does more than multiply by a weight, as an adapter's does.
    """
    layer = lm.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise RunError(
            f"the model's output layer is a {type(layer).__name__} and no plain linear one, so its weight does not "
            "tell its logits; merge adapters into the model first"
        )
    return layer.weight, layer.bias


def hidden_states(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """(rows, time, width) states that the output layer reads, for (rows, time) right-padded ids."""
    return base_states(lm.base_model, ids)


def base_states(base: nn.Module, ids: Tensor) -> Tensor:
    """`hidden_states` of a model's layers alone."""
    if gpt2.is_plain(base):
        return gpt2.states(cast(GPT2Model, base), ids)
    return cast(Tensor, base(input_ids=ids, use_cache=False).last_hidden_state)


def located_states(
    base: nn.Module, ids: Tensor, lengths: Tensor, embedding: Shared | None = None
) -> tuple[Tensor, Tensor]:
    """`base_states` one behind the other, with less padding where the model allows it.

    Args:
        base: a model's layers.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each row, at least 1.
        embedding: the model's own, where its gradient is to join the output layer's.

    Returns:
        (n, width) states, and (rows, time) int64 where in them a token's state stands; of padding it means nothing.
    """
    rows, time = ids.shape
    if gpt2.is_plain(base):
        found, first = gpt2.packed_states(cast(GPT2Model, base), ids, lengths, embedding)
    else:
        found = base_states(base, ids).reshape(rows * time, -1)
        first = time * torch.arange(rows, device=ids.device)
    return found, first[:, None] + torch.arange(time, device=ids.device)


def _tiles(tokens: int, vocabulary: int, device: str) -> tuple[list[slice], list[slice]]:
    """Blocks of tokens and of the vocabulary whose product is at most CHUNK numbers, blocks of tokens alike in size."""
    entries = min(vocabulary, TILE.get(device, TILE["cpu"]))
    most = max(1, CHUNK.get(device, CHUNK["cpu"]) // entries)
    size = -(-tokens // -(-tokens // most)) if tokens else 1
    return slices(tokens, size), slices(vocabulary, entries)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight^T / temperature)[target], block by block, logits recomputed in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> Tensor:
        table = weight.to(hidden.dtype)
        chosen = hidden.new_zeros(len(hidden), dtype=torch.float32)
        normaliser = Normaliser.of(len(hidden), hidden.device)
        parts, blocks = _tiles(len(hidden), len(weight), hidden.device.type)
        made = Blocks(hidden, parts, blocks)
        for entries, part in product(blocks, parts):
            logits = made.logits(hidden[part], (table, bias), entries, temperature)
            places, inside = places_in(targets[part], entries)
            chosen[part] += torch.where(inside, logits.gather(1, places), 0.0)[:, 0]
            normaliser.add(part, logits)
        normalisers = normaliser.value().float()
        ctx.save_for_backward(hidden, table, bias, targets, normalisers)
        ctx.temperature, ctx.dtype = temperature, weight.dtype
        return chosen - normalisers

    @staticmethod
    @outside_autocast
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, table, bias, targets, normalisers = ctx.saved_tensors
        scale = gradient.float()[:, None] / ctx.temperature
        scaled = (hidden * -scale).to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        # written by the first block of tokens: a table of the vocabulary is not touched more often than it must be
        make = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = make(table, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        parts, blocks = _tiles(len(hidden), len(table), hidden.device.type)
        made = Blocks(hidden, parts, blocks)
        for entries, part in product(blocks, parts):
            logits = made.logits(hidden[part], (table, bias), entries, ctx.temperature)
            # -d logprob / d logits = softmax - onehot(target); the incoming gradient, one number a token, multiplies
            # the narrow factors
            change = logits.sub_(normalisers[part, None]).exp_()
            places, inside = places_in(targets[part], entries)
            change.scatter_add_(1, places, -inside.float())
            if grad_bias is not None:
                grad_bias[entries] -= (change * scale[part]).sum(0)
            lowered = made.lowered(change)
            grad_hidden[part] += lowered @ table[entries]
            if grad_weight is None:
                continue
            product_of_part = lowered.t() @ scaled[part]
            if part.start:
                grad_weight[entries] += product_of_part
            else:
                grad_weight[entries] = product_of_part
        return (
            grad_hidden.mul_(-scale).to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(ctx.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probs of target tokens.

    Args:
        hidden: (n, width) states; cast to the autocast precision where one is on.
        weight: (vocabulary, width) output layer.
        bias: (vocabulary,) or None.
        targets: (n,) int64 tokens.
        temperature: divides the logits; above 0.

    Returns:
        (n,) float32 log-probs, nats.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    tokens = len(targets)
    spare = few_sizes(tokens) - tokens
    with torch.autocast(kind, enabled=False):
        hidden, targets = F.pad(hidden.to(dtype), (0, 0, 0, spare)), F.pad(targets, (0, spare))
        return cast(Tensor, _TokenLogProbs.apply(hidden, weight, bias, targets, temperature))[:tokens]


class LogProbs(nn.Module):
    """A causal LM whose forward returns log-probs of completion tokens instead of logits.

    The computation stands inside `forward` so that the hooks of DDP and FSDP see it.
    """

    def __init__(self, lm: PreTrainedModel, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm = lm
        self.temperature = temperature

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """(rows, time) float32 log-probs; 0 outside the completions. Arguments as in `Rows`."""
        mask = completion_mask(ids, starts, lengths)
        states, weight, bias = states_and_layer(self.lm, ids, lengths, mask)
        values = token_logprobs(states, weight, bias, ids[mask], self.temperature)
        return torch.zeros(ids.shape, dtype=values.dtype, device=ids.device).masked_scatter(mask, values)


def completion_mask(ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(rows, time) bool: the positions of completion tokens."""
    time = torch.arange(ids.shape[1], device=ids.device)
    return (time >= starts[:, None]) & (time < lengths[:, None])


def states_before(
    base: nn.Module, ids: Tensor, lengths: Tensor, mask: Tensor, embedding: Shared | None = None
) -> Tensor:
    """The states that tokens are drawn in: of each one the state to its left.

    Args:
        base: a model's layers.
        ids: (rows, time) int64 right-padded tokens.
        lengths: (rows,) int64 tokens of each row, at least 1.
        mask: (rows, time) bool, n tokens, none of them first in its row.
        embedding: as in `located_states`.

    Returns:
        (n, width), row by row.

    Raises:
        ValueError: a token of the mask is first in its row.
    """
    if mask[:, 0].any():
        raise ValueError("a completion stands first in its row: there is no state that its first token is drawn in")
    found, places = located_states(base, ids, lengths, embedding)
    return found.index_select(0, places[mask] - 1)


def states_and_layer(
    lm: PreTrainedModel, ids: Tensor, lengths: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`states_before` of a causal LM, and weight and bias of its output layer, for gradients through both."""
    weight, bias = output_layer(lm)
    tied = weight is cast(nn.Embedding, lm.get_input_embeddings()).weight
    # rows are added one after the other, in an order that a GPU does not keep
    shared = Shared(weight) if tied and weight.device.type == "cpu" else None
    states = states_before(lm.base_model, ids, lengths, mask, shared)
    return states, weight if shared is None else shared.table, bias


@torch.no_grad()
def sequence_logprobs(lm: PreTrainedModel, rows: Rows, temperature: float = 1.0) -> Tensor:
    """(rows,) float32 log-probs of the completions, summed over their tokens, without gradient."""
    rows = rows.to(lm.device)
    return cast(Tensor, LogProbs(lm, temperature)(rows.ids, rows.starts, rows.lengths)).sum(-1)


@dataclass(frozen=True)
class Comparison:
    """What a policy and a reference say of the same completions, (rows,) float64 each, nats per sequence.

    Attributes:
        logprob: log pi(y|x).
        ref_logprob: log ref(y|x).
        kl: the sum over the visited steps of KL(pi(.|step) || ref(.|step)) over the whole vocabulary: unbiased for the
            sequence KL where y is a sample of pi, with less variance than log pi - log ref (arXiv 2504.10637).
    """

    logprob: Tensor
    ref_logprob: Tensor
    kl: Tensor


@torch.no_grad()
def compare(policy: PreTrainedModel, reference: PreTrainedModel, rows: Rows, temperature: float = 1.0) -> Comparison:
    """Score completions under both models, in float32, with the exact KL of every step.

    Args:
        policy: whose samples the completions are.
        reference: of the same vocabulary; it may have more entries (padding), which the policy never samples.
        rows: the completions.
        temperature: divides the logits of both.
    """
    rows = rows.to(policy.device)
    mask = completion_mask(rows.ids, rows.starts, rows.lengths)
    owner = mask.nonzero()[:, 0]
    targets = rows.ids[mask]
    with torch.autocast(rows.ids.device.type, enabled=False):
        states = [states_before(lm.base_model, rows.ids, rows.lengths, mask).float() for lm in (policy, reference)]
        layers = [output_layer(lm) for lm in (policy, reference)]
        values = _divergence(states, layers, targets, temperature)
    sums = torch.zeros(3, len(rows.ids), dtype=torch.float64, device=rows.ids.device)
    return Comparison(*sums.index_add_(1, owner, values))


def _divergence(
    states: list[Tensor], layers: list[tuple[Tensor, Tensor | None]], targets: Tensor, temperature: float
) -> Tensor:
    """(3, n) float64: log-probs of the targets under policy and reference, and the KL of the steps.

    With l and m the logits of policy and reference, KL = E[l - m] - logsumexp(l) + logsumexp(m), the expectation under
    the policy; all three are summed block by block of the vocabulary.
    """
    tokens, device = len(targets), targets.device
    own, others = (len(weight) for weight, _ in layers)
    normalisers = [Normaliser.of(tokens, device) for _ in layers]
    chosen = torch.zeros(2, tokens, dtype=torch.float64, device=device)
    gap = torch.zeros(tokens, dtype=torch.float64, device=device)  # sum of exp(l - top) (l - m)
    parts, blocks = _tiles(tokens, own, device.type)
    made = [Blocks(state, parts, blocks) for state in states]
    for entries, part in product(blocks, parts):
        policy, reference = (
            room.logits(state[part], layer, entries, temperature)
            for room, state, layer in zip(made, states, layers, strict=True)
        )
        places, inside = places_in(targets[part], entries)
        for which, logits in enumerate((policy, reference)):
            chosen[which, part] += torch.where(inside, logits.gather(1, places), 0.0)[:, 0]
        difference = policy - reference
        shrink, weights = normalisers[0].add(part, policy)
        gap[part] = gap[part] * shrink + (weights * difference).sum(-1)
        normalisers[1].add(part, reference)
    # entries that the policy lacks, and never samples, are in the reference's normaliser alone
    for entries, part in product(slices(others, blocks[0].stop, first=own), parts):
        normalisers[1].add(part, made[1].logits(states[1][part], layers[1], entries, temperature))
    ends = torch.stack([normaliser.value() for normaliser in normalisers])
    kl = gap / normalisers[0].total - ends[0] + ends[1]
    return torch.cat([chosen - ends, kl[None]])
