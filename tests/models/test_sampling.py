"""The sampler against enumerated probabilities and against a loop without cache, batch or tricks."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models import sampling
from imdb_rlhf.models.sampling import batches_by_length, draw, sample, uniforms
from tests import tiny

EOS = 4
JUST_BELOW_1 = float(np.nextafter(1.0, 0.0))  # 1 in float32


gpt2 = partial(tiny.gpt2, vocabulary=5, context=40, spread=0.3, eos=EOS)


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
    probabilities = []
    for y in world():
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt + list(y)])).logits[0].double() / temperature
        steps = logits.softmax(-1)
        probabilities.append(np.prod([float(steps[len(prompt) - 1 + at, token]) for at, token in enumerate(y)]))
    return np.array(probabilities)


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
    completions = sample(lm, prompts, random, EOS, temperature).ids
    assert len(selected) > 1  # rows were dropped on the way, more than once
    assert completions == [naive(lm, p, u, temperature) for p, u in zip(prompts, random, strict=True)]


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
    batches = [batch.tolist() for batch in batches_by_length([3, 2, 3, 5, 3, 2], 2)]
    assert batches == [[1, 5], [0, 2], [4], [3]]
    assert batches_by_length([], 2) == []


# --- a draw in two levels against plain sums in float64

EXTREMES = [0.0, 2.0**-60, 2.0**-24, 0.5, 1 - 2.0**-24, 1 - 2.0**-52, JUST_BELOW_1]


def assert_inverts(
    logits: torch.Tensor, uniform: torch.Tensor, drawn: torch.Tensor, temperature: float = 1.0, within: float = 1e-6
) -> None:
    """Each draw has a probability, and its part of [0, 1) holds its uniform, up to float32's rounding."""
    probabilities = (logits.double() / temperature).softmax(-1)
    upper = probabilities.cumsum(-1).gather(1, drawn[:, None])[:, 0]
    own = probabilities.gather(1, drawn[:, None])[:, 0]
    assert drawn.dtype == torch.int64
    assert (own > 0).all()
    assert (uniform <= upper + within).all()
    assert (uniform >= upper - own - within).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 15, 16, 17, 101, 1009])
def test_draws_are_those_of_cumulative_sums_in_float64(vocabulary: int, dtype: torch.dtype) -> None:
    for seed, (scale, temperature) in enumerate([(0.0, 1.0), (1.0, 1.0), (5.0, 0.7), (5.0, 1.9), (40.0, 1.0)]):
        torch.manual_seed(seed)
        logits = scale * torch.randn(400, vocabulary, dtype=torch.float64)
        logits[torch.rand(400, vocabulary) < 0.3] = -torch.inf
        logits[torch.arange(400), torch.randint(vocabulary, (400,))] = scale  # one at least can be drawn
        uniform = torch.rand(400, dtype=torch.float64)
        uniform[: len(EXTREMES)] = torch.tensor(EXTREMES, dtype=torch.float64)
        given = logits.to(dtype)
        assert_inverts(given.float(), uniform, draw(given, uniform, temperature), temperature)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 49, 50, 101])
def test_a_single_possible_token_is_drawn_wherever_it_stands(vocabulary: int) -> None:
    logits = torch.full((vocabulary, vocabulary), -torch.inf).fill_diagonal_(-3.0)
    for uniform in EXTREMES:
        drawn = draw(logits, torch.full((vocabulary,), uniform, dtype=torch.float64))
        assert drawn.tolist() == list(range(vocabulary))


def test_evenly_spaced_uniforms_draw_each_token_as_often_as_its_probability_says() -> None:
    """To within one draw at each edge of each token's part: the second level is as fine as the first."""
    torch.manual_seed(0)
    count, logits = 30_000, 2 * torch.randn(1, 53)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = draw(logits.expand(count, 53), uniform)
    assert (drawn.diff() >= 0).all()
    expected = logits[0].double().softmax(-1) * count
    assert (torch.bincount(drawn, minlength=53) - expected).abs().max() <= 2


