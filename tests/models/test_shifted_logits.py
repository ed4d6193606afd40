"""Models whose logits are all shifted by a constant, which softmax cannot see, and bf16 results can.

GPT-2's real logits are near -100, where neighbouring bf16 numbers are half a nat apart. Random weights make logits near
0, so a constant is added here. bf16 must err at most twice as much as the plain bf16 path does without the constant.
"""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.models.actor_critic import ActorCritic
from imdb_rlhf.models.decoding import CachedDecoder, open_decoder
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.sampling import sample
from tests import tiny
from tests.models.logits import full

VOCABULARY, SEEDS = 211, range(3)
SHIFTS = [0.0, -90.0, 90.3]  # bf16 cannot hold the last


def unshifted(seed: int) -> GPT2LMHeadModel:
    """A model with an output layer of its own, which reads a 1 in the states' first column."""
    lm = tiny.scattered_gpt2(seed, spread=0.15, vocabulary=VOCABULARY, width=32, context=32, tie_word_embeddings=False)
    with torch.no_grad():
        lm.lm_head.weight.normal_(0, 0.15, generator=torch.Generator().manual_seed(seed))
        lm.lm_head.weight[:, 0] = 0
        lm.transformer.ln_f.weight[0], lm.transformer.ln_f.bias[0] = 0, 1
    return lm


def shifted(lm: GPT2LMHeadModel, shift: float) -> GPT2LMHeadModel:
    """The same policy, with a constant added to all logits."""
    other = deepcopy(lm)
    with torch.no_grad():
        other.lm_head.weight[:, 0] = shift
    return other


def rows(seed: int) -> Rows:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (24, 20), generator=random)
    return Rows(ids, torch.full((24,), 4), torch.randint(6, 21, (24,), generator=random))


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def gradients(lm: nn.Module, logprobs: Tensor) -> Tensor:
    """All gradients but those of the column that makes the shift, whose truth depends on it."""
    lm.zero_grad()
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logprobs.backward(weights.to(logprobs.dtype))
    tables = {name: p.grad.double() for name, p in lm.named_parameters() if p.grad is not None}
    tables["lm_head.weight"] = tables["lm_head.weight"][:, 1:]
    return torch.cat([table.flatten() for table in tables.values()])


@pytest.mark.parametrize("shift", SHIFTS)
def test_log_probs_and_gradients_do_not_see_the_shift(shift: float) -> None:
    own, plain = torch.zeros(2), torch.zeros(2)
    for seed in SEEDS:
        lm, batch = unshifted(seed), rows(seed)
        exact = deepcopy(lm).double()
        truth = full(exact, batch, 1.0)
        truths = truth.detach().sum(-1), gradients(exact, truth)
        for errors, model, score in (
            (own, shifted(lm, shift), lambda m, b: LogProbs(m)(b.ids, b.starts, b.lengths)),
            (plain, lm, lambda m, b: full(m, b, 1.0)),
        ):
            with bf16():
                values = score(model, batch)
            found = values.detach().double().sum(-1), gradients(model, values)
            errors += torch.tensor([float((a - b).square().sum()) for a, b in zip(found, truths, strict=True)])
    assert (plain > 1e-4).all()  # bf16 it was
    assert (own.sqrt() <= 2 * plain.sqrt()).all()


def reads(lm: GPT2LMHeadModel, cached: bool) -> Iterator[Tensor]:
    """Float64 probabilities of the next token, (rows, vocabulary), token after token."""
    batch = rows(0)
    with torch.no_grad():
        decoder = CachedDecoder(lm, len(batch.ids)) if cached else open_decoder(lm, len(batch.ids), 20)
        ids, _ = decoder.begin(batch.ids[:, :4], batch.starts)
        for column in range(4, 20):
            yield decoder.read(ids).double().softmax(-1)
            ids = batch.ids[:, column : column + 1]


