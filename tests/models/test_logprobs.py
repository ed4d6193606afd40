"""Log-probs and exact KL against plain full logits and against enumeration."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedModel

from imdb_rlhf.models import logprobs
from imdb_rlhf.models.logprobs import LogProbs, Rows, compare, completion_mask, sequence_logprobs, token_logprobs

EOS = 4


def gpt2(seed: int, vocabulary: int = 23, width: int = 16, spread: float = 0.3) -> GPT2LMHeadModel:
    """A tiny GPT-2 whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=32,
        n_embd=width,
        n_layer=2,
        n_head=2,
        initializer_range=spread,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config).eval()


def ragged(vocabulary: int = 23) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of many lengths: prompts of one token, completions of one and of none."""
    random = torch.Generator().manual_seed(5)
    sizes = [(1, 1), (4, 9), (8, 0), (1, 12), (3, 1), (6, 5)]

    def tokens(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=random).tolist()

    return [tokens(a) for a, _ in sizes], [tokens(b) for _, b in sizes]


def plain_sequence(lm: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """The log-prob of one completion from the model's own full logits, a row at a time, without padding."""
    ids = torch.tensor([prompt + completion])
    log_softmax = (lm(input_ids=ids).logits[0].float() / temperature).log_softmax(-1)
    places = range(len(prompt), len(prompt) + len(completion))
    return sum((log_softmax[at - 1, ids[0, at]] for at in places), torch.zeros(()))


# --- the fused function


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 30, 1 << 20])  # a row at a time, 2 rows (30 is no multiple of 13), all at once
@pytest.mark.parametrize("count", [0, 1, 7])
def test_values_and_gradients_equal_plain_ones(
    monkeypatch: pytest.MonkeyPatch, count: int, chunk: int, with_bias: bool, temperature: float
) -> None:
    monkeypatch.setitem(logprobs.CHUNK, "cpu", chunk)
    random = torch.Generator().manual_seed(count)
    hidden, weight, bias, incoming = (
        torch.randn(*size, generator=random) for size in ((count, 6), (13, 6), (13,), (count,))
    )
    targets = torch.randint(13, (count,), generator=random)
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]

    exact = [tensor.double().requires_grad_() for tensor in inputs]
    logits = exact[0] @ exact[1].t() + (exact[2] if with_bias else 0)
    expected = (logits / temperature).log_softmax(-1)[torch.arange(count), targets]
    expected.backward(incoming.double())

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    found = token_logprobs(leaves[0], leaves[1], leaves[2] if with_bias else None, targets, temperature)
    found.backward(incoming)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    for leaf, truth in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert truth.grad is not None
        torch.testing.assert_close(leaf.grad.double(), truth.grad, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Watches every tensor that is made: numbers held at once in one that ends in a vocabulary, rows multiplied."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numbers, self.rows = vocabulary, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[-1] == self.vocabulary:
                self.numbers = max(self.numbers, tensor.numel())
                if "mm" in str(function):
                    self.rows += tensor.numel() // self.vocabulary
        return out


def test_logits_are_never_held_for_all_tokens_and_made_for_completions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, vocabulary = gpt2(0, vocabulary=101, width=4), 101
    other = gpt2(1, vocabulary=101, width=4)
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 5 * vocabulary)
    prompts, completions = [[1, 2, 3]] * 4, [[4] * 9, [5] * 20, [6], []]
    rows, tokens = Rows.of(prompts, completions), 30

    with Largest(vocabulary) as forward:
        loss = LogProbs(lm)(rows.ids, rows.starts, rows.lengths).sum()
    with Largest(vocabulary) as backward:
        loss.backward()
    with Largest(vocabulary) as kl:
        compare(lm, other, rows)

    assert forward.rows == tokens
    assert 0 < forward.numbers <= 5 * vocabulary
    assert 0 < backward.numbers <= 5 * vocabulary
    assert kl.rows == 2 * tokens
    assert 0 < kl.numbers <= 5 * vocabulary


