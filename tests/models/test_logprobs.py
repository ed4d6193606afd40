"""Log-probs against the model's whole logits: values, gradients, blocks, precision."""

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import blocks
from imdb_rlhf.models.blocks import OutputLayer
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import LogProbs, Rows, completion_mask, sequence_logprobs, token_logprobs
from tests import tiny
from tests.models.logits import EOS, Largest, full, gpt2, limit, ragged

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
    actual = token_logprobs(leaves[0], OutputLayer(leaves[1], leaves[2] if with_bias else None), targets, temperature)
    actual.backward(incoming)

    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)
    for leaf, truth in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert truth.grad is not None
        torch.testing.assert_close(leaf.grad.double(), truth.grad, atol=1e-5, rtol=1e-5)


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

    expected = torch.stack(
        [tiny.completion_logprob(lm, p, c, temperature) for p, c in zip(prompts, completions, strict=True)]
    )
    (expected * signs).sum().backward()
    truth = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    actual = LogProbs(lm, temperature)(rows.ids, rows.starts, rows.lengths)
    (actual.sum(-1) * signs).sum().backward()

    torch.testing.assert_close(actual.sum(-1), expected, atol=1e-5, rtol=1e-5)
    assert actual.sum(-1)[2].item() == 0  # the empty completion
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


# --- blocks of tokens and of the vocabulary


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
        actual = token_logprobs(leaves[0], OutputLayer(leaves[1], leaves[2]), targets, temperature)
        actual.backward(incoming)

        torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)
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
        token_logprobs(hidden, OutputLayer(weight), targets).sum().backward()
    assert whole.numbers == 0
    assert 0 < block.numbers <= chunk
    # 5 tiles of 37 for each token, forward and backward; the last is narrower
    assert block.rows == 2 * 5 * 23


def with_gradients(lm: PreTrainedModel, values: Tensor, incoming: Tensor) -> dict[str, Tensor]:
    """The values, and each parameter's gradient given that of the values, in float64."""
    lm.zero_grad()
    values.backward(incoming.to(values.dtype))
    actual = {name: p.grad.double() for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    return actual | {"values": values.detach().double()}


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
    lm = shaken(gpt2(0, vocabulary=vocabulary))
    actual = with_gradients(lm, LogProbs(lm, 0.7)(rows.ids, rows.starts, rows.lengths), incoming)
    lm.double()
    truth = with_gradients(lm, full(lm, rows, 0.7), incoming)
    assert actual.keys() == truth.keys()
    for name, tensor in truth.items():
        # the gradients of a vocabulary of 1 are 0
        assert (actual[name] - tensor).abs().max() <= 1e-5 * (tensor.abs().max() if vocabulary > 1 else 1.0), name


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
    actual = []
    for garbage in (torch.zeros_like(rows.ids), torch.randint(23, rows.ids.shape, generator=random)):
        given = torch.where(inside, rows.ids, garbage)
        values = LogProbs(lm)(given, rows.starts, rows.lengths)
        actual.append(with_gradients(lm, values, torch.arange(values.numel()).view_as(values)))
    for name, tensor in actual[0].items():
        assert (actual[1][name] - tensor).abs().max() <= 1e-7 * tensor.abs().max(), name


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
        actual = [with_gradients(lm, value, incoming) for value in values]
        lm.double()
        truth = with_gradients(lm, full(lm, rows, 0.7), incoming)
        for errors, tensors in ((own, actual[0]), (plain, actual[1])):
            assert tensors.keys() == truth.keys()
            errors.append({name: float((tensors[name] - t).norm() / t.norm()) for name, t in truth.items()})
    for names in (["values"], ["transformer.wte.weight"], list(own[0])):
        own_error, plain_error = (sum(error[name] for error in errors for name in names) for errors in (own, plain))
        assert plain_error > 1e-3 * 3 * len(names)  # bf16 it was
        assert own_error <= 2 * plain_error


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
                values = token_logprobs(leaves[0], OutputLayer(leaves[1], leaves[2]), targets)
            else:
                logits = torch.nn.functional.linear(*leaves)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        values.backward(incoming.to(values.dtype))
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == 3 and all(gradient.dtype == kind for gradient in gradients)
        return [tensor.detach().double() for tensor in (values, *gradients)]

    truth, plain, actual = run(None, False), run(torch.bfloat16, False), run(torch.bfloat16, True)
    for exact, rounded, fused in zip(truth, plain, actual, strict=True):
        assert (rounded - exact).norm() > 1e-4 * exact.norm()  # bf16 it was
        assert (fused - exact).norm() <= 2 * (rounded - exact).norm()


# --- output layers


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
    actual = []
    for frozen in (False, True):
        lm = gpt2(0)
        lm.lm_head = torch.nn.Linear(lm.config.n_embd, 23, bias=False)
        torch.nn.init.constant_(lm.lm_head.weight, 0.1)
        lm.lm_head.weight.requires_grad_(not frozen)
        LogProbs(lm)(rows.ids, rows.starts, rows.lengths).sum().backward()
        actual.append({name: p.grad for name, p in lm.named_parameters() if p.grad is not None})
    assert actual[0].keys() - actual[1].keys() == {"lm_head.weight"}
    assert all(gradient.equal(actual[0][name]) for name, gradient in actual[1].items())
