"""What a reservoir says of best-of-N, against all subsets written out."""

from itertools import combinations
from math import log

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS
from tests import tiny

CONFIG = tiny.evaluation(confidence=0.9)
LEARNED, TRUE = RewardSource.learned, RewardSource.ground_truth

# Two test prompts and one validation prompt, four samples each. The model errs on the first prompt, and the truth has
# a tie on top of the second.
LOGITS = {
    ("test", 0): [0.0, 1.0, 2.0, 3.0],
    ("test", 1): [5.0, -1.0, 5.0, 0.0],
    ("validation", 0): [9.0, 8.0, 7.0, 6.0],
}
SCORES = {("test", 0): [4.0, 3.0, 2.0, 1.0], ("test", 1): [1.0, 2.0, 3.0, 4.0], ("validation", 0): [0.0, 1.0, 2.0, 3.0]}


def row(split: str, prompt: int, sample: int) -> dict:
    logit = LOGITS[split, prompt][sample]
    return {
        "split": split,
        "prompt_id": prompt,
        "sample_id": sample,
        "reward": logit / 10,
        "reward_logit": logit,
        "learned": SCORES[split, prompt][sample],
        "ref_logprob": -1.0,
        "finished": sample % 2 == 0,
        "prompt": f"p{prompt}",
        "completion": f"c{sample}",
        "prompt_ids": [prompt],
        "completion_ids": list(range(sample + 1)),
    }


@pytest.fixture
def rows() -> pd.DataFrame:
    """In no order."""
    table = pd.DataFrame([row(*key, sample) for key in LOGITS for sample in range(4)])
    return table.sample(frac=1, random_state=3).reset_index(drop=True)


def best_by_hand(chooser: list[float], value: list[float], n: int) -> float:
    """The mean over all subsets of n of the value of the best; tied best ones share."""
    means = []
    for chosen in combinations(range(len(chooser)), n):
        top = max(chooser[i] for i in chosen)
        means.append(np.mean([value[i] for i in chosen if chooser[i] == top]))
    return float(np.mean(means))


def test_a_table_is_ordered_and_of_one_split(rows):
    assert reservoir.table(rows, "test", "reward_logit").tolist() == [LOGITS["test", 0], LOGITS["test", 1]]
    assert reservoir.table(rows, "validation", "learned").tolist() == [SCORES["validation", 0]]


@pytest.mark.parametrize(("source", "chooser"), [(LEARNED, SCORES), (TRUE, LOGITS)])
def test_the_curve_is_the_mean_over_all_subsets(rows, source, chooser):
    points = reservoir.curve(rows, source)
    assert list(points.columns) == ["n", "prompt_id", "reward", "reward_logit", "kl", "kl_atom"]
    assert points[["n", "prompt_id"]].values.tolist() == [[n, prompt] for n in (1, 2, 3, 4) for prompt in (0, 1)]
    for n, prompt, reward, logit, kl in points[["n", "prompt_id", "reward", "reward_logit", "kl"]].values.tolist():
        key = ("test", int(prompt))
        expected = best_by_hand(chooser[key], LOGITS[key], int(n))
        assert (reward, logit) == (pytest.approx(expected / 10), pytest.approx(expected))
        assert kl == pytest.approx(log(n) - (n - 1) / n)


def test_numbers_that_can_be_read_off(rows):
    rewards = reservoir.curve(rows, LEARNED).set_index(["n", "prompt_id"])["reward_logit"]
    assert rewards[1, 0] == pytest.approx(1.5)  # the mean of 0, 1, 2, 3
    assert rewards[4, 0] == 0  # the model likes the worst best
    # prompt 1: the model's order is 5, -1, 5, 0 ascending; the better of two is -1 once, 5 twice, 0 thrice
    assert rewards[2, 1] == pytest.approx((-1 + 2 * 5 + 3 * 0) / 6)


def test_only_ties_on_top_are_an_atom(rows):
    true = reservoir.curve(rows, TRUE).set_index(["n", "prompt_id"])
    for n in (1, 2, 3, 4):
        assert true["kl_atom"][n, 0] == pytest.approx(true["kl"][n, 0])  # all four differ
    # half of prompt 1's samples are on top. Below it there is no atom: e = 1/2, q = e^n
    for n in (2, 3, 4):
        rest, top = 0.5**n, 1 - 0.5**n
        expected = rest * (log(n) - (n - 1) / n + (n - 1) * log(0.5)) + top * log(top / 0.5)
        assert true["kl_atom"][n, 1] == pytest.approx(expected)
        assert 0 < true["kl_atom"][n, 1] < true["kl"][n, 1]
    assert true["kl_atom"][1, 1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("source", "n", "count", "expected"),
    [
        # first the blocks of prompt 0, then those of prompt 1, then validation's: sample numbers of the best
        (LEARNED, 2, 2, [0, 2, 1, 3, 1, 3]),
        (TRUE, 2, 2, [1, 3, 0, 2, 0, 2]),
        (TRUE, 2, 1, [1, 0, 0]),
        (TRUE, 3, 2, [2, 0, 0]),  # a second block of three does not fit; of the tied the earliest
        (LEARNED, 4, 5, [0, 3, 3]),
        (TRUE, 1, 2, [0, 1, 0, 1, 0, 1]),
    ],
)
def test_draws_are_the_best_of_disjoint_blocks(rows, source, n, count, expected):
    drawn = reservoir.draws(rows, source, n, count)
    assert list(drawn.columns) == COLUMNS + TEXTS
    assert [int(text[1:]) for text in drawn["completion"]] == expected
    assert drawn["length"].tolist() == [sample + 1 for sample in expected]
    each = len(expected) // 3
    assert drawn["sample_id"].tolist() == list(range(each)) * 3
    assert drawn["split"].tolist() == ["test"] * 2 * each + ["validation"] * each
    assert (drawn["step"] == 0).all() and drawn["kl_k1"].isna().all()
    assert drawn["kl"].tolist() == pytest.approx([log(n) - (n - 1) / n] * len(expected))