# --- a model


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("kind", ["gpt2", "gptj"])
def test_a_models_values_and_gradients_equal_those_of_its_logits(
    monkeypatch: pytest.MonkeyPatch, kind: str, temperature: float
) -> None:
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 50)
    lm: PreTrainedModel = gpt2(0)  # output layer tied to the embedding, no bias
    if kind == "gptj":  # an output layer of its own with a bias
        sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
        lm = GPTJForCausalLM(GPTJConfig(vocab_size=23, bos_token_id=EOS, eos_token_id=EOS, **sizes)).eval()
        torch.nn.init.normal_(lm.lm_head.bias)
    prompts, completions = ragged()
    rows, signs = Rows.of(prompts, completions), torch.tensor([1.0, -2.0, 3.0, -1.0, 0.5, 1.0])

    expected = torch.stack([plain_sequence(lm, p, c, temperature) for p, c in zip(prompts, completions, strict=True)])
    (expected * signs).sum().backward()
    truth = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    found = LogProbs(lm, temperature)(rows.ids, rows.starts, rows.lengths)
    (found.sum(-1) * signs).sum().backward()

    torch.testing.assert_close(found.sum(-1), expected, atol=1e-5, rtol=1e-5)
    assert found.sum(-1)[2].item() == 0  # the empty completion
    found_gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert found_gradients.keys() == truth.keys()
    for name, gradient in found_gradients.items():
        torch.testing.assert_close(gradient, truth[name], atol=1e-5 * float(truth[name].abs().max() + 1), rtol=1e-4)


def test_token_logprobs_stand_at_their_tokens() -> None:
    lm = gpt2(0)
    rows = Rows.of([[1, 2], [3]], [[5, 6], [7, 8, 9]])
    values = LogProbs(lm)(rows.ids, rows.starts, rows.lengths)
    assert (values != 0).tolist() == [[False, False, True, True], [False, True, True, True]]
    assert completion_mask(rows.ids, rows.starts, rows.lengths).equal(values != 0)
    log_softmax = lm(input_ids=torch.tensor([[3, 7, 8, 9]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(values[1, 1:], log_softmax[[0, 1, 2], [7, 8, 9]], atol=1e-5, rtol=0)


def test_rows_are_right_padded() -> None:
    rows = Rows.of([[1, 2], [3]], [[5], [7, 8, 9]])
    assert rows.starts.tolist() == [2, 1]
    assert rows.lengths.tolist() == [3, 4]
    assert rows.ids[0, :3].tolist() == [1, 2, 5]
    assert rows.ids[1].tolist() == [3, 7, 8, 9]


def test_neither_padding_nor_neighbours_change_a_sequence() -> None:
    lm, reference = gpt2(0), gpt2(1)
    prompts, completions = ragged()
    alone = [sequence_logprobs(lm, Rows.of([p], [c])).item() for p, c in zip(prompts, completions, strict=True)]
    together = sequence_logprobs(lm, Rows.of(prompts, completions))
    assert together.tolist() == pytest.approx(alone, abs=1e-4)

    rows = Rows.of(prompts, completions)
    garbage = torch.randint(23, (len(prompts), 30), generator=torch.Generator().manual_seed(3))
    inside = torch.arange(30) < rows.lengths[:, None]
    wide = torch.where(inside, torch.nn.functional.pad(rows.ids, (0, 30 - rows.ids.shape[1])), garbage)
    padded = Rows(wide, rows.starts, rows.lengths)
    assert sequence_logprobs(lm, padded).tolist() == pytest.approx(alone, abs=1e-4)

    kl = [compare(lm, reference, Rows.of([p], [c])).kl.item() for p, c in zip(prompts, completions, strict=True)]
    assert compare(lm, reference, padded).kl.tolist() == pytest.approx(kl, abs=1e-4)


def test_bf16_errs_at_most_twice_as_much_as_the_plain_bf16_path() -> None:
    lm = gpt2(0, vocabulary=211, width=32, spread=0.15)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(211, (24, 20), generator=random)
    rows = Rows(ids, torch.full((24,), 4), torch.full((24,), 20))

    def plain(logits: Tensor) -> Tensor:
        return logits[:, 3:-1].float().log_softmax(-1).gather(2, ids[:, 4:, None])[..., 0].sum(-1)

    with torch.no_grad():
        truth = plain(lm.double()(input_ids=ids).logits)
        lm.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain_error = (plain(lm(input_ids=ids).logits) - truth).abs().mean()
            values = sequence_logprobs(lm, rows)
        error = (values - truth).abs().mean()
    assert values.dtype == torch.float32
    assert plain_error > 1e-3  # bf16 it was
    assert error <= 2 * plain_error


def test_a_bf16_gradient_is_near_the_float32_one() -> None:
    lm = gpt2(0, vocabulary=211, width=32, spread=0.15)
    ids = torch.randint(211, (8, 12), generator=torch.Generator().manual_seed(0))
    rows = (ids, torch.full((8,), 4), torch.full((8,), 12))
    gradients = []
    for enabled in (False, True):
        lm.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            LogProbs(lm)(*rows).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None]))
        assert gradients[-1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.03 * gradients[0].norm()
    assert not gradients[1].equal(gradients[0])


# --- the exact KL, in a world of 5 words and 3 steps


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
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 5 * 7)  # 7 tokens at a time
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
