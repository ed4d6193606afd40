"""The exact KL between two policies at the steps of their completions, block by block of the vocabulary, in float32."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.models.blocks import Normaliser, indices_in, slices, tiles
from imdb_rlhf.models.logprobs import Rows, completion_mask
from imdb_rlhf.models.next_token import NextToken, next_token


@dataclass(frozen=True)
class Comparison:
    """Completions scored under a policy and its reference, (rows,) float64 each, nats per sequence.

    Attributes:
        logprob: log pi(y|x).
        ref_logprob: log ref(y|x).
        kl: the sum over the visited steps of KL(pi(.|step) || ref(.|step)) over the whole vocabulary. If y is a sample
            of pi, it is an unbiased estimate of the sequence KL, with less variance than log pi - log ref (arXiv
            2504.10637).
    """

    logprob: Tensor
    ref_logprob: Tensor
    kl: Tensor


@torch.no_grad()
def compare(
    policy: PreTrainedModel | NextToken,
    reference: PreTrainedModel | NextToken,
    rows: Rows,
    temperature: float = 1.0,
) -> Comparison:
    """Score completions under both policies, in float32, with the exact KL of every step.

    Args:
        policy: the model, or the distribution over the next token, that sampled the completions.
        reference: one with the same vocabulary; it may have more entries (padding), which the policy never samples.
        rows: prompts and completions.
        temperature: divides the logits of both.
    """
    both = [next_token(policy), next_token(reference)]
    rows = rows.to(both[0].device)
    mask = completion_mask(rows.ids, rows.starts, rows.lengths)
    owner = mask.nonzero()[:, 0]
    targets = rows.ids[mask]
    with torch.autocast(rows.ids.device.type, enabled=False):
        states = [each.states(rows.ids, rows.lengths, mask) for each in both]
        values = _divergence(both, states, targets, temperature)
    sums = torch.zeros(3, len(rows.ids), dtype=torch.float64, device=rows.ids.device)
    return Comparison(*sums.index_add_(1, owner, values))


def _divergence(both: list[NextToken], states: list[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """(3, n) float64: log-probs of the targets under policy and reference, and the KL of the steps.

    With l and m the logits of policy and reference, KL = E[l - m] - logsumexp(l) + logsumexp(m), where the expectation
    is under the policy. All three terms are accumulated block by block of the vocabulary.
    """
    tokens, device = len(targets), targets.device
    policy_entries, reference_entries = (each.vocabulary for each in both)
    normalisers = [Normaliser.of(tokens, device) for _ in both]
    chosen = torch.zeros(2, tokens, dtype=torch.float64, device=device)
    gap = torch.zeros(tokens, dtype=torch.float64, device=device)  # sum of exp(l - top) (l - m)
    parts, blocks = tiles(tokens, policy_entries, device.type)
    memories = [each.blocks(own, parts, blocks, temperature) for each, own in zip(both, states, strict=True)]
    for entries, part in product(blocks, parts):
        policy, reference = (memory.logits(part, entries) for memory in memories)
        indices, inside = indices_in(targets[part], entries)
        for model, logits in enumerate((policy, reference)):
            chosen[model, part] += torch.where(inside, logits.gather(1, indices), 0.0)[:, 0]
        difference = policy - reference
        shrink, weights = normalisers[0].add(part, policy)
        gap[part] = gap[part] * shrink + (weights * difference).sum(-1)
        normalisers[1].add(part, reference)
    # entries that the policy lacks, and so never samples, count in the reference's normaliser alone
    for entries, part in product(slices(reference_entries, blocks[0].stop, first=policy_entries), parts):
        normalisers[1].add(part, memories[1].logits(part, entries))
    ends = torch.stack([normaliser.value() for normaliser in normalisers])
    kl = gap / normalisers[0].total - ends[0] + ends[1]
    return torch.cat([chosen - ends, kl[None]])
