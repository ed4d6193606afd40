"""Best-of-N, optimum and intervals from arrays, held against enumeration and closed forms."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from imdb_rlhf import ConfigError, best_of_n, difference, interval, optimum, seed_interval
from tests.enumeration import exact_optimum

RANDOM = np.random.default_rng(0)
REWARDS = RANDOM.random((6, 5)).round(1)  # with ties


def test_best_of_n_is_the_mean_of_all_subsets() -> None:
    selector = RANDOM.random((6, 5))
    frame = best_of_n(REWARDS, selector)
    assert frame["n"].tolist() == [1, 2, 3, 4, 5]
    for n, reward, kl in zip(frame["n"], frame["reward"], frame["kl"], strict=True):
        subsets = [list(some) for some in combinations(range(5), n)]
        means = [
            [row[max(some, key=lambda at: picks[at])] for some in subsets]
            for row, picks in zip(REWARDS, selector, strict=True)
        ]
        assert reward == pytest.approx(np.mean(means))
        assert kl == pytest.approx(np.log(n) - (n - 1) / n)
    assert (frame["reward_low"] <= frame["reward"]).all() and (frame["reward"] <= frame["reward_high"]).all()
    assert (best_of_n(REWARDS)["kl_atom"] <= best_of_n(REWARDS)["kl"] + 1e-12).all()
    assert best_of_n(REWARDS, n=[2, 4])["n"].tolist() == [2, 4]


def test_the_optimum_is_between_its_bounds() -> None:
    probability, values = np.array([0.5, 0.3, 0.2]), np.array([0.0, 0.5, 1.0])
    samples = values[np.random.default_rng(1).choice(3, size=(400, 64), p=probability)]
    reward, kl = exact_optimum(probability, values, 0.5)
    found = optimum(samples, [0.0, kl, 2 * kl], largest=1.0).to_frame()
    assert found["lower"][1] - 0.01 <= reward <= found["upper"][1] + 0.01
    assert found["upper"][1] - found["lower"][1] < 0.03
    curves = optimum(samples, largest=1.0)
    assert curves.curves["kl"][0] == 0 and (curves.curves["upper"] <= 1).all() and curves.trusted_kl > kl


def test_intervals_cover_as_they_say() -> None:
    random = np.random.default_rng(2)
    inside = [low <= 0 <= high for low, high in (interval(random.normal(size=60), resamples=400) for _ in range(200))]
    assert 0.89 <= np.mean(inside) <= 0.99
    table = random.normal(size=(40, 3))
    assert interval(table) == interval(table.mean(1))
    shifts = random.normal(size=(5, 1))
    low, high = seed_interval(0.1 * random.normal(size=(5, 80)) + shifts)
    assert high - low == pytest.approx(2 * 2.776 * shifts.std(ddof=1) / 5**0.5, rel=0.1)  # t with 4 degrees of freedom


def test_a_difference_is_paired_over_prompts() -> None:
    random = np.random.default_rng(3)
    first = random.normal(size=200)
    shifted = difference(first + 0.1 + 0.01 * random.normal(size=200), first)
    assert shifted.estimate == pytest.approx(0.1, abs=0.005) and shifted.ci[0] > 0.09 and shifted.p < 1e-6
    same = difference(first, first)
    assert same.estimate == 0 and same.p == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n([1.0, 2.0]), r"rewards has shape \(2,\)"),
        (lambda: best_of_n([[1.0], [1.0, 2.0]]), "rewards is no table of numbers"),
        (lambda: best_of_n([[1.0, np.nan]]), "nan or infinite"),
        (lambda: best_of_n(REWARDS, REWARDS[:2]), "rewards has shape"),
        (lambda: best_of_n(REWARDS, n=[6]), "outside of 1 to 5"),
        (lambda: optimum(REWARDS, largest=0.2), "above the cap"),
        (lambda: optimum(REWARDS, [1.0, 2.0]), "ascend from 0"),
        (lambda: interval([]), r"values has shape \(0, 1\)"),
        (lambda: interval([1.0, 2.0], confidence=95), "confidence=95"),
        (lambda: interval([1.0, 2.0], resamples=5), "resamples=5"),
        (lambda: difference([1.0, 2.0], [1.0]), "first has 2 prompts and second 1"),
    ],
)
def test_arrays_that_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