def other(logits: dict[int, list[float]]) -> pd.DataFrame:
    """Evaluation rows of another policy; those of validation prompts play no part."""
    parts = [("test", prompt, sample, value) for prompt, row in logits.items() for sample, value in enumerate(row)]
    parts += [("validation", 0, sample, 99.0) for sample in range(2)]
    return pd.DataFrame(parts, columns=["split", "prompt_id", "sample_id", "reward_logit"])


def test_the_summary_against_all_subsets(rows):
    other_logits = {0: [1.0, 2.5], 1: [5.0, 4.0]}
    summary = reservoir.summary(rows, TRUE, 2, {"win_rate": other(other_logits)}, CONFIG)
    logits = [best_by_hand(LOGITS["test", p], LOGITS["test", p], 2) for p in (0, 1)]
    assert summary["reward_logit"] == pytest.approx(np.mean(logits))
    assert summary["reward"] == pytest.approx(np.mean(logits) / 10)
    assert summary["kl"] == pytest.approx(log(2) - 0.5) and summary["kl_ci"] == [summary["kl"]] * 2
    assert summary["kl_is"] == "upper bound" and summary["kl_atom"] < summary["kl"]
    assert [summary[key] for key in ("kl_k1", "kl_k1_ci", "kl_per_token")] == [None] * 3
    assert (summary["reservoir"], summary["selector"]) == (4, "ground_truth")
    assert summary["samples_per_prompt"] == 2  # draws without a sample in common
    # how often a sample wins: prompt 0: 0 never, 1 half of 1 of 2, 2 once of 2, 3 always
    wins = [[0, 0.25, 0.5, 1], [0.75, 0, 0.75, 0]]
    shares = [best_by_hand(LOGITS["test", p], wins[p], 2) for p in (0, 1)]
    assert summary["win_rate"] == pytest.approx(np.mean(shares))
    assert shares[0] == pytest.approx((0.25 + 2 * 0.5 + 3 * 1) / 6)
    for key in ("reward_ci", "win_rate_ci"):  # two prompts: the ends are the two
        low, high = summary[key]
        assert low <= summary[key.removesuffix("_ci")] <= high
    assert summary["win_rate_ci"] == pytest.approx(sorted(shares))


def test_the_curve_of_a_summary_is_at_powers_of_two_and_the_whole(rows):
    points = reservoir.summary(rows, TRUE, 1, {}, CONFIG)["curve"]
    assert set(points) == {"1", "2", "4"}
    assert points["1"] == {"reward": pytest.approx((1.5 + 2.25) / 20), "kl": 0}
    assert points["4"] == {"reward": pytest.approx((3 + 5) / 20), "kl": pytest.approx(log(4) - 0.75)}
    three = rows[rows["sample_id"] < 3]
    assert set(reservoir.summary(three, TRUE, 1, {}, CONFIG)["curve"]) == {"1", "2", "3"}


def test_the_best_of_one_is_the_reference_and_wins_half_against_itself(rows):
    same = {prompt: LOGITS["test", prompt] for prompt in (0, 1)}
    for source in (LEARNED, TRUE):
        summary = reservoir.summary(rows, source, 1, {"win_rate": other(same), "win_rate_base": other(same)}, CONFIG)
        assert summary["reward_logit"] == pytest.approx((1.5 + 2.25) / 2)
        assert summary["win_rate"] == summary["win_rate_base"] == pytest.approx(0.5)
        assert (summary["kl"], summary["kl_atom"]) == (0, pytest.approx(0))


def test_more_samples_win_no_less_by_the_truth_and_may_win_less_by_a_model(rows):
    rows_of_other = other({0: [1.5, 2.5], 1: [0.0, 1.0]})
    true = [reservoir.summary(rows, TRUE, n, {"win_rate": rows_of_other}, CONFIG)["win_rate"] for n in (1, 2, 3, 4)]
    assert true == sorted(true) and true[-1] == 1
    learned = [reservoir.summary(rows, LEARNED, n, {"win_rate": rows_of_other}, CONFIG)["win_rate"] for n in (1, 4)]
    assert learned[1] < learned[0]  # it prefers the worst: over-optimised
