"""Ancestral sampling at a temperature, without truncation, with random numbers of each row's own.

`generate()` of transformers is not used: its defaults truncate, and its draws depend on the other rows of the batch.
Here each row consumes the uniforms of its own prompt. So a prompt draws the same completion in any batch and on any
number of processes (up to rounding), and two policies that are compared see common random numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.config.stages import GenerationConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.next_token import NextToken, next_token
from imdb_rlhf.seeds import generator

# Probabilities that a CPU computes at once: few enough to stay in its cache.
CACHED = 1 << 19


@dataclass(frozen=True)
class Samples:
    """Sampled completions.

    Attributes:
        ids: a list of tokens per row; it ends in EOS if EOS was sampled and is cut at the limit if not.
        finished: whether EOS was sampled, per row.
    """

    ids: list[list[int]]
    finished: list[bool]


def uniforms(seed: int, stage: str, prompt_ids: Sequence[int], samples: int, steps: int) -> np.ndarray:
    """(prompts, samples, steps) float64 in [0, 1), a function of (seed, stage, prompt id) alone."""
    return np.stack([generator(seed, stage, int(prompt)).random((samples, steps)) for prompt in prompt_ids])


def limits(seed: int, stage: str, prompt_ids: Sequence[int], samples: int, generation: GenerationConfig) -> np.ndarray:
    """(prompts, samples) int64, each completion's largest number of tokens: a function of (seed, stage, prompt id)."""
    low, high = generation.shortest_limit, generation.max_new_tokens
    if low is None:
        return np.full((len(prompt_ids), samples), high)
    rows = [generator(seed, f"{stage}/limit", int(p)).integers(low, high + 1, samples) for p in prompt_ids]
    return np.stack(rows)


