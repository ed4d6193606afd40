"""Both decoders, token by token, against transformers' own forward over all that was read."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedModel

from imdb_rlhf.models.decoding import CachedDecoder, Decoder, open_decoder
from imdb_rlhf.models.gpt2_decoder import GPT2Decoder
from tests import tiny

SIZES = {"vocab_size": 23, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3}
RAGGED = [4, 1, 6, 2, 6, 1, 3]
# After how many reads which rows go on, in which order.
DROPS = {2: [5, 0, 3, 1, 2], 5: [4, 1, 0], 9: [2]}


make = partial(tiny.scattered_gpt2, attention="sdpa", **SIZES, dropout=0.1)


def some(count: int, vocabulary: int, seed: int) -> list[int]:
    return cast(list[int], torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.no_grad()
def whole(lm: PreTrainedModel, row: list[int]) -> Tensor:
    """(vocabulary,) logits of the token after a row, the row read whole and alone."""
    logits = lm(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
    assert isinstance(logits, Tensor)
    return logits


@torch.no_grad()
def replay(
    decoder: Decoder, lengths: list[int], new: int, vocabulary: int, drops: dict[int, list[int]] | None = None
) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Read random prompts of these lengths and `new` random tokens after each, as a sampling loop does.

    Yields:
        At each read, all tokens of each row until then, and the logits that the decoder gave.
    """
    texts = [some(length + max(lengths) + new, vocabulary, seed=row) for row, length in enumerate(lengths)]
    prompts = torch.full((len(lengths), max(lengths)), vocabulary - 1)
    for row, length in enumerate(lengths):
        prompts[row, :length] = torch.tensor(texts[row][:length])
    alive = list(range(len(lengths)))
    ids, starts = decoder.begin(prompts, torch.tensor(lengths))
    for reads, column in enumerate(range(ids.shape[1], max(lengths) + new + 1), start=1):
        logits = decoder.read(ids)
        # the tokens of its text that a row has read: those of its prompt, then one a column
        seen = [column if column < int(starts[row]) else lengths[row] + column - int(starts[row]) for row in alive]
        yield [texts[row][:count] for row, count in zip(alive, seen, strict=True)], logits
        following = [texts[row][count] for row, count in zip(alive, seen, strict=True)]
        if drops and reads in drops:
            keep = drops[reads]
            decoder.keep(torch.tensor(keep))
            alive, following = [alive[at] for at in keep], [following[at] for at in keep]
        ids = torch.tensor(following)[:, None]


def assert_logits(lm: PreTrainedModel, texts: list[list[int]], logits: Tensor) -> None:
    """A decoder's logits, against the model's over each row alone in double precision."""
    double = deepcopy(lm).double()
    truth = torch.stack([whole(double, text) for text in texts])
    assert logits.shape == truth.shape
    assert logits.dtype == torch.float32
    assert (logits - truth).abs().max() <= 1e-5 * truth.abs().max()


# --- GPT-2's own


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [
        (RAGGED, 8),
        ([5, 5, 5], 6),
        ([1, 1, 1, 1], 6),
        ([1], 6),
        ([7], 5),
        ([1, 9], 4),
        ([3, 4], 0),
        ([1], 0),
    ],
    ids=["ragged", "equal", "one token each", "one token", "one row", "far apart", "prompts alone", "one token alone"],
)
def test_logits_are_those_of_the_rows_read_whole(lengths: list[int], new: int, attention: str) -> None:
    lm = make(attention=attention)
    decoder = open_decoder(lm, len(lengths), max(lengths) + new)
    assert isinstance(decoder, GPT2Decoder)
    reads = list(replay(decoder, lengths, new, 23))
    assert len(reads) == new + 1  # prompts are read at once, whatever their lengths
    for texts, logits in reads:
        assert_logits(lm, texts, logits)
    assert [len(text) for text in reads[-1][0]] == [length + new for length in lengths]


