"""Log-probs and exact KL against plain full logits and against enumeration."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import blocks
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import LogProbs, Rows, completion_mask, sequence_logprobs, token_logprobs

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
    monkeypatch.setitem(blocks.CHUNK, "cpu", chunk)
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
    monkeypatch.setitem(blocks.CHUNK, "cpu", 5 * vocabulary)
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
    monkeypatch.setitem(blocks.CHUNK, "cpu", 50)
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


def limit(monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int) -> None:
    """Allow so many logits at once, of so many entries of the vocabulary."""
    for name, value in (("CHUNK", chunk), ("TILE", tile)):
        monkeypatch.setattr(blocks, name, dict.fromkeys(getattr(blocks, name), value))


@pytest.mark.parametrize("tile", [1, 2, 7, 64, 1 << 20])  # none but 1 divides 101
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 13, 64, 101])
def test_no_block_changes_values_or_gradients(monkeypatch: pytest.MonkeyPatch, vocabulary: int, tile: int) -> None:
    for count, chunk, temperature in product((0, 1, 7), (1, 3 * min(tile, vocabulary), 1 << 20), (1.0, 0.7)):
        limit(monkeypatch, chunk, tile)
        random = torch.Generator().manual_seed(count + vocabulary)
        sizes = ((count, 5), (vocabulary, 5), (vocabulary,), (count,))
        hidden, weight, bias, incoming = (torch.randn(*size, generator=random) for size in sizes)
        targets = torch.randint(vocabulary, (count,), generator=random)

        exact = [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]
        log_softmax = ((exact[0] @ exact[1].t() + exact[2]) / temperature).log_softmax(-1)
        expected = log_softmax.gather(1, targets[:, None])[:, 0]
        expected.backward(incoming.double())
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        found = token_logprobs(leaves[0], leaves[1], leaves[2], targets, temperature)
        found.backward(incoming)

        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
        for leaf, truth in zip(leaves, exact, strict=True):
            assert leaf.grad is not None and truth.grad is not None
            torch.testing.assert_close(leaf.grad.double(), truth.grad, atol=1e-5, rtol=1e-5)


def test_a_block_is_at_most_a_tile_wide_and_a_chunk_large(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, tile, chunk = 211, 37, 5 * 37
    limit(monkeypatch, chunk, tile)
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(count, 4, generator=random).requires_grad_() for count in (23, vocabulary))
    targets = torch.randint(vocabulary, (23,), generator=random)
    with Largest(vocabulary) as whole, Largest(tile) as block:
        token_logprobs(hidden, weight, None, targets).sum().backward()
    assert whole.numbers == 0
    assert 0 < block.numbers <= chunk
    # 5 tiles of 37 for each token, forward and backward; the last is narrower
    assert block.rows == 2 * 5 * 23


def full(lm: PreTrainedModel, rows: Rows, temperature: float = 1.0) -> Tensor:
    """(rows, time) log-probs of completion tokens from the model's own logits, all held at once."""
    logits = lm(input_ids=rows.ids, use_cache=False).logits[:, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    values = wide.log_softmax(-1).gather(2, rows.ids[:, 1:, None])[..., 0]
    inside = completion_mask(rows.ids, rows.starts, rows.lengths)
    return torch.nn.functional.pad(values, (1, 0)).where(inside, 0.0)


def with_gradients(lm: PreTrainedModel, values: Tensor, incoming: Tensor) -> dict[str, Tensor]:
    """The values, and the gradient of each parameter for a gradient of theirs, in float64."""
    lm.zero_grad()
    values.backward(incoming.to(values.dtype))
    found = {name: p.grad.double() for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    return found | {"values": values.detach().double()}


def shaken(lm: GPT2LMHeadModel, spread: float = 0.3) -> GPT2LMHeadModel:
    """The model with biases that are not 0 and norms that are not 1."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 1:
                parameter += spread * torch.randn(parameter.shape, generator=random)
    return lm


@pytest.mark.parametrize("tile", [7, 1 << 20])
@pytest.mark.parametrize("vocabulary", [1, 2, 23])
@pytest.mark.parametrize(
    "sizes",
    [[(1, 1)], [(4, 9)], [(1, 5), (1, 1), (1, 3)], [(3, 0), (2, 4)], [(5, 1), (2, 1)]],
    ids=["one token", "one row", "prompts of one token", "an empty completion", "completions of one token"],
)
def test_a_models_log_probs_and_gradients_over_odd_shapes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]], vocabulary: int, tile: int
) -> None:
    limit(monkeypatch, 3 * min(tile, vocabulary), tile)
    random = torch.Generator().manual_seed(5)
    texts = [torch.randint(vocabulary, (a + b,), generator=random).tolist() for a, b in sizes]
    rows = Rows.of(
        [text[:a] for text, (a, _) in zip(texts, sizes, strict=True)],
        [text[a:] for text, (a, _) in zip(texts, sizes, strict=True)],
    )
    incoming = torch.randn(rows.ids.shape, generator=random, dtype=torch.float64)
    lm = shaken(gpt2(0, vocabulary))
    found = with_gradients(lm, LogProbs(lm, 0.7)(rows.ids, rows.starts, rows.lengths), incoming)
    lm.double()
    truth = with_gradients(lm, full(lm, rows, 0.7), incoming)
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        # the gradients of a vocabulary of 1 are 0
        assert (found[name] - tensor).abs().max() <= 1e-5 * (tensor.abs().max() if vocabulary > 1 else 1.0), name


def test_without_completion_tokens_there_are_no_gradients() -> None:
    lm, rows = gpt2(0), Rows.of([[1, 2, 3], [4]], [[], []])
    values = LogProbs(lm)(rows.ids, rows.starts, rows.lengths)
    assert values.tolist() == [[0.0] * 3] * 2
    values.sum().backward()
    gradients = [parameter.grad for parameter in lm.parameters() if parameter.grad is not None]
    assert gradients and all(float(gradient.abs().max()) == 0 for gradient in gradients)


def test_what_stands_behind_a_row_changes_no_gradient() -> None:
    lm, rows = shaken(gpt2(0)), Rows.of(*ragged())
    random = torch.Generator().manual_seed(3)
    inside = torch.arange(rows.ids.shape[1]) < rows.lengths[:, None]
    found = []
    for garbage in (torch.zeros_like(rows.ids), torch.randint(23, rows.ids.shape, generator=random)):
        given = torch.where(inside, rows.ids, garbage)
        values = LogProbs(lm)(given, rows.starts, rows.lengths)
        found.append(with_gradients(lm, values, torch.arange(values.numel()).view_as(values)))
    for name, tensor in found[0].items():
        assert (found[1][name] - tensor).abs().max() <= 1e-7 * tensor.abs().max(), name


@pytest.mark.parametrize("tile", [64, 1 << 20])
def test_bf16_gradients_err_at_most_twice_as_much_as_plain_ones(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Over the relative errors of the values and of every parameter's gradient, in three models."""
    limit(monkeypatch, 5 * tile, tile)
    own: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    for seed in range(3):
        lm = shaken(gpt2(seed, vocabulary=211, width=32, spread=0.15), 0.15)
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(211, (16, 20), generator=random)
        rows = Rows(ids, torch.full((16,), 4), torch.randint(5, 21, (16,), generator=random))
        incoming = torch.randn(ids.shape, generator=random, dtype=torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = LogProbs(lm, 0.7)(rows.ids, rows.starts, rows.lengths), full(lm, rows, 0.7)
        found = [with_gradients(lm, value, incoming) for value in values]
        lm.double()
        truth = with_gradients(lm, full(lm, rows, 0.7), incoming)
        for errors, tensors in ((own, found[0]), (plain, found[1])):
            assert tensors.keys() == truth.keys()
            errors.append({name: float((tensors[name] - t).norm() / t.norm()) for name, t in truth.items()})
    for names in (["values"], ["transformer.wte.weight"], list(own[0])):
        mine, theirs = (sum(error[name] for error in errors for name in names) for errors in (own, plain))
        assert theirs > 1e-3 * 3 * len(names)  # bf16 it was
        assert mine <= 2 * theirs


@pytest.mark.parametrize("tile", [2, 64, 1 << 20])  # many small parts are summed in float32
def test_bf16_products_err_at_most_twice_as_much_as_plain_ones(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    limit(monkeypatch, 9 * tile, tile)
    random = torch.Generator().manual_seed(0)
    # nearly flat distributions, so that all parts count
    hidden, weight, bias = (0.3 * torch.randn(*size, generator=random) for size in ((150, 24), (997, 24), (997,)))
    targets, incoming = torch.randint(997, (150,), generator=random), torch.randn(150, generator=random)

    def run(dtype: torch.dtype | None, fused: bool) -> list[Tensor]:
        kind = torch.float64 if dtype is None else torch.float32
        leaves = [tensor.to(kind, copy=True).requires_grad_() for tensor in (hidden, weight, bias)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            if fused:
                values = token_logprobs(leaves[0], leaves[1], leaves[2], targets)
            else:
                logits = torch.nn.functional.linear(*leaves)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        values.backward(incoming.to(values.dtype))
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == 3 and all(gradient.dtype == kind for gradient in gradients)
        return [tensor.detach().double() for tensor in (values, *gradients)]

    truth, plain, found = run(None, False), run(torch.bfloat16, False), run(torch.bfloat16, True)
    for exact, theirs, mine in zip(truth, plain, found, strict=True):
        assert (theirs - exact).norm() > 1e-4 * exact.norm()  # bf16 it was
        assert (mine - exact).norm() <= 2 * (theirs - exact).norm()


# --- the exact KL in blocks


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
    for found, exact in ((compared.logprob, log_pi), (compared.ref_logprob, log_ref)):
        assert found.tolist() == pytest.approx([float(exact[y].sum()) for y in completions], abs=1e-5)


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
        for lm, found in ((policy, compared.logprob), (reference, compared.ref_logprob)):
            torch.testing.assert_close(found, full(lm, rows, 0.7).sum(-1), atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_is_more_than_a_weight_is_refused() -> None:
    class Adapted(torch.nn.Linear):
        """What an adapter looks like: a weight, and more in its forward."""

    lm = gpt2(0)
    lm.lm_head = Adapted(lm.config.n_embd, lm.config.vocab_size, bias=False)
    with pytest.raises(RunError, match="output layer is a Adapted"):
        sequence_logprobs(lm, Rows.of([[1]], [[2]]))


def test_a_completion_needs_a_token_before_it() -> None:
    with pytest.raises(ValueError, match="a completion begins its row"):
        sequence_logprobs(gpt2(0), Rows.of([[2], []], [[3], [1, 2]]))


def test_a_frozen_output_layer_leaves_the_other_gradients_as_they_are() -> None:
    prompts, completions = ragged()
    rows = Rows.of(prompts, completions)
    found = []
    for frozen in (False, True):
        lm = gpt2(0)
        lm.lm_head = torch.nn.Linear(lm.config.n_embd, 23, bias=False)
        torch.nn.init.constant_(lm.lm_head.weight, 0.1)
        lm.lm_head.weight.requires_grad_(not frozen)
        LogProbs(lm)(rows.ids, rows.starts, rows.lengths).sum().backward()
        found.append({name: p.grad for name, p in lm.named_parameters() if p.grad is not None})
    assert found[0].keys() - found[1].keys() == {"lm_head.weight"}
    assert all(gradient.equal(found[0][name]) for name, gradient in found[1].items())
