"""The exact KL against whole logits, and against enumeration."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

from imdb_rlhf.models import blocks
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows, completion_mask
from tests.models.logits import EOS, full, gpt2, limit, ragged

# --- a world of 5 words and 3 steps


def world() -> list[list[int]]:
    """All completions of at most 3 tokens; token 4 is EOS and ends one."""
    return [
        list(y[:length])
        for length in (1, 2, 3)
        for y in product(range(5), repeat=length)
        if EOS not in y[: length - 1] and (length == 3 or y[-1] == EOS)
    ]


def enumerated(lm: PreTrainedModel, prompt: list[int], temperature: float) -> Tensor:
    """(completions,) float64 log-probs of all of them, from full logits in double precision."""
    twice = gpt2(0, vocabulary=5)
    twice.load_state_dict(lm.state_dict())
    twice.double()
    with torch.no_grad():
        values = []
        for y in world():
            logits = twice(input_ids=torch.tensor([prompt + y])).logits[0] / temperature
            log_softmax = logits.log_softmax(-1)
            values.append(sum(log_softmax[len(prompt) - 1 + at, token] for at, token in enumerate(y)))
    return torch.stack([torch.as_tensor(value) for value in values])


@pytest.fixture(params=[1.0, 0.7])
def temperature(request: pytest.FixtureRequest) -> Iterator[float]:
    yield request.param


def test_the_exact_kl_has_the_enumerated_kl_as_its_mean(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.CHUNK, "cpu", 5 * 7)  # 7 tokens at a time
    policy, reference, prompt = gpt2(0, vocabulary=5), gpt2(1, vocabulary=5), [2, 0]
    every = world()
    assert len(every) == 1 + 4 + 4 * 4 * 5
    log_p, log_q = (enumerated(lm, prompt, temperature) for lm in (policy, reference))
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1)
    expected = (p * (log_p - log_q)).sum().item()
    backward = (log_q.exp() * (log_q - log_p)).sum().item()
    assert expected > 0.3
    assert abs(expected - backward) > 0.01  # so that the direction is seen

    compared = compare(policy, reference, Rows.of([prompt] * len(every), every), temperature)
    assert compared.kl.dtype == torch.float64
    torch.testing.assert_close(compared.logprob, log_p, atol=1e-5, rtol=0)
    torch.testing.assert_close(compared.ref_logprob, log_q, atol=1e-5, rtol=0)
    assert (p * compared.kl).sum().item() == pytest.approx(expected, abs=1e-5)
    assert (p * (compared.logprob - compared.ref_logprob)).sum().item() == pytest.approx(expected, abs=1e-5)
    # and with less variance than k1
    spread = [(p * (v - expected) ** 2).sum() for v in (compared.kl, compared.logprob - compared.ref_logprob)]
    assert spread[0] < 0.7 * spread[1]


def test_a_reference_with_more_entries_keeps_its_mass_on_them() -> None:
    policy, reference, prompt = gpt2(0, vocabulary=5), gpt2(1, vocabulary=8), [2, 0]
    with torch.no_grad():
        pi, ref = (
            lm(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1) for lm in (policy, reference)
        )
    assert ref[5:].exp().sum() > 0.1
    expected = sum((pi[v].exp() * (pi[v] - ref[v])).item() for v in range(5))  # the policy never samples 5, 6, 7
    compared = compare(policy, reference, Rows.of([prompt], [[3]]))
    assert compared.kl.item() == pytest.approx(expected, abs=1e-5)
    assert compared.ref_logprob.item() == pytest.approx(ref[3].item(), abs=1e-5)


def test_the_exact_kl_of_a_sequence_is_the_sum_over_its_steps(temperature: float) -> None:
    policy, reference, prompt, y = gpt2(0, vocabulary=5), gpt2(1, vocabulary=5), [1], [3, 0, 2]
    with torch.no_grad():
        log_pi, log_ref = (
            (lm(input_ids=torch.tensor([prompt + y])).logits[0, :3].double() / temperature).log_softmax(-1)
            for lm in (policy, reference)
        )
    expected = sum(float(a.exp() * (a - b)) for s in range(3) for a, b in zip(log_pi[s], log_ref[s], strict=True))
    assert compare(policy, reference, Rows.of([prompt], [y]), temperature).kl.item() == pytest.approx(
        expected, abs=1e-5
    )


def test_equal_models_have_no_kl(temperature: float) -> None:
    policy, reference = gpt2(3, vocabulary=5), gpt2(3, vocabulary=5)
    compared = compare(policy, reference, Rows.of([[1]] * len(world()), world()), temperature)
    assert compared.kl.abs().max() == 0
    assert compared.logprob.equal(compared.ref_logprob)


def test_a_comparison_is_float32_inside_autocast() -> None:
    policy, reference, rows = gpt2(0), gpt2(1), Rows.of(*ragged())
    outside = compare(policy, reference, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compare(policy, reference, rows)
    assert inside.kl.equal(outside.kl)
    assert inside.logprob.equal(outside.logprob)


def test_completions_without_tokens_have_no_kl() -> None:
    compared = compare(gpt2(0), gpt2(1), Rows.of([[1, 2], [3]], [[], []]))
    assert compared.kl.tolist() == [0, 0]
    assert compared.logprob.tolist() == [0, 0]


# --- blocks of tokens and of the vocabulary


def constant(logits: Tensor) -> GPT2LMHeadModel:
    """A model that gives every next token the same (vocabulary,) logits, and gives them exactly."""
    lm = gpt2(0, vocabulary=len(logits), width=4)
    with torch.no_grad():
        lm.transformer.ln_f.weight.zero_()
        lm.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        lm.lm_head = torch.nn.Linear(4, len(logits), bias=False)
        lm.lm_head.weight.zero_()
        lm.lm_head.weight[:, 0] = logits
    return lm


@pytest.mark.parametrize("tile", [1, 4, 7, 1 << 20])
@pytest.mark.parametrize("more", [0, 1, 9])  # entries that the reference has and the policy lacks
@pytest.mark.parametrize("shift", [0.0, -1024.0, 65536.0])  # of all logits; a multiple of an eighth stays exact
def test_the_kl_of_known_distributions(monkeypatch: pytest.MonkeyPatch, shift: float, more: int, tile: int) -> None:
    limit(monkeypatch, 3 * tile, tile)
    random = torch.Generator().manual_seed(more)
    policy, reference = (torch.randint(-40, 40, (count,), generator=random) / 8 for count in (11, 11 + more))
    log_pi, log_ref = (logits.double().log_softmax(-1) for logits in (policy, reference))
    step = float((log_pi.exp() * (log_pi - log_ref[:11])).sum())
    completions = [[3, 0, 10], [], [7]]
    compared = compare(constant(policy + shift), constant(reference + shift), Rows.of([[1], [2, 4], [5]], completions))
    assert compared.kl.tolist() == pytest.approx([3 * step, 0, step], abs=1e-5)
    for actual, exact in ((compared.logprob, log_pi), (compared.ref_logprob, log_ref)):
        assert actual.tolist() == pytest.approx([float(exact[y].sum()) for y in completions], abs=1e-5)


def test_two_common_shifts_may_differ() -> None:
    policy, reference = (torch.tensor(logits) for logits in ([1.0, 2.5, -3.0], [0.5, -1.0, 2.0]))
    rows = Rows.of([[1]], [[0, 2]])
    near, far = (compare(constant(policy + shift), constant(reference), rows).kl.item() for shift in (0.0, 64.0))
    log_pi, log_ref = (logits.double().log_softmax(-1) for logits in (policy, reference))
    expected = 2 * float((log_pi.exp() * (log_pi - log_ref)).sum())
    assert [near, far] == pytest.approx([expected] * 2, abs=3e-5)


def test_a_certain_policy_and_an_impossible_token_have_finite_kl() -> None:
    certain = torch.tensor([0.0, 80.0, -80.0])
    compared = compare(constant(certain), constant(torch.zeros(3)), Rows.of([[1]], [[1]]))
    assert compared.kl.item() == pytest.approx(float(torch.tensor(3.0).log()), abs=1e-5)
    compared = compare(constant(torch.zeros(3)), constant(certain), Rows.of([[1]], [[1]]))
    assert compared.kl.item() == pytest.approx(80 - float(torch.tensor(3.0).log()), abs=1e-4)


@pytest.mark.parametrize("tile", [1, 6, 17, 1 << 20])
@pytest.mark.parametrize("more", [0, 8])
def test_the_kl_of_models_is_that_of_their_whole_logits(monkeypatch: pytest.MonkeyPatch, more: int, tile: int) -> None:
    limit(monkeypatch, 4 * tile, tile)
    policy, reference, rows = gpt2(0), gpt2(1, vocabulary=23 + more), Rows.of(*ragged())
    compared = compare(policy, reference, rows, 0.7)
    inside = completion_mask(rows.ids, rows.starts, rows.lengths)
    with torch.no_grad():
        log_pi, log_ref = (
            (lm.double()(input_ids=rows.ids).logits[:, :-1] / 0.7).log_softmax(-1) for lm in (policy, reference)
        )
        steps = (log_pi.exp() * (log_pi - log_ref[..., :23])).sum(-1).where(inside[:, 1:], 0.0)
        assert steps.max() > 1
        torch.testing.assert_close(compared.kl, steps.sum(-1), atol=1e-5, rtol=1e-5)
        for lm, actual in ((policy, compared.logprob), (reference, compared.ref_logprob)):
            torch.testing.assert_close(actual, full(lm, rows, 0.7).sum(-1), atol=1e-5, rtol=1e-5)
