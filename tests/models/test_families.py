"""The families that people bring: scored, decoded, trained, saved and read again as transformers does."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel

from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.decoding import open_decoder
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.sampling import sample
from tests import tiny
from tests.models.families import FAMILIES, make
from tests.models.logits import full
from tests.models.test_decoding import RAGGED, assert_logits, replay

VOCABULARY = 61
each_family = pytest.mark.parametrize("name", FAMILIES)


def rows(seed: int = 0) -> Rows:
    """Prompts of 1 to 8 tokens and completions of 1 to 16, longer than the sliding windows."""
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(1, 9, (12,), generator=random)
    lengths = starts + torch.randint(1, 17, (12,), generator=random)
    return Rows(torch.randint(VOCABULARY, (12, int(lengths.max())), generator=random), starts, lengths)


def each_alone(lm: PreTrainedModel, batch: Rows) -> Tensor:
    """(rows, time) log-probs from transformers' logits, each row alone and without padding."""
    table = torch.zeros(batch.ids.shape, dtype=torch.float64)
    for row, (start, length) in enumerate(zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)):
        one = Rows(batch.ids[row : row + 1, :length], torch.tensor([start]), torch.tensor([length]))
        table[row, :length] = full(lm, one)[0]
    return table


def gradients(lm: PreTrainedModel, values: Tensor) -> dict[str, Tensor]:
    lm.zero_grad()
    weights = torch.linspace(-1, 1, values.numel(), dtype=torch.float64).view_as(values)
    values.backward(weights.to(values.dtype))
    return {name: p.grad.double() for name, p in lm.named_parameters() if p.grad is not None}


@each_family
def test_log_probs_and_gradients_are_those_of_transformers(name: str) -> None:
    lm, batch = make(name), rows()
    values = LogProbs(lm)(batch.ids, batch.starts, batch.lengths)
    found = gradients(lm, values)
    exact = deepcopy(lm).double()
    truth = each_alone(exact, batch)
    expected = gradients(exact, truth)
    torch.testing.assert_close(values.double(), truth, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-5, key


@each_family
def test_a_tied_embedding_has_one_gradient_of_the_vocabularys_size(name: str) -> None:
    lm, batch = make(name), rows()
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        LogProbs(lm)(batch.ids, batch.starts, batch.lengths).sum().backward()
    counts = {event.key: event.count for event in seen.key_averages()}
    # OPT looks up its positions too
    assert counts.get("aten::embedding_dense_backward", 0) == (0 if tied else 1) + (name == "OPT")


@each_family
def test_token_by_token_it_is_read_as_whole(name: str) -> None:
    lm = make(name)
    for lengths in (RAGGED, [4] * 7):
        for texts, logits in replay(open_decoder(lm, 7, 20), lengths, 12, VOCABULARY, {3: [6, 2, 0, 5, 1]}):
            assert_logits(lm, texts, logits)


@each_family
def test_samples_are_drawn_from_the_policy_that_scores_them(name: str) -> None:
    """By inversion: each token's random number is between the cumulative probabilities on both sides of it."""
    lm = policies.freeze(make(name))
    prompts = [[7, 9, 11], [5], [3, 2, 8, 6, 10, 12, 14], [13, 4]] * 3
    uniform = torch.rand(12, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    completions = sample(lm, prompts, uniform, eos_id=0).ids
    exact = deepcopy(lm).double()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
        steps = logits[len(prompt) - 1 : -1].softmax(-1).cumsum(-1)
        for at, token in enumerate(completion):
            assert steps[at, token] + 1e-5 >= uniform[row, at]
            assert token == 0 or steps[at, token - 1] - 1e-5 <= uniform[row, at]


@each_family
def test_bf16_errs_at_most_twice_as_much_as_plain_bf16(name: str) -> None:
    own = plain = decoded = usual = 0.0
    for seed in range(2):
        lm, batch = make(name, seed=seed), rows(seed)
        truth = each_alone(deepcopy(lm).double(), batch)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            own += float((LogProbs(lm)(batch.ids, batch.starts, batch.lengths) - truth).square().sum())
            plain += float((full(lm, batch) - truth).square().sum())
            reads = list(replay(open_decoder(lm, 7, 20), [4] * 7, 12, VOCABULARY))
            others = [lm(input_ids=torch.tensor(texts)).logits[:, -1] for texts, _ in reads]
        double = deepcopy(lm).double()
        for (texts, logits), other in zip(reads, others, strict=True):
            exact = double(input_ids=torch.tensor(texts)).logits[:, -1].log_softmax(-1).detach()
            decoded += float((logits.double().log_softmax(-1) - exact).square().sum())
            usual += float((other.double().log_softmax(-1) - exact).square().sum())
    assert plain > 1e-4 and usual > 1e-4  # bf16 it was
    assert own**0.5 <= 2 * plain**0.5
    assert decoded**0.5 <= 2 * usual**0.5


@each_family
def test_a_trained_model_is_saved_and_read_again(name: str, tmp_path: Path) -> None:
    lm, batch = make(name), rows()
    before = deepcopy(lm)
    optimizer = torch.optim.SGD(lm.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (-LogProbs(lm)(batch.ids, batch.starts, batch.lengths).mean()).backward()
        optimizer.step()
    moved = compare(lm, before, batch)
    assert float(moved.logprob.sum()) > float(moved.ref_logprob.sum())  # it has learned the rows
    policies.save(policies.Policy(lm, tiny.tokenizer(VOCABULARY)), tmp_path, "A card.", 1.0)
    ours = policies.load(tmp_path, lm.config._attn_implementation).lm
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = compare(ours, before, batch)
    torch.testing.assert_close(again.logprob, moved.logprob, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(again.kl, moved.kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(full(theirs, batch).sum(-1).double(), moved.logprob, atol=1e-4, rtol=1e-5)