@pytest.mark.parametrize("shift", [-1e30, -65536.0, 65536.0, 1e30])
def test_huge_logits_draw_as_their_differences_say(shift: float) -> None:
    logits = torch.zeros(len(EXTREMES), 10)
    logits[:, [2, 5, 9]] = torch.tensor([1.0, 3.0, 0.0])
    wide = torch.where(logits > 0, logits, -torch.inf) + shift  # rounds, at 1e30 to equal ones
    uniform = torch.tensor(EXTREMES, dtype=torch.float64)
    assert_inverts(wide, uniform, draw(wide, uniform))
    apart = torch.tensor([[3e38, -3e38, 3e38, 0.0]]).expand(len(EXTREMES), 4)
    assert draw(apart, uniform).tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_improbable_tokens_are_drawn_where_their_part_lies() -> None:
    """Parts far smaller than float32's rounding of 1."""
    logits = torch.zeros(4, 30)
    logits[:, 0], logits[:, 1], logits[:, 2:] = -60.0, -55.0, -torch.inf
    logits[:, 29] = 0.0
    first, second = np.exp(-60.0), np.exp(-55.0)
    uniform = torch.tensor([0.5 * first, first + 0.5 * second, 1e-9, 0.9], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [0, 1, 29, 29]
    for place in (1, 29):  # in the likely token's block, and far from it
        last = torch.full((2, 30), -torch.inf)
        last[:, 0], last[:, place] = 0.0, -23.0
        uniform = 1 - torch.tensor([0.5, 2.0], dtype=torch.float64) * np.exp(-23.0)
        assert draw(last, uniform).tolist() == [place, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_over_thousands_of_tokens(dtype: torch.dtype) -> None:
    vocabulary, rows, random = 3001, 500, np.random.default_rng(0)
    ranks = torch.from_numpy(random.permutation(vocabulary)).double()
    logits = (-1.1 * (ranks + 5).log()).to(dtype)
    logits[::7] = -torch.inf
    room, counts = sampling.room_for(rows, vocabulary, torch.device("cpu")), torch.zeros(vocabulary, dtype=torch.int64)
    for _ in range(200):
        drawn = draw(logits.expand(rows, vocabulary), torch.from_numpy(random.random(rows)), 0.9, room)
        counts += torch.bincount(drawn, minlength=vocabulary)
    probabilities = (logits.double() / 0.9).softmax(-1).numpy()
    assert p_value(counts.numpy(), probabilities) > 0.01
    assert p_value(counts.numpy(), (logits.double() / 0.95).softmax(-1).numpy()) < 1e-6  # the test can tell


def test_a_room_is_written_over() -> None:
    torch.manual_seed(0)
    for vocabulary in (1, 2, 10, 50):
        room = sampling.room_for(40, vocabulary, torch.device("cpu"))
        for rows in (40, 17, 1, 40):
            logits, uniform = 3 * torch.randn(rows, vocabulary), torch.rand(rows, dtype=torch.float64)
            before = logits.clone()
            assert draw(logits, uniform, 0.8, room).equal(draw(logits, uniform, 0.8))
            assert logits.equal(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 39, 40, 41])  # prepared at once
def test_rows_prepared_a_few_at_a_time_draw_as_all_at_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    torch.manual_seed(0)
    logits, uniform = 3 * torch.randn(40, 50), torch.rand(40, dtype=torch.float64)
    expected = draw(logits, uniform, 0.8)
    assert_inverts(logits, uniform, expected, 0.8)
    monkeypatch.setattr(sampling, "CACHED", rows * 50 + 49)
    assert draw(logits, uniform, 0.8).equal(expected)
    monkeypatch.setattr(sampling, "CACHED", 1)  # less than a row
    assert draw(logits, uniform, 0.8).equal(expected)


@pytest.mark.parametrize("vocabulary", [1, 2, 9, 10, 101])
def test_nan_draws_a_token_beyond_the_vocabulary_and_leaves_other_rows_alone(vocabulary: int) -> None:
    torch.manual_seed(0)
    logits, uniform = torch.randn(4, vocabulary), torch.tensor([0.0, 0.3, 0.6, JUST_BELOW_1], dtype=torch.float64)
    broken = logits.clone()
    broken[1, vocabulary // 2] = torch.nan
    broken[3] = torch.nan
    drawn = draw(broken, uniform)
    assert (drawn[[1, 3]] >= vocabulary).all()
    assert drawn[[0, 2]].equal(draw(logits, uniform)[[0, 2]])
    never = torch.full((1, vocabulary), -torch.inf)  # nothing can be drawn
    assert draw(never, uniform[:1]).item() >= vocabulary
    broken[1] = torch.inf
    assert draw(broken, uniform)[1].item() >= vocabulary


# --- completions by transformers' own forward


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [3, 1, 6, 2, 6, 1], [4] * 5])
def test_completions_in_bf16_have_the_log_probs_of_their_draws(lengths: list[int]) -> None:
    """Whatever bf16 rounds, each token's part of [0, 1) holds its uniform, nearly."""
    lm, random = gpt2(0, vocabulary=101), np.random.default_rng(1)
    prompts = [random.integers(5, 101, size).tolist() for size in lengths]
    uniform = random.random((len(lengths), 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        completions = sample(lm, prompts, uniform, EOS).ids
    for prompt, completion, row in zip(prompts, completions, uniform, strict=True):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        assert_inverts(logits, torch.from_numpy(row[: len(completion)]), torch.tensor(completion), within=0.03)