@pytest.mark.parametrize("lengths", [RAGGED, [4] * 7])
def test_rows_that_are_kept_go_on_in_their_new_order(lengths: list[int]) -> None:
    lm = make()
    reads = list(replay(open_decoder(lm, 7, 20), lengths, 12, 23, DROPS))
    assert [len(texts) for texts, _ in reads] == [7] * 2 + [5] * 3 + [3] * 4 + [1] * 4
    for texts, logits in reads:
        assert_logits(lm, texts, logits)


def test_a_context_may_be_filled_to_its_last_position() -> None:
    lm = make(n_positions=14)
    reads = list(replay(open_decoder(lm, 3, 14), [6, 2, 6], 8, 23))
    assert [len(text) for text in reads[-1][0]] == [14, 10, 14]
    assert_logits(lm, *reads[-1])
    (texts, logits), *_ = replay(open_decoder(lm, 1, 14), [14], 0, 23)
    assert_logits(lm, texts, logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_head": 1, "n_layer": 1},
        {"n_embd": 5, "n_head": 5},
        {"n_embd": 15},
        {"n_embd": 13, "n_head": 1, "n_inner": 17, "n_layer": 3},
        {"vocab_size": 1},
        {"vocab_size": 2},
        {"layer_norm_epsilon": 0.3},
        {"tie_word_embeddings": False},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_odd_sizes(changes: dict[str, Any]) -> None:
    lm = make(**changes)
    vocabulary = lm.config.vocab_size
    decoder = open_decoder(lm, 7, 18)
    assert isinstance(decoder, GPT2Decoder)
    for texts, logits in replay(decoder, RAGGED, 12, vocabulary, DROPS):
        assert_logits(lm, texts, logits)


def test_an_output_layer_may_have_a_bias() -> None:
    lm = make(tie_word_embeddings=False)
    lm.lm_head = nn.Linear(12, 23)
    nn.init.normal_(lm.lm_head.bias)
    for texts, logits in replay(open_decoder(lm, 3, 8), [2, 5, 1], 3, 23):
        assert_logits(lm, texts, logits)


def test_neighbours_do_not_change_a_rows_logits() -> None:
    lm = make()
    others = [logits[2] for _, logits in replay(open_decoder(lm, 7, 10), RAGGED, 4, 23)]
    alone = []
    with torch.no_grad():
        decoder = open_decoder(lm, 1, 10)
        text = some(16, 23, seed=2)
        ids, _ = decoder.begin(torch.tensor([text[:6]]), torch.tensor([6]))
        for at in range(5):
            alone.append(decoder.read(ids)[0])
            ids = torch.tensor([[text[6 + at]]])
    torch.testing.assert_close(torch.stack(others), torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [RAGGED, [4] * 7])
def test_bf16_errs_at_most_twice_as_much_as_transformers(lengths: list[int], parameters: torch.dtype) -> None:
    """Over some 12,000 logits each of three models, against rows read whole by transformers in the same precision."""
    errors = {"own": 0.0, "transformers": 0.0}
    for seed in range(3):
        lm = make(seed=seed, spread=0.15, vocab_size=211, n_embd=48).to(parameters)
        double = deepcopy(lm).double()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=parameters == torch.float32):
            reads = list(replay(open_decoder(lm, 7, 20), lengths, 12, 211, DROPS))
            plain = [torch.stack([whole(lm, text) for text in texts]) for texts, _ in reads]
        for (texts, logits), plain_logits in zip(reads, plain, strict=True):
            truth = torch.stack([whole(double, text) for text in texts])
            assert (logits.dtype, plain_logits.dtype) == (torch.float32, torch.bfloat16)
            errors["own"] += float((logits - truth).abs().sum())
            errors["transformers"] += float((plain_logits - truth).abs().sum())
    assert errors["own"] <= 2 * errors["transformers"]


