"""The split of the variance by hand, against one-way analysis of variance, and on known components."""

import numpy as np
import pytest
import scipy.stats

from imdb_rlhf.evaluation.components import components

CONFIDENCE = 0.95


def drawn(
    random: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    reference: float,
    seed: float,
    prompt: float,
    rest: float,
) -> np.ndarray:
    """(references, seeds, prompts) normal numbers with these standard deviations."""
    references, seeds, prompts = shape
    values = random.normal(0, reference, (references, 1, 1)) + random.normal(0, seed, (references, seeds, 1))
    return values + random.normal(0, prompt, prompts) + random.normal(0, rest, shape)


def test_prompts_alone() -> None:
    values = np.tile(np.array([0.0, 1.0, 2.0, 5.0]), (2, 3, 1))
    split = components(values, CONFIDENCE, 0)
    assert split.prompts.sd == pytest.approx(np.std([0, 1, 2, 5], ddof=1) / 2)  # sqrt 4 prompts
    assert split.seed is not None and split.seed.sd == 0 and split.seed.ci == (0, 0)
    assert split.reference is not None and split.reference.sd == 0


def test_seeds_alone_have_the_interval_of_a_standard_deviation() -> None:
    # no prompt differs: the runs are a normal sample, whose variance has the chi-square interval
    runs = np.array([1.0, 2.0, 4.0, 4.5, 7.0])
    split = components(np.repeat(runs[None, :, None], 6, axis=2), CONFIDENCE, 0)
    sd = runs.std(ddof=1)
    low, high = (sd * np.sqrt(4 / scipy.stats.chi2.ppf(q, 4)) for q in (0.975, 0.025))
    assert split.seed is not None and split.reference is None
    assert split.seed.sd == pytest.approx(sd)
    assert split.seed.ci == pytest.approx((low, high), rel=0.03)
    assert split.prompts.sd == 0


def test_references_and_seeds_are_a_one_way_analysis_of_variance() -> None:
    runs = np.random.default_rng(0).normal(0, 1, (4, 5)) + np.arange(4)[:, None]
    split = components(np.repeat(runs[:, :, None], 3, axis=2), CONFIDENCE, 0)
    f = scipy.stats.f_oneway(*runs).statistic
    within = runs.var(axis=1, ddof=1).mean()
    assert split.seed is not None and split.reference is not None
    assert split.seed.sd == pytest.approx(np.sqrt(within))
    assert split.reference.sd == pytest.approx(np.sqrt((f - 1) * within / 5))  # F = 1 + 5 s_r^2 / s^2, in expectation


def test_by_hand_with_both_of_seed_and_prompt() -> None:
    # two seeds, two prompts: y = [[0, 2], [4, 10]]; run means 1 and 7, prompt means 2 and 6, mean 4
    split = components(np.array([[[0.0, 2.0], [4.0, 10.0]]]), CONFIDENCE, 0)
    # seed: mean square 2 (9 + 9) = 36; rest: residuals 1, -1, -1, 1: mean square 4; (36 - 4) / 2
    assert split.seed is not None
    assert split.seed.sd == pytest.approx(4)
    # variance within a run: 2 and 18, mean 10, over 2 prompts
    assert split.prompts.sd == pytest.approx(np.sqrt(5))


def test_what_cannot_be_told_apart_is_not_told() -> None:
    values = np.random.default_rng(0).normal(size=(3, 1, 9))
    assert components(values, CONFIDENCE, 0).seed is None
    assert components(values, CONFIDENCE, 0).reference is None
    assert components(values[:1].reshape(1, 1, 9), CONFIDENCE, 0).seed is None
    for shape in ((3, 9), (1, 2, 1)):
        with pytest.raises(ValueError, match="references, seeds, prompts"):
            components(np.zeros(shape), CONFIDENCE, 0)


def test_unbiased_on_known_components() -> None:
    random = np.random.default_rng(1)
    known = {"reference": 0.5, "seed": 0.8, "prompt": 2.0, "rest": 3.0}
    squares = np.zeros(3)
    for _ in range(400):
        split = components(drawn(random, (6, 5, 40), **known), CONFIDENCE, 0)
        assert split.seed is not None and split.reference is not None
        squares += np.array([split.prompts.sd**2, split.seed.sd**2, split.reference.sd**2]) / 400
    assert squares[0] == pytest.approx((2**2 + 3**2) / 40, rel=0.03)
    assert squares[1] == pytest.approx(0.8**2, rel=0.05)
    assert squares[2] == pytest.approx(0.5**2, rel=0.15)  # estimates below 0 are 0, so slightly above


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "known"),
    [
        ((1, 5, 256), {"reference": 0.0, "seed": 0.2, "prompt": 1.0, "rest": 1.0}),
        ((1, 5, 256), {"reference": 0.0, "seed": 1.0, "prompt": 1.0, "rest": 1.0}),
        ((1, 10, 256), {"reference": 0.0, "seed": 0.1, "prompt": 1.0, "rest": 1.0}),
        ((3, 5, 256), {"reference": 1.0, "seed": 1.0, "prompt": 1.0, "rest": 1.0}),
        ((3, 5, 256), {"reference": 1.0, "seed": 0.3, "prompt": 1.0, "rest": 1.0}),
    ],
)
def test_95_percent_intervals_cover_93_to_97(shape: tuple[int, int, int], known: dict[str, float]) -> None:
    random, held, repetitions = np.random.default_rng(2), np.zeros(3), 2000
    truth = (np.sqrt((known["prompt"] ** 2 + known["rest"] ** 2) / shape[2]), known["seed"], known["reference"])
    for repetition in range(repetitions):
        split = components(drawn(random, shape, **known), CONFIDENCE, repetition)
        parts = (split.prompts, split.seed, split.reference)
        for i, part in enumerate(parts):
            held[i] += part is not None and part.ci[0] <= truth[i] <= part.ci[1]
    for i, coverage in enumerate(held / repetitions):
        assert 0.93 <= coverage <= 0.97 or (i == 2 and shape[0] == 1)


@pytest.mark.slow
def test_the_prompts_interval_covers_93_to_97_for_rewards() -> None:
    # rewards between 0 and 1 are far from normal
    random, held = np.random.default_rng(3), 0
    for repetition in range(2000):
        part = components(random.beta(0.5, 0.8, (1, 1, 256)), CONFIDENCE, repetition).prompts
        held += part.ci[0] <= np.sqrt(0.5 * 0.8 / 1.3**2 / 2.3 / 256) <= part.ci[1]
    assert 0.93 <= held / 2000 <= 0.97
