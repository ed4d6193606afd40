"""The sampler against enumerated probabilities and against a loop without cache, batch or tricks."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models.sampling import batches_by_length, draw, sample, uniforms

EOS = 4
JUST_BELOW_1 = float(np.nextafter(1.0, 0.0))  # 1 in float32


def gpt2(seed: int, vocabulary: int = 5) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.3, bos_token_id=EOS, eos_token_id=EOS, **sizes)).eval()


def naive(lm: GPT2LMHeadModel, prompt: list[int], uniform: np.ndarray, temperature: float) -> list[int]:
    """One completion: whole forward passes in float64, numpy's cumulative sum."""
    completion: list[int] = []
    for u in uniform:
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt + completion])).logits[0, -1]
        cumulative = np.cumsum((logits.double() / temperature).softmax(-1).numpy())
        completion.append(min(int((cumulative <= u).sum()), len(cumulative) - 1))
        if completion[-1] == EOS:
            break
    return completion


# --- one draw


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.2, 0), (0.25, 1), (0.3, 1), (0.74, 1), (0.76, 2), (JUST_BELOW_1, 2)]
)
def test_a_draw_inverts_the_cumulative_probabilities(uniform: float, token: int) -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0]]).log()  # 1/4, 1/2, 1/4
    assert draw(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[1.0, 3.0]]).log().expand(2, 2)
    uniform = torch.tensor([0.09, 0.11], dtype=torch.float64)
    assert draw(logits, uniform, 0.5).tolist() == [0, 1]  # 1 : 9
    assert draw(logits, uniform, 1.0).tolist() == [0, 0]  # 1 : 3


@pytest.mark.parametrize("uniform", [0.0, 1e-12, 0.5, 0.9999999, JUST_BELOW_1])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    never = -torch.inf
    logits = torch.tensor([[never, 0.3, never, 0.1, never], [never, never, 5.0, never, never]])
    drawn = draw(logits, torch.full((2,), uniform, dtype=torch.float64))
    assert drawn[0].item() == (1 if uniform < 0.55 else 3)
    assert drawn[1].item() == 2


def test_a_large_vocabulary_has_no_draw_off_its_end() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 5003)
    logits[:, 4000:] = -torch.inf
    uniform = torch.cat([torch.full((32,), JUST_BELOW_1, dtype=torch.float64), 1 - 2.0 ** -torch.arange(20, 52)])
    assert draw(logits, uniform).max() < 4000
    assert draw(logits.bfloat16(), uniform).max() < 4000


# --- many completions


def world() -> list[tuple[int, ...]]:
    """All completions of at most 3 tokens; EOS ends one."""
    return [
        y[:length]
        for length in (1, 2, 3)
        for y in product(range(5), repeat=length)
        if EOS not in y[: length - 1] and (length == 3 or y[-1] == EOS)
    ]