def test_bf16_logits_are_near_the_float32_ones() -> None:
    """By the size of bf16's 8 bits: a bound on bf16 against bf16 holds too where both are far off."""
    lm = make(spread=0.15, vocab_size=211, n_embd=48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reads = list(replay(open_decoder(lm, 7, 20), RAGGED, 12, 211, DROPS))
    for texts, logits in reads:
        truth = torch.stack([whole(lm, text) for text in texts])
        assert (logits.float() - truth).norm() < 0.02 * truth.norm()


def test_reading_makes_no_gradients_and_changes_no_parameter() -> None:
    lm = make()
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    reads = list(replay(open_decoder(lm, 3, 8), [2, 5, 1], 3, 23))
    assert not any(logits.requires_grad for _, logits in reads)
    assert all(parameter.equal(before[name]) for name, parameter in lm.named_parameters())


def test_each_decoder_has_the_precision_that_it_is_opened_in() -> None:
    lm = make()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            reads = list(replay(open_decoder(lm, 3, 8), [2, 5, 1], 3, 23))
        assert {logits.dtype for _, logits in reads} == {torch.float32}
        texts, logits = reads[-1]
        if dtype == torch.float32:
            assert_logits(lm, texts, logits)
        else:
            assert (logits - torch.stack([whole(lm, text) for text in texts])).abs().max() > 1e-3  # bf16 it was


# --- any other model's


class Low(nn.Module):
    """What adapters do to a layer: its own output and that of a product of low rank."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.down, self.up = (nn.Linear(a, b, bias=False) for a, b in ((layer.nx, 2), (2, layer.nf)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) + self.up(self.down(x))
        assert isinstance(out, Tensor)
        return out


def changed(kind: str) -> PreTrainedModel:
    """A model that GPT-2's own decoder does not compute."""
    torch.manual_seed(0)
    if kind == "gptj":
        config = GPTJConfig(**SIZES, rotary_dim=4, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
        lm = GPTJForCausalLM(config).eval()
        nn.init.normal_(lm.lm_head.bias)
        return lm
    lm = make(activation_function="relu" if kind == "relu" else "gelu_new")
    if kind == "adapter":
        lm.transformer.h[1].attn.c_attn = Low(lm.transformer.h[1].attn.c_attn)
    if kind == "hook":
        lm.transformer.h[1].mlp.register_forward_hook(lambda module, args, out: out * 2)
    return lm


@pytest.mark.parametrize("lengths", [RAGGED, [4] * 7])
@pytest.mark.parametrize("kind", ["gptj", "relu", "adapter", "hook"])
def test_another_model_is_read_through_its_own_cache(kind: str, lengths: list[int]) -> None:
    lm = changed(kind)
    decoder = open_decoder(lm, 7, 20)
    assert isinstance(decoder, CachedDecoder)
    reads = list(replay(decoder, lengths, 12, 23, DROPS))
    assert len(reads) == max(lengths) - min(lengths) + 13
    for texts, logits in reads:
        assert_logits(lm, texts, logits)


def test_both_decoders_give_a_plain_gpt2_the_same_logits() -> None:
    lm, outputs = make(), []
    for decoder in (open_decoder(lm, 7, 20), CachedDecoder(lm, 7)):
        reads = replay(decoder, RAGGED, 5, 23)
        outputs.append({tuple(text): row for texts, logits in reads for text, row in zip(texts, logits, strict=True)})
    own, cached = outputs
    both = own.keys() & cached.keys()
    assert len(both) >= 7 * 6  # the prompts, and 5 tokens more
    for text in both:
        torch.testing.assert_close(own[text], cached[text], atol=1e-5, rtol=1e-5)


def test_a_model_in_training_mode_is_read_by_its_own_forward() -> None:
    lm = make(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.4).train()
    assert isinstance(open_decoder(lm, 2, 8), CachedDecoder)
    assert isinstance(open_decoder(lm.eval(), 2, 8), GPT2Decoder)
