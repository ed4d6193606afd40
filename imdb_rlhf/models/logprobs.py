"""Log-probs of completions and the exact KL between two policies, never holding (tokens x vocabulary) logits.

Rows are right-padded. Under causal attention no position looks to its right, so neither a mask nor position ids are
needed and padding cannot change a result. The output layer is applied to completion positions only, a chunk at a time,
and again in the backward pass; log-softmax and KL are computed in float32 whatever the precision of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Logits held at once, in numbers: small enough for a CPU's cache, large enough for a GPU to be busy.
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}


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
    """Weight (vocabulary, width) and bias (vocabulary,) or None of the layer that makes logits."""
    layer = cast(nn.Linear, lm.get_output_embeddings())
    return layer.weight, getattr(layer, "bias", None)


def hidden_states(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """(rows, time, width) states that the output layer reads, for (rows, time) right-padded ids."""
    return cast(Tensor, lm.base_model(input_ids=ids, use_cache=False).last_hidden_state)


def _chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ weight.t()).float()
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1 else logits / temperature


def _chunks(hidden: Tensor, vocabulary: int) -> range:
    size = max(1, CHUNK.get(hidden.device.type, 1 << 20) // vocabulary)
    return range(0, max(1, len(hidden)), size)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight^T / temperature)[target], chunk by chunk, logits recomputed in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> Tensor:
        table = weight.to(hidden.dtype)
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalisers = torch.empty_like(logprobs)
        steps = _chunks(hidden, len(weight))
        for at in steps:
            part = slice(at, at + steps.step)
            logits = _chunk_logits(hidden[part], table, bias, temperature)
            normalisers[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normalisers[part]
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.temperature = temperature
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        table = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        steps = _chunks(hidden, len(weight))
        for at in steps:
            part = slice(at, at + steps.step)
            logits = _chunk_logits(hidden[part], table, bias, ctx.temperature)
            # d logprob / d logits = onehot(target) - softmax, times the incoming gradient
            scale = gradient[part, None].float() / ctx.temperature
            grad_logits = logits.sub_(normalisers[part, None]).exp_().mul_(-scale)
            grad_logits.scatter_add_(1, targets[part, None], scale)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            lowered = grad_logits.to(hidden.dtype)
            grad_hidden[part] = lowered @ table
            grad_weight += lowered.t() @ hidden[part]
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
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
    with torch.autocast(kind, enabled=False):
        return cast(Tensor, _TokenLogProbs.apply(hidden.to(dtype), weight, bias, targets, temperature))


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
        hidden = hidden_states(self.lm, ids)
        mask = completion_mask(ids, starts, lengths)
        weight, bias = output_layer(self.lm)
        values = token_logprobs(hidden[:, :-1][mask[:, 1:]], weight, bias, ids[mask], self.temperature)
        return torch.zeros(ids.shape, dtype=values.dtype, device=ids.device).masked_scatter(mask, values)


def completion_mask(ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(rows, time) bool: the positions of completion tokens."""
    time = torch.arange(ids.shape[1], device=ids.device)
    return (time >= starts[:, None]) & (time < lengths[:, None])


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
        states = [hidden_states(lm, rows.ids)[:, :-1][mask[:, 1:]].float() for lm in (policy, reference)]
        layers = [output_layer(lm) for lm in (policy, reference)]
        sums = torch.zeros(3, len(rows.ids), dtype=torch.float64, device=rows.ids.device)
        steps = _chunks(states[0], len(layers[0][0]))
        for at in steps if len(targets) else ():
            part = slice(at, at + steps.step)
            log_pi, log_ref = (
                _chunk_logits(state[part], weight.float(), bias, temperature).log_softmax(-1)
                for state, (weight, bias) in zip(states, layers, strict=True)
            )
            chosen = targets[part, None]
            step_kl = (log_pi.exp() * (log_pi - log_ref[:, : log_pi.shape[1]])).sum(-1)
            for row, values in enumerate((log_pi.gather(1, chosen)[:, 0], log_ref.gather(1, chosen)[:, 0], step_kl)):
                sums[row].index_add_(0, owner[part], values.double())
    return Comparison(*sums)