def enumerated(lm: GPT2LMHeadModel, prompt: list[int], temperature: float) -> np.ndarray:
    """The probability of each completion of `world`."""
    found = []
    for y in world():
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt + list(y)])).logits[0].double() / temperature
        steps = logits.softmax(-1)
        found.append(np.prod([float(steps[len(prompt) - 1 + at, token]) for at, token in enumerate(y)]))
    return np.array(found)


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of a chi-square test; outcomes that are expected less than 8 times are counted as one."""
    expected = probabilities / probabilities.sum() * counts.sum()
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(*halves))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_the_enumerated_probabilities(temperature: float) -> None:
    lm, prompt, count = gpt2(0), [2, 0], 6000
    samples = sample(lm, [prompt] * count, np.random.default_rng(1).random((count, 3)), EOS, temperature)
    index = {y: at for at, y in enumerate(world())}
    counts = np.bincount([index[tuple(ids)] for ids in samples.ids], minlength=len(index))
    assert p_value(counts, enumerated(lm, prompt, temperature)) > 0.01
    assert p_value(counts, enumerated(lm, prompt, 0.85)) < 1e-6  # the test has the power to tell
    ends = [ids[-1] == EOS for ids in samples.ids]
    assert samples.finished == ends
    assert 0 < sum(ends) < count


def test_eos_ends_a_completion_and_a_cut_one_has_none() -> None:
    lm, count, steps = gpt2(2), 64, 7
    samples = sample(lm, [[1]] * count, np.random.default_rng(0).random((count, steps)), EOS)
    assert {len(ids) for ids, ended in zip(samples.ids, samples.finished, strict=True) if not ended} == {steps}
    assert len({len(ids) for ids, ended in zip(samples.ids, samples.finished, strict=True) if ended}) > 1
    for ids, ended in zip(samples.ids, samples.finished, strict=True):
        assert ids.count(EOS) == ended
        assert not ended or ids[-1] == EOS


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_completions_are_those_of_a_loop_without_cache(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, count, steps = gpt2(0), 40, 12
    prompts = np.random.default_rng(3).integers(0, 4, (count, 3)).tolist()
    random = np.random.default_rng(4).random((count, steps))
    selected: list[int] = []
    select = DynamicCache.batch_select_indices

    def spy(cache: DynamicCache, keep: torch.Tensor) -> None:
        selected.append(len(keep))
        select(cache, keep)

    monkeypatch.setattr(DynamicCache, "batch_select_indices", spy)
    found = sample(lm, prompts, random, EOS, temperature).ids
    assert len(selected) > 1  # rows were dropped on the way, more than once
    assert found == [naive(lm, p, u, temperature) for p, u in zip(prompts, random, strict=True)]


def test_a_row_depends_on_its_own_prompt_and_uniforms_alone() -> None:
    lm, count = gpt2(0), 24
    prompts = np.random.default_rng(3).integers(0, 4, (count, 2)).tolist()
    random = np.random.default_rng(5).random((count, 10))
    together = sample(lm, prompts, random, EOS).ids
    assert len(set(map(tuple, together))) > count // 2
    alone = [sample(lm, [p], u[None], EOS).ids[0] for p, u in zip(prompts, random, strict=True)]
    assert alone == together
    order = np.random.default_rng(6).permutation(count)
    shuffled = sample(lm, [prompts[i] for i in order], random[order], EOS).ids
    assert shuffled == [together[i] for i in order]


def test_finished_rows_are_not_computed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, count, steps = gpt2(0), 200, 20
    random = np.random.default_rng(7).random((count, steps))
    sizes: list[int] = []
    forward = type(lm.transformer).forward

    def spy(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        sizes.append(len(kwargs["input_ids"]))  # type: ignore[arg-type]
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.transformer), "forward", spy)
    lengths = np.array([len(ids) for ids in sample(lm, [[1]] * count, random, EOS, 4.0).ids])
    assert np.median(lengths) > 2  # few end at any one step
    # of the rows of a step at least 3 in 4 are still being written
    for step, size in enumerate(sizes):
        assert (lengths > step).sum() >= 0.75 * size
    assert len(sizes) == lengths.max()


def test_prompts_of_different_lengths_draw_as_they_do_alone() -> None:
    lm, random = gpt2(0), np.random.default_rng(3)
    prompts = [random.integers(0, 4, size=size).tolist() for size in (1, 3, 2, 4, 3, 1)]
    uniform, limit = random.random((6, 4)), np.array([4, 1, 3, 4, 4, 2])
    together = sample(lm, prompts, uniform, EOS, 0.8, limit)
    for row, prompt in enumerate(prompts):
        alone = naive(lm, prompt, uniform[row, : limit[row]], 0.8)
        assert together.ids[row] == alone
        assert together.finished[row] == (alone[-1] == EOS)
    assert len({len(ids) for ids in together.ids}) > 2


def test_logits_that_are_not_finite_end_in_one_line() -> None:
    lm = gpt2(0)
    torch.nn.init.constant_(lm.transformer.wte.weight, float("nan"))
    with pytest.raises(RunError, match="not finite"):
        sample(lm, [[1, 2], [3]], np.full((2, 3), 0.5), EOS)


# --- what belongs to a row


def test_uniforms_belong_to_their_prompt() -> None:
    both, second = uniforms(0, "groups", [3, 5], 2, 4), uniforms(0, "groups", [5], 2, 4)
    assert both.shape == (2, 2, 4)
    assert both.dtype == np.float64
    assert np.array_equal(both[1], second[0])
    assert np.array_equal(uniforms(0, "groups", [5], 3, 4)[0, :2], second[0])  # more samples leave the first alone
    assert both.min() >= 0 and both.max() < 1
    others = [uniforms(1, "groups", [5], 2, 4), uniforms(0, "evaluation", [5], 2, 4), both[:1]]
    assert not any(np.intersect1d(second, other).size for other in others)
    assert len(np.unique(both)) == both.size


def test_batches_are_of_one_length() -> None:
    found = [batch.tolist() for batch in batches_by_length([3, 2, 3, 5, 3, 2], 2)]
    assert found == [[1, 5], [0, 2], [4], [3]]
    assert batches_by_length([], 2) == []