@pytest.mark.parametrize("cached", [False, True], ids=["GPT-2's decoder", "any model's decoder"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_sampled_policy_does_not_see_the_shift(shift: float, cached: bool) -> None:
    own = plain = 0.0
    for seed in SEEDS:
        lm = unshifted(seed)
        truth = list(reads(deepcopy(lm).double(), cached=True))
        with bf16(), torch.no_grad():
            ids = rows(0).ids
            usual = [lm(input_ids=ids[:, :column]).logits[:, -1].double().softmax(-1) for column in range(4, 20)]
            found = list(reads(shifted(lm, shift), cached))
        for probabilities, other, exact in zip(found, usual, truth, strict=True):
            own += float((probabilities - exact).abs().sum())
            plain += float((other - exact).abs().sum())
    assert plain > 1  # bf16 it was
    assert own <= 2 * plain


@pytest.mark.parametrize("shift", SHIFTS)
def test_sampled_frequencies_do_not_see_the_shift(shift: float) -> None:
    """The first token's, over an even grid of random numbers, so that no chance is in them."""
    draws, grid = [[7, 3]] * 4000, (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    own = plain = 0.0
    for seed in SEEDS:
        lm = unshifted(seed)
        ids = torch.tensor(draws[:1])
        with torch.no_grad():
            exact = deepcopy(lm).double()(input_ids=ids).logits[0, -1].softmax(-1)
            with bf16():
                usual = lm(input_ids=ids).logits[0, -1].double().softmax(-1)
                completions = sample(shifted(lm, shift), draws, grid[:, None], eos_id=0).ids
        counts = torch.bincount(torch.tensor(completions)[:, 0], minlength=VOCABULARY)
        own += float((counts / 4000 - exact).abs().sum())
        plain += float((usual - exact).abs().sum())
    assert own <= 2 * plain + 3 * VOCABULARY / 4000 / 2  # each frequency is rounded to a 4000th


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("network", ValueNetwork)
def test_ppo_scores_and_kl_do_not_see_the_shift(network: ValueNetwork, shift: float) -> None:
    lm, batch = unshifted(0), rows(0)
    other = shifted(lm, shift)
    with bf16():
        logprobs = ActorCritic(other, 1.0, network)(batch.ids, batch.starts, batch.lengths)[0].double()
    truth = full(deepcopy(lm).double(), batch, 1.0)
    with bf16():
        plain = full(lm, batch, 1.0).double()
    assert (logprobs - truth).norm() <= 2 * (plain - truth).norm()
    with bf16():
        found = compare(other, unshifted(1), batch)
    exact = compare(lm, unshifted(1), batch)
    torch.testing.assert_close(found.kl, exact.kl, atol=1e-3, rtol=0)  # reported numbers are float32's
    torch.testing.assert_close(found.logprob, exact.logprob, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cached", [False, True], ids=["GPT-2's decoder", "any model's decoder"])
@pytest.mark.parametrize("size", [0.0, 30.0, 300.0])
def test_the_sampled_policy_does_not_see_what_all_scores_of_a_query_share(size: float, cached: bool) -> None:
    """A bias of all keys adds the same to each attention score of a query."""
    own = plain = 0.0
    for seed in SEEDS:
        lm = unshifted(seed)
        lm.config._attn_implementation = "sdpa"
        with torch.no_grad():
            for block in lm.transformer.h:
                block.attn.c_attn.bias[32:64] += size
        truth = list(reads(deepcopy(lm).double(), cached=True))
        with bf16(), torch.no_grad():
            ids = rows(0).ids
            usual = [lm(input_ids=ids[:, :column]).logits[:, -1].double().softmax(-1) for column in range(4, 20)]
            found = list(reads(lm, cached))
        for probabilities, other, exact in zip(found, usual, truth, strict=True):
            own += float((probabilities - exact).abs().sum())
            plain += float((other - exact).abs().sum())
    assert own <= 2 * plain
