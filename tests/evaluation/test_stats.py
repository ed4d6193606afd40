"""Statistics by hand and against known distributions."""

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.evaluation.stats import bootstrap_mean, distinct_n, prompt_means, win_rates


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
