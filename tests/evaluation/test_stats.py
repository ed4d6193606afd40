"""Statistics by hand and against known distributions."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from imdb_rlhf.evaluation.stats import (
    bootstrap_mean,
    difference_interval,
    distinct_n,
    holm,
    over_seeds,
    percentile,
    prompt_means,
    resamples,
    two_sided_p,
    win_rates,
)


def frame(rows: list[tuple[int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt_id", "reward_logit"])


def test_prompt_means_come_in_the_order_of_the_ids() -> None:
    assert prompt_means(frame([(2, 1.0), (0, 4.0), (2, 3.0), (0, 0.0), (1, 7.0)]), "reward_logit").tolist() == [2, 7, 2]


# --- bootstrap


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean(np.full(9, 0.25), 500, 0.95, 0) == (0.25, 0.25)


def test_two_values_by_enumeration() -> None:
    # the mean of two draws from {0, 1} is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_mean(np.array([0.0, 1.0]), 4000, 0.6, 0) == (0.0, 1.0)  # tails of 0.2 < 1/4
    assert bootstrap_mean(np.array([0.0, 1.0]), 4000, 0.4, 0) == (0.5, 0.5)  # tails of 0.3 > 1/4


@pytest.mark.parametrize(("confidence", "deviations"), [(0.95, 1.96), (0.8, 1.2816)])
def test_many_values_have_the_interval_of_the_normal(confidence: float, deviations: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_mean(values, 20_000, confidence, 1)
    error = values.std() / 20  # sqrt 400
    assert high - low == pytest.approx(2 * deviations * error, rel=0.03)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.03 * error * 2)


def test_95_in_100_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(2)
    held = 0
    for seed in range(300):
        low, high = bootstrap_mean(random.normal(0, 1, 60), 400, 0.95, seed)
        held += low <= 0 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_resampling_is_a_function_of_the_seed_and_paired() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_mean(values, 300, 0.9, 4)
    assert bootstrap_mean(values, 300, 0.9, 4) == first
    assert bootstrap_mean(values, 300, 0.9, 5) != first
    # the same prompts are drawn for another policy, so a shift of all values shifts the interval
    assert bootstrap_mean(values + 2, 300, 0.9, 4) == pytest.approx((first[0] + 2, first[1] + 2))


def test_resamples_are_the_draws_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=30)
    shares = resamples(30, 450, 7)
    assert shares.shape == (450, 30)
    assert shares.sum(1) == pytest.approx(np.ones(450))
    assert (shares * 30 == np.round(shares * 30)).all()  # so many times each prompt was drawn
    assert percentile(shares @ values, 0.9) == pytest.approx(bootstrap_mean(values, 450, 0.9, 7))
    assert (resamples(30, 450, 7) == shares).all()
    assert (resamples(30, 450, 8) != shares).any()


def test_percentiles_by_hand() -> None:
    draws = np.arange(101.0)
    assert percentile(draws, 0.9) == pytest.approx((5, 95))
    low, high = percentile(np.stack([draws, -2 * draws], axis=1), 0.5)
    assert low == pytest.approx([25, -150])
    assert high == pytest.approx([75, -50])


def test_95_percent_intervals_over_prompts_cover_93_to_97() -> None:
    rewards = np.random.default_rng(3).beta(0.5, 0.8, (256, 2000))  # a repetition a column
    low, high = percentile(resamples(256, 1000, 0) @ rewards, 0.95)
    truth = 0.5 / 1.3
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


# --- training seeds

PROMPTS = 256
SHARES = resamples(PROMPTS, 400, 0)


def covers(
    of_prompt: float, of_seed: float, of_both: float, seeds: int, repetitions: int = 2000
) -> tuple[float, float]:
    """How often the interval, and a percentile bootstrap over prompts and seeds, hold a mean over seeds that is 0."""
    random = np.random.default_rng(seeds)
    held = naive = 0
    for repetition in range(repetitions):
        values = random.normal(0, of_both, (seeds, PROMPTS)) + random.normal(0, of_seed, (seeds, 1))
        values += random.normal(0, of_prompt, PROMPTS)
        draws = values @ SHARES.T
        low, high = over_seeds(values.mean(1), draws, 0.95, PROMPTS, repetition)
        held += low <= 0 <= high
        chosen = random.integers(0, seeds, (len(SHARES), seeds))
        low, high = percentile(draws[chosen, np.arange(len(SHARES))[:, None]].mean(1), 0.95)
        naive += low <= 0 <= high
    return held / repetitions, naive / repetitions


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_both"), [(3, 0.02, 0.2), (3, 1.0, 0.3), (5, 0.06, 0.5), (10, 0.06, 0.5), (10, 0.5, 0.3)]
)
def test_95_percent_intervals_over_seeds_cover_93_to_97(seeds: int, of_seed: float, of_both: float) -> None:
    coverage, naive = covers(1.0 if of_seed < 1 else 0.3, of_seed, of_both, seeds)
    assert 0.93 <= coverage <= 0.97
    if of_seed > 0.4:  # Where seeds matter most few cannot be resampled. Of 3 the interval is their range, which holds
        # the mean in 1 - 2/8; of 10 it is 1.96 sqrt(9/10) standard errors, and the rest has the t distribution.
        assert naive == pytest.approx({3: 0.75, 10: 1 - 2 * scipy.stats.t.sf(1.96 * 0.9**0.5, 9)}[seeds], abs=0.025)


def test_an_interval_over_three_seeds_by_hand() -> None:
    # all prompts alike: a t-interval of 1, 2, 3 with 2 degrees of freedom, whose 97.5 % quantile is 4.302653
    estimates = np.array([1.0, 2.0, 3.0])
    draws = np.repeat(estimates[:, None], 50, axis=1)
    reach = 4.302653 / np.sqrt(3)
    assert over_seeds(estimates, draws, 0.95, 20, 0) == pytest.approx((2 - reach, 2 + reach), rel=1e-6)
    # all seeds alike: the prompts' standard deviation and 19 degrees of freedom, whose quantile is 2.093024
    draws = np.tile(np.linspace(1, 3, 50), (3, 1))
    reach = 2.093024 * np.linspace(1, 3, 50).std(ddof=1)
    assert over_seeds(np.full(3, 2.0), draws, 0.95, 20, 0) == pytest.approx((2 - reach, 2 + reach), rel=1e-6)


def test_parts_of_seeds_and_prompts_add() -> None:
    # each seed moves with the prompts alike: variance 1/3 of seeds (2 degrees of freedom) and v of prompts (19)
    common = np.linspace(-1, 1, 50)
    estimates = np.array([1.0, 2.0, 3.0])
    v = common.var(ddof=1)
    freedom = (1 / 3 + v) ** 2 / ((1 / 3) ** 2 / 2 + v**2 / 19)
    satterthwaite = scipy.stats.t.ppf(0.975, freedom)
    cochran = (scipy.stats.t.ppf(0.975, 2) / 3 + scipy.stats.t.ppf(0.975, 19) * v) / (1 / 3 + v)
    reach = (satterthwaite + cochran) / 2 * np.sqrt(1 / 3 + v)
    assert over_seeds(estimates, estimates[:, None] + common, 0.95, 20, 0) == pytest.approx((2 - reach, 2 + reach))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.4, 1, 3, 8, 20, 100])
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_whatever_moves_more(seeds: int, ratio: float) -> None:
    """Seeds make the mean vary `ratio` times as much as prompts do."""
    coverage, _ = covers(1.0, np.sqrt(ratio * seeds / PROMPTS), 0.05, seeds, repetitions=4000)
    assert 0.93 <= coverage <= 0.97


def test_what_a_seed_does_on_these_prompts_counts_once() -> None:
    # No seed is better than another, each has noise of its own on each prompt: it shows between seeds and between
    # prompts. The mean over 9 seeds has the variance (1 + 2/9) / 256; with the noise twice (1 + 4/9) / 256.
    random = np.random.default_rng(0)
    widths = []
    for repetition in range(300):
        values = random.normal(0, 1, PROMPTS) + random.normal(0, np.sqrt(2), (9, PROMPTS))
        low, high = over_seeds(values.mean(1), values @ SHARES.T, 0.95, PROMPTS, repetition)
        widths.append((high - low) / 2 / np.sqrt((1 + 2 / 9) / PROMPTS))
    assert np.mean(widths) == pytest.approx(1.97, rel=0.05)  # twice: 1.97 * 1.09


def test_fewer_than_three_seeds_have_the_prompts_interval() -> None:
    draws = np.array([np.arange(101.0), 3 * np.arange(101.0)])
    assert over_seeds(np.array([50.0, 150.0]), draws, 0.9, 30, 0) == pytest.approx((10, 190))
    assert over_seeds(np.array([50.0]), draws[:1], 0.9, 30, 0) == pytest.approx((5, 95))


def test_seeds_without_any_spread_have_an_interval_of_no_width() -> None:
    for seeds in (1, 2, 3, 5, 10, 12):
        assert over_seeds(np.full(seeds, 0.25), np.full((seeds, 40), 0.25), 0.95, 9, 0) == (0.25, 0.25)


def test_drawn_seeds_are_a_function_of_the_seed() -> None:
    random = np.random.default_rng(1)
    estimates = random.normal(size=12)
    draws = estimates[:, None] + 0.1 * random.normal(size=(12, 300))
    assert over_seeds(estimates, draws, 0.9, 50, 4) == over_seeds(estimates, draws, 0.9, 50, 4)
    assert over_seeds(estimates, draws, 0.9, 50, 4) != over_seeds(estimates, draws, 0.9, 50, 5)


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="0 seeds"):
        over_seeds(np.zeros(0), np.zeros((0, 10)), 0.95, 5, 0)
    with pytest.raises(ValueError, match="2 seeds' estimates with 3 rows"):
        two_sided_p(np.zeros(2), np.zeros((3, 10)), np.zeros(1), np.zeros((1, 10)), 5)


# --- tests


def test_a_p_value_by_hand() -> None:
    # all prompts alike: Welch's test of two samples
    first, second = np.array([1.0, 2.0, 4.0, 5.0]), np.array([3.0, 7.0, 8.0])
    draws, others = (np.repeat(values[:, None], 20, axis=1) for values in (first, second))
    welch = scipy.stats.ttest_ind(first, second, equal_var=False)
    assert two_sided_p(first, draws, second, others, 50) == pytest.approx(welch.pvalue)
    ends = welch.confidence_interval(0.9)
    assert difference_interval(first, draws, second, others, 0.9, 50) == pytest.approx((ends.low, ends.high))


def test_one_seed_each_is_a_paired_test_over_prompts() -> None:
    random = np.random.default_rng(5)
    shared = random.normal(0, 5, PROMPTS)  # what a prompt adds to both cancels
    first, second = shared + random.normal(0.1, 1, PROMPTS), shared + random.normal(0, 1, PROMPTS)
    shares = resamples(PROMPTS, 8000, 1)
    p = two_sided_p(
        first.mean(keepdims=True), first[None] @ shares.T, second.mean(keepdims=True), second[None] @ shares.T, PROMPTS
    )
    assert p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue, rel=0.05)


def test_without_a_spread_a_difference_is_certain() -> None:
    one, same = np.ones(1), np.ones((1, 9))
    assert two_sided_p(one, same, one, same, 10) == 1
    assert two_sided_p(one, same, 2 * one, 2 * same, 10) == 0
    assert difference_interval(one, same, 2 * one, 2 * same, 0.95, 10) == (-1, -1)


@pytest.mark.parametrize(("seeds", "others"), [(1, 1), (1, 2), (5, 5)])
def test_p_values_are_uniform_without_a_difference(seeds: int, others: int) -> None:
    random = np.random.default_rng(9)
    of_seed = 0.3 if seeds > 2 else 0.0
    p_values = []
    for _ in range(1000):
        shared = random.normal(size=PROMPTS)
        sides = [shared + random.normal(0, of_seed, (n, 1)) + random.normal(size=(n, PROMPTS)) for n in (seeds, others)]
        (first, draws), (second, other) = ((values.mean(1), values @ SHARES.T) for values in sides)
        p_values.append(two_sided_p(first, draws, second, other, PROMPTS))
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_the_interval_and_p_agree() -> None:
    random = np.random.default_rng(2)
    for difference in np.linspace(0, 1, 40):
        first, second = random.normal(difference, 0.2, 4), random.normal(0, 0.2, 3)
        draws, other = (values[:, None] + random.normal(0, 0.1, (len(values), 60)) for values in (first, second))
        low, high = difference_interval(first, draws, second, other, 0.95, 100)
        assert (low <= 0 <= high) == (two_sided_p(first, draws, second, other, 100) >= 0.05)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and no later one is smaller
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.5])) == pytest.approx([1, 1])
    assert holm(np.array([0.2])) == pytest.approx([0.2])
    assert holm(np.array([])).tolist() == []


# --- win rates


def test_win_rates_by_hand() -> None:
    policy = frame([(0, 1.0), (0, 3.0), (1, 2.0), (1, 2.0)])
    other = frame([(1, 2.0), (1, 5.0), (0, 1.0), (0, 2.0)])
    # prompt 0: 1 ties 1, loses to 2; 3 beats both: 2.5 of 4. Prompt 1: 2 ties 2 and loses to 5, twice: 1 of 4
    assert win_rates(policy, other).tolist() == [0.625, 0.25]
    assert win_rates(other, policy).tolist() == [0.375, 0.75]


def test_a_policy_draws_with_itself() -> None:
    policy = frame([(0, 1.0), (0, 1.0), (1, 2.0), (1, 9.0), (1, 4.0)])
    assert win_rates(policy, policy).tolist() == [0.5, 0.5]


def test_numbers_of_samples_may_differ_and_the_column_is_chosen() -> None:
    policy = pd.DataFrame({"prompt_id": [7, 7, 7], "reward": [0.1, 0.5, 0.9], "reward_logit": [0.0, 0.0, 0.0]})
    other = pd.DataFrame({"prompt_id": [7], "reward": [0.4], "reward_logit": [1.0]})
    assert win_rates(policy, other, "reward").tolist() == pytest.approx([2 / 3])
    assert win_rates(policy, other).tolist() == [0]


def test_different_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        win_rates(frame([(0, 1.0)]), frame([(1, 1.0)]))


# --- distinct n-grams


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b a b"], 2, 2 / 3),  # ab ba ab
        (["a b", "A B"], 2, 1 / 2),  # case does not count
        (["a b", "b a"], 2, 1.0),  # none across texts
        (["a b a b"], 1, 2 / 4),
        (["a b c a b c"], 3, 3 / 4),  # abc bca cab abc
        (["a", "", "b"], 2, 0.0),
        ([], 2, 0.0),
        (["a  b\nc"], 2, 1.0),
    ],
)
def test_distinct_ngrams_by_hand(texts: list[str], n: int, expected: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(expected)