def batches_by_length(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Group rows into batches of at most `size` and of one length each, so that no padding is read.

    The batches depend on all lengths and not on the number of processes, which take whole batches.

    Returns:
        Row indices, per batch.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    edges = np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1
    return [run[at : at + size] for run in np.split(order, edges) for at in range(0, len(run), size) if len(run)]


def room_for(rows: int, vocabulary: int, device: torch.device) -> Tensor:
    """Working memory for `draw`: (rows, blocks, size) float32 zeros, with about as many blocks as entries per block."""
    size = math.isqrt(vocabulary - 1) + 1
    return torch.zeros(rows, -(-vocabulary // size), size, device=device)


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, room: Tensor | None = None) -> Tensor:
    """Draw a token per row from softmax(logits / temperature), by inversion of the cumulative probabilities.

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows,) in [0, 1).
        temperature: above 0.
        room: `room_for` at least as many rows, is overwritten; None allocates it.

    Returns:
        (rows,) int64 tokens; a token of probability 0 is never drawn.
    """
    rows, vocabulary = logits.shape
    table = room_for(rows, vocabulary, logits.device) if room is None else room[:rows]
    _, blocks, size = table.shape
    weights = table.view(rows, -1)[:, :vocabulary]  # the rest of the table stays 0
    step = max(1, CACHED // vocabulary) if logits.device.type == "cpu" else rows
    sums = torch.empty(rows, blocks, device=logits.device)
    for at in range(0, rows, step):
        part = weights[at : at + step].copy_(logits[at : at + step])
        if temperature != 1:
            part.div_(temperature)
        part.sub_(part.amax(-1, keepdim=True)).exp_()
        torch.sum(table[at : at + step], -1, out=sums[at : at + step])
    # cumulate over blocks to find the block, then within it to find the entry: cheaper than over the whole vocabulary
    block, rest = _invert(sums, uniform[:, None])
    within, _ = _invert(table.gather(1, block.clamp(max=blocks - 1)[:, :, None].expand(rows, 1, size))[:, 0], rest)
    return (block * size + within)[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw an entry per row in proportion to weights that need not sum to 1.

    Args:
        weights: (rows, n), at least 0.
        uniform: (rows, 1) in [0, 1).

    Returns:
        (rows, 1) entries, n if the weights are nan; and (rows, 1) float64, the fraction of the entry's weight below the
        draw, which is uniform in [0, 1) again.
    """
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    # stay below the total: a product that rounds up to it would be beyond the last entry
    threshold = (uniform.to(total) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    entries = torch.searchsorted(cumulative, threshold, right=True)
    last = weights.shape[1] - 1
    upper = cumulative.gather(1, entries.clamp(max=last))
    mass = weights.gather(1, entries.clamp(max=last)).double()
    return entries, (1 - (upper - threshold) / mass).clamp(0, 1)


@torch.no_grad()
def sample(
    policy: PreTrainedModel | NextToken,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor | np.ndarray,
    eos_id: int,
    temperature: float = 1.0,
    limit: np.ndarray | None = None,
) -> Samples:
    """Sample a completion for each prompt until EOS or until its limit.

    Prompts may differ in length. If the decoder does not read whole prompts, a row with a longer prompt reads its
    prompt's next token while others already draw, so that no row waits for another.

    Args:
        policy: a causal LM, or any distribution over the next token; runs in the caller's autocast precision.
        prompts: tokens, at least one per row.
        uniform: (rows, new tokens) in [0, 1).
        eos_id: token that ends a completion.
        temperature: divides the logits; above 0.
        limit: (rows,) largest number of tokens per completion, at most the number of uniforms; None means that number.

    Raises:
        RunError: a logit is nan.
    """
    model = next_token(policy)
    device = model.device
    random = torch.as_tensor(uniform).to(device)
    rows, steps = random.shape
    limits = torch.full((rows,), steps, device=device) if limit is None else torch.as_tensor(limit).to(device)
    padded = Rows.of(prompts, [()] * rows).to(device)
    longest = padded.ids.shape[1]
    completions = torch.full((rows, steps), eos_id, dtype=torch.int64, device=device)
    active = torch.arange(rows, device=device)  # rows of the decoder's cache, in its order
    unfinished = torch.ones(rows, dtype=torch.bool, device=device)  # of the active rows
    decoder = model.open(rows, longest + steps)
    ids, starts = decoder.begin(padded.ids, padded.lengths)
    room = room_for(rows, model.vocabulary, device)
    for column in range(ids.shape[1], longest + steps):
        logits = decoder.read(ids)
        step = column - starts[active]  # index of the new token; below 0 while the prompt is read
        index = step.clamp(0, steps - 1)
        tokens = draw(logits, random[active, index], temperature, room)
        if column < longest:
            tokens = torch.where(step < 0, padded.ids[active, column], tokens)
        written = unfinished & (step >= 0)
        completions[active[written], index[written]] = tokens[written]
        unfinished = unfinished & ((step < 0) | ((tokens != eos_id) & (step + 1 < limits[active])))
        # nan logits invert to a token beyond the vocabulary
        count, broken = torch.stack([unfinished.sum(), (tokens >= logits.shape[-1]).sum()]).tolist()
        if broken:
            raise RunError("a policy's logits are not finite and nothing can be sampled; lower the learning rate")
        if not count:
            break
        # finished rows are dropped only once a quarter is finished, since dropping them copies the cache
        if count < 0.75 * len(active):
            keep = unfinished.nonzero()[:, 0]
            decoder.keep(keep)
            active, tokens, unfinished = active[keep], tokens[keep], unfinished[keep]
        ids = tokens[:, None]
    return _cut(completions, eos_id, limits)


def _cut(completions: Tensor, eos_id: int, limits: Tensor) -> Samples:
    """Cut (rows, steps) tokens behind their first EOS, or at their limit."""
    is_eos = (completions == eos_id) & (torch.arange(completions.shape[1], device=completions.device) < limits[:, None])
    finished = is_eos.any(1)
    lengths = torch.where(finished, is_eos.int().argmax(1) + 1, limits)
    table = cast(list[list[int]], completions.tolist())
    return Samples([row[:n] for row, n in zip(table, lengths.tolist(), strict=True)], finished.tolist())
