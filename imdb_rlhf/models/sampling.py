"""Ancestral sampling at a temperature, without truncation, with random numbers that belong to the row.

`generate()` of transformers is not used: its defaults truncate, and its draws depend on the other rows of the batch.
Here row i consumes the uniforms of its own prompt, so the same prompt draws the same completion in any batch and on any
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
from imdb_rlhf.models.decoding import open_decoder
from imdb_rlhf.models.logprobs import Rows, output_layer
from imdb_rlhf.seeds import generator

# Numbers of a distribution that a CPU works on at once.
CACHED = 1 << 19


@dataclass(frozen=True)
class Samples:
    """Sampled completions.

    Attributes:
        ids: a list of tokens a row; ends in EOS where EOS was sampled, else cut at the limit.
        finished: a bool a row: EOS was sampled.
    """

    ids: list[list[int]]
    finished: list[bool]


def uniforms(seed: int, stage: str, prompt_ids: Sequence[int], samples: int, steps: int) -> np.ndarray:
    """(prompts, samples, steps) float64 in [0, 1), a function of (seed, stage, prompt id) alone."""
    return np.stack([generator(seed, stage, int(prompt)).random((samples, steps)) for prompt in prompt_ids])


def limits(seed: int, stage: str, prompt_ids: Sequence[int], samples: int, generation: GenerationConfig) -> np.ndarray:
    """(prompts, samples) int64, how many tokens each completion may have: a function of (seed, stage, prompt id)."""
    low, high = generation.shortest_limit, generation.max_new_tokens
    if low is None:
        return np.full((len(prompt_ids), samples), high)
    drawn = [generator(seed, f"{stage}/limit", int(p)).integers(low, high + 1, samples) for p in prompt_ids]
    return np.stack(drawn)


def batches_by_length(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Indices in batches of at most `size` whose rows are of one length, so that nothing is read in vain.

    The batches are a function of all lengths; processes share them out whole.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    edges = np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1
    return [run[at : at + size] for run in np.split(order, edges) for at in range(0, len(run), size) if len(run)]


def room_for(rows: int, vocabulary: int, device: torch.device) -> Tensor:
    """(rows, blocks, size) float32 zeros that `draw` works in; blocks and size are about as many."""
    size = math.isqrt(vocabulary - 1) + 1
    return torch.zeros(rows, -(-vocabulary // size), size, device=device)


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, room: Tensor | None = None) -> Tensor:
    """Inverse-CDF draws from softmax(logits / temperature).

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows,) in [0, 1).
        temperature: above 0.
        room: `room_for` at least as many rows, written over; None makes it.

    Returns:
        (rows,) int64 tokens; one of probability 0 is never drawn.
    """
    rows, vocabulary = logits.shape
    table = room_for(rows, vocabulary, logits.device) if room is None else room[:rows]
    _, blocks, size = table.shape
    weights = table.view(rows, -1)[:, :vocabulary]  # what is beyond stays 0
    step = max(1, CACHED // vocabulary) if logits.device.type == "cpu" else rows
    sums = torch.empty(rows, blocks, device=logits.device)
    for at in range(0, rows, step):
        part = weights[at : at + step].copy_(logits[at : at + step])
        if temperature != 1:
            part.div_(temperature)
        part.sub_(part.amax(-1, keepdim=True)).exp_()
        torch.sum(table[at : at + step], -1, out=sums[at : at + step])
    # a running sum over all entries is what costs: one over blocks finds the block, and one within it the entry
    block, rest = _invert(sums, uniform[:, None])
    within, _ = _invert(table.gather(1, block.clamp(max=blocks - 1)[:, :, None].expand(rows, 1, size))[:, 0], rest)
    return (block * size + within)[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF draws from weights that need not sum to 1.

    Args:
        weights: (rows, n), at least 0.
        uniform: (rows, 1) in [0, 1).

    Returns:
        (rows, 1) entries, and (rows, 1) float64 how far into its own weight each draw fell: uniform in [0, 1) again.
        An entry is n where weights are nan.
    """
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    # a product that rounds up to the total would fall off the end
    threshold = (uniform.to(total) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, threshold, right=True)
    last = weights.shape[1] - 1
    upper = cumulative.gather(1, found.clamp(max=last))
    mass = weights.gather(1, found.clamp(max=last)).double()
    return found, (1 - (upper - threshold) / mass).clamp(0, 1)


@torch.no_grad()
def sample(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor | np.ndarray,
    eos_id: int,
    temperature: float = 1.0,
    limit: np.ndarray | None = None,
) -> Samples:
    """Sample a completion for each prompt until EOS or until the uniforms run out.

    Prompts may differ in length. Where the decoder does not read them whole, a row whose prompt is longer is given its
    prompt's next token while others already draw, so that no row waits for another length.

    Args:
        lm: the policy; runs in the caller's autocast precision.
        prompts: tokens, at least one a row.
        uniform: (rows, new tokens) in [0, 1).
        eos_id: token that ends a completion.
        temperature: divides the logits; above 0.
        limit: (rows,) tokens that each may have, at most as many as uniforms; None is as many.

    Raises:
        RunError: a logit is nan.
    """
    device = lm.device
    random = torch.as_tensor(uniform).to(device)
    rows, steps = random.shape
    most = torch.full((rows,), steps, device=device) if limit is None else torch.as_tensor(limit).to(device)
    heads = Rows.of(prompts, [()] * rows).to(device)
    given, longest = heads.ids, heads.ids.shape[1]
    tokens = torch.full((rows, steps), eos_id, dtype=torch.int64, device=device)
    alive = torch.arange(rows, device=device)  # rows still being written, in the order of the cache
    going = torch.ones(rows, dtype=torch.bool, device=device)  # of those that are alive, which are not finished
    decoder = open_decoder(lm, rows, longest + steps)
    ids, starts = decoder.begin(given, heads.lengths)
    room = room_for(rows, len(output_layer(lm)[0]), device)
    for column in range(ids.shape[1], longest + steps):
        logits = decoder.read(ids)
        step = column - starts[alive]  # which new token it is; below 0 within the prompt
        place = step.clamp(0, steps - 1)
        drawn = draw(logits, random[alive, place], temperature, room)
        if column < longest:
            drawn = torch.where(step < 0, given[alive, column], drawn)
        written = going & (step >= 0)
        tokens[alive[written], place[written]] = drawn[written]
        going = going & ((step < 0) | ((drawn != eos_id) & (step + 1 < most[alive])))
        # nan logits invert to a token beyond the vocabulary
        left, broken = torch.stack([going.sum(), (drawn >= logits.shape[-1]).sum()]).tolist()
        if broken:
            raise RunError("a policy's logits are not finite and nothing can be sampled; lower the learning rate")
        if not left:
            break
        # finished rows are dropped once they are many: copying the cache has its price
        if left < 0.75 * len(alive):
            keep = going.nonzero()[:, 0]
            decoder.keep(keep)
            alive, drawn, going = alive[keep], drawn[keep], going[keep]
        ids = drawn[:, None]
    return _cut(tokens, eos_id, most)


def _cut(tokens: Tensor, eos_id: int, limit: Tensor) -> Samples:
    is_eos = (tokens == eos_id) & (torch.arange(tokens.shape[1], device=tokens.device) < limit[:, None])
    finished = is_eos.any(1)
    lengths = torch.where(finished, is_eos.int().argmax(1) + 1, limit)
    table = cast(list[list[int]], tokens.tolist())
    return Samples([row[:n] for row, n in zip(table, lengths.tolist(), strict=True)], finished.tolist())
