"""Agreement of two rewards, worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.evaluation.agreement import (
    account,
    calibration_error,
    pair_accuracy,
    pearson,
    reliability,
    spearman,
    true_pairs,
)
from tests import tiny

CONFIG = tiny.evaluation(bootstrap=500, confidence=0.9)


def frame_of(rows: list[tuple[int, float, float]], completions: list[list[int]] | None = None) -> pd.DataFrame:
    """Prompt, log-odds and score a row; the completions differ unless they are given."""
    table = pd.DataFrame(rows, columns=["prompt_id", "reward_logit", "score"])
    table["reward"] = 1 / (1 + np.exp(-table["reward_logit"]))
    table["completion_ids"] = completions or [[at] for at in range(len(rows))]
    return table


def test_pairs_are_those_with_different_rewards_the_better_first() -> None:
    frame = frame_of([(5, 0.0, 0), (3, 1.0, 0), (3, 2.0, 0), (3, 1.0, 0), (5, -1.0, 0), (4, 0.0, 0)])
    assert true_pairs(frame).tolist() == [[2, 1], [2, 3], [0, 4]]
    assert true_pairs(frame.iloc[:1]).shape == (0, 2)


def test_one_completion_twice_is_no_pair() -> None:
    frame = frame_of([(0, 1.0, 0), (0, 1.0 + 1e-7, 0), (0, 2.0, 0)], [[1, 2], [1, 2], [3]])
    assert true_pairs(frame).tolist() == [[2, 0], [2, 1]]


def test_an_equal_score_counts_half() -> None:
    assert pair_accuracy(np.array([0.5, -0.5, 0.0])).tolist() == [1, 0, 0.5]


def test_reliability_of_three_pairs() -> None:
    # 0.75 right, 0.75 wrong, 0.95 right; each in both orders
    gaps = np.log([3.0, 1 / 3, 19.0])
    bins = reliability(gaps)
    filled = {at: cell for at, cell in enumerate(bins) if cell["count"]}
    assert [cell["lower"] for cell in bins] == pytest.approx([at / 10 for at in range(10)])
    assert [cell["upper"] for cell in bins] == pytest.approx([(at + 1) / 10 for at in range(10)])
    assert {at: cell["count"] for at, cell in filled.items()} == {0: 1, 2: 2, 7: 2, 9: 1}
    assert [filled[at]["predicted"] for at in (0, 2, 7, 9)] == pytest.approx([0.05, 0.25, 0.75, 0.95])
    assert [filled[at]["observed"] for at in (0, 2, 7, 9)] == [0, 0.5, 0.5, 1]
    assert bins[1] == {"lower": 0.1, "upper": 0.2, "count": 0, "predicted": None, "observed": None}
    assert calibration_error(bins) == pytest.approx((1 * 0.05 + 2 * 0.25 + 2 * 0.25 + 1 * 0.05) / 6)


def test_certain_and_undecided_pairs_have_a_bin() -> None:
    bins = reliability(np.array([1000.0, -1000.0, 0.0]))
    assert [cell["count"] for cell in bins] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert [bins[at]["observed"] for at in (0, 5, 9)] == [0.5, 0.5, 0.5]
    assert [bins[at]["predicted"] for at in (0, 5, 9)] == [0, 0.5, 1]


def test_labels_drawn_by_the_model_itself_are_calibrated() -> None:
    random = np.random.default_rng(0)
    gaps = random.normal(0, 2, 20000)
    won = random.random(20000) < 1 / (1 + np.exp(-gaps))
    error = calibration_error(reliability(np.where(won, gaps, -gaps)))
    off = calibration_error(reliability(np.where(won, 4 * gaps, -4 * gaps)))  # four times too certain
    assert error is not None and error < 0.02
    assert off is not None and off > 0.1


def test_no_pair_has_no_calibration() -> None:
    assert calibration_error(reliability(np.zeros(0))) is None


def test_correlations() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    # deviations -1.5 -0.5 0.5 1.5 and -6.5 -3.5 1.5 8.5: 25 / sqrt(5 x 129)
    assert pearson(first, second) == pytest.approx(25 / math.sqrt(5 * 129))
    assert spearman(first, second) == pytest.approx(1)
    assert spearman(first, -second) == pytest.approx(-1)
    # ranks 1 2.5 2.5 4 against 1 2 3 4: 4.5 / sqrt(4.5 x 5)
    assert spearman(np.array([0.0, 5.0, 5.0, 9.0]), first) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert pearson(first, np.ones(4)) is None and spearman(np.ones(4), first) is None
    assert pearson(np.array([1.0]), np.array([2.0])) is None


def test_the_account_of_two_prompts() -> None:
    # prompt 0: three pairs, one of them wrong; prompt 1: one pair, its scores equal; prompt 2: equal rewards
    rows = [(0, 0.0, 0.0), (0, 1.0, 2.0), (0, 2.0, 1.0), (1, 0.0, 1.0), (1, 3.0, 1.0), (2, 1.0, 0.0), (2, 1.0, 5.0)]
    frame = frame_of(rows)
    report = account(frame, 3 * frame["score"].to_numpy() + 7, CONFIG)
    assert report["test_pairs"] == 4
    assert report["accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    low, high = report["accuracy_ci"]
    assert low == pytest.approx(1 / 2) and high == pytest.approx(2 / 3)  # either prompt alone is drawn a quarter each
    assert sum(cell["count"] for cell in report["reliability"]) == 8
    # of the raw gaps 6, 3 and -3, and not of the normalised 2, 1 and -1: sigmoid(3) = 0.953
    assert (report["reliability"][9]["count"], report["reliability"][9]["observed"]) == (3, pytest.approx(2 / 3))
    assert report["score_mean"] == pytest.approx(10 / 7)
    assert report["score_std"] == pytest.approx(np.std([0, 2, 1, 1, 1, 0, 5]))
    assert report["pearson"] == pytest.approx(np.corrcoef([r[1] for r in rows], [r[2] for r in rows])[0, 1])
    assert report["pearson_reward"] == pytest.approx(np.corrcoef(frame["reward"], frame["score"])[0, 1])


def test_an_account_without_a_pair_says_so() -> None:
    report = account(frame_of([(0, 1.0, 0.5), (1, 1.0, 0.7)]), np.array([0.5, 0.7]), CONFIG)
    undefined = ("accuracy", "accuracy_ci", "calibration_error", "pearson", "spearman", "pearson_reward")
    assert [report[key] for key in undefined] == [None] * 6
    assert report["test_pairs"] == 0
