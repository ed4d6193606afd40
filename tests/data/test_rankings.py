"""Rankings and choices: by hand, and drawn ones by counting against the probabilities of their models."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.config.stages import Labels, Order, Ties
from imdb_rlhf.data.pairs import draw_pairs, shuffled
from imdb_rlhf.data.rankings import Rankings, draw_choices, draw_rankings
from imdb_rlhf.errors import RunError
from tests import tiny
from tests.data.tables import group_table, within


def lists(rankings: Rankings) -> list[list[int]]:
    """The ranked completions without padding, best first."""
    assert rankings.rows.dtype == np.int64 and rankings.mask.dtype == np.bool_
    assert rankings.rows.shape == rankings.mask.shape
    return [row[mask].tolist() for row, mask in zip(rankings.rows, rankings.mask, strict=True)]


def shares(rewards: dict[int, float], tau: float) -> dict[tuple[int, ...], float]:
    """The Plackett-Luce probability of each order, choice by choice."""
    out = {}
    for order in permutations(rewards):
        probability = 1.0
        for place, first in enumerate(order):
            weights = {row: math.exp(rewards[row] / tau) for row in order[place:]}
            probability *= weights[first] / sum(weights.values())
        out[order] = probability
    return out


# --- rankings


def test_rankings_are_sorted_by_reward() -> None:
    groups = group_table([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 4.0]])
    groups.index = pd.Index([80, 10, 20, 30, 40, 50, 60, 70])  # rows are positions
    rankings = draw_rankings(groups, tiny.pairs(), 0)
    assert lists(rankings) == [[2, 0, 3, 1], [7, 4, 6, 5]]
    assert rankings.prompts.tolist() == [0, 1]
    assert set(rankings.dropped.values()) == {0}


def test_short_rankings_are_padded_with_their_best() -> None:
    rankings = draw_rankings(
        group_table([[1.0, 2.0], [3.0, 5.0, 4.0, 6.0], [0.0, 0.0], [8.0, 7.0, 9.0]]), tiny.pairs(), 0
    )
    assert rankings.rows.tolist() == [[1, 0, 1, 1], [5, 3, 4, 2], [10, 8, 9, 10]]
    assert rankings.mask.sum(1).tolist() == [2, 4, 3]
    assert lists(rankings) == [[1, 0], [5, 3, 4, 2], [10, 8, 9]]
    assert rankings.prompts.tolist() == [0, 1, 3]
    assert rankings.dropped == {"same completion": 0, "equal rewards": 1, "below min_margin": 0, "ranking of one": 1}


def test_a_ranking_of_two_is_a_pair() -> None:
    rewards = np.random.default_rng(0).normal(size=(30, 2)).round(1)
    groups = group_table([*rewards.tolist(), [1.0, 1.0]])
    for settings in (tiny.pairs(), tiny.pairs(min_margin=0.5)):
        pairs, rankings = draw_pairs(groups, settings, 0), draw_rankings(groups, settings, 0)
        assert np.array_equal(pairs.rows, rankings.rows)
        assert np.array_equal(pairs.prompts, rankings.prompts)
        assert rankings.mask.all()
        assert {reason: rankings.dropped[reason] for reason in pairs.dropped} == pairs.dropped
        for order in Order:
            assert np.array_equal(shuffled(pairs, order, 0, 3), shuffled(rankings, order, 0, 3))


@pytest.mark.parametrize("tau", [None, 0.5, 2.0])
def test_bradley_terry_rankings_have_plackett_luce_shares(tau: float | None) -> None:
    rewards = {0: 0.7, 1: 0.0, 2: -0.4}
    drawn = draw_rankings(
        group_table([list(rewards.values())] * 4000), tiny.pairs(labels=Labels.bradley_terry, tau=tau), 0
    )
    count = Counter(tuple(row % 3 for row in ranking) for ranking in lists(drawn))
    for order, share in shares(rewards, tau or 1.0).items():
        assert within(count[order], 4000, share)


def test_what_is_left_out_does_not_move_the_shares_of_the_rest() -> None:
    # 0 and 1 are one text; 2 is equal to 3 and near 4; one of each set stays, chosen before anything is drawn
    groups = group_table([[0.5, 0.5, 0.0, 0.0, -0.1, -1.0]] * 4000)
    groups["completion_ids"] = [[max(sample, 1), prompt] for prompt in range(4000) for sample in range(6)]
    drawn = draw_rankings(groups, tiny.pairs(labels=Labels.bradley_terry, min_margin=0.25), 0)
    assert drawn.dropped == {
        "same completion": 4000,
        "equal rewards": 4000,
        "below min_margin": 4000,
        "ranking of one": 0,
    }
    count = Counter(tuple(row % 6 for row in ranking) for ranking in lists(drawn))
    expected = shares({0: 0.5, 2: 0.0, 5: -1.0}, 1.0)
    assert count.keys() == expected.keys()
    for order, share in expected.items():
        assert within(count[order], 4000, share)


@pytest.mark.filterwarnings("error")
def test_rankings_bear_any_gap() -> None:
    drawn = draw_rankings(group_table([[-1e5, 1e5, 0.0]]), tiny.pairs(labels=Labels.bradley_terry, tau=1e-3), 0)
    assert lists(drawn) == [[1, 2, 0]]


def test_equal_rewards_stay_in_a_random_order_or_one_of_them_stays() -> None:
    groups = group_table([[1.0, 0.0, 1.0, 1.0]] * 1200)
    one = draw_rankings(groups, tiny.pairs(), 0)
    assert lists(one) == [[4 * prompt, 4 * prompt + 1] for prompt in range(1200)]
    assert one.dropped["equal rewards"] == 2400
    stay = draw_rankings(groups, tiny.pairs(ties=Ties.random), 0)
    assert stay.dropped["equal rewards"] == 0
    count = Counter(tuple(row % 4 for row in ranking) for ranking in lists(stay))
    assert count.keys() == {(*order, 1) for order in permutations((0, 2, 3))}
    assert all(within(number, 1200, 1 / 6) for number in count.values())


def test_a_ranking_keeps_what_is_a_margin_apart_from_all_above() -> None:
    rankings = draw_rankings(group_table([[0.0, 1.125, 0.25, 1.0, 0.75]]), tiny.pairs(min_margin=0.25), 0)
    # 1.0 is too near 1.125; 0.75 is not; 0.25 and 0.0 are exactly a margin apart
    assert lists(rankings) == [[1, 4, 2, 0]]
    assert rankings.dropped["below min_margin"] == 1


def test_equal_completions_are_ranked_once() -> None:
    groups = group_table([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    groups["completion_ids"] = [[5, 6], [5, 6], [5], [7], [7], [7]]
    rankings = draw_rankings(groups, tiny.pairs(), 0)
    assert lists(rankings) == [[2, 1]]
    assert rankings.dropped == {"same completion": 3, "equal rewards": 0, "below min_margin": 0, "ranking of one": 1}


def test_no_ranking_left_is_refused_with_the_reasons() -> None:
    with pytest.raises(RunError, match="no ranking is left of 2 .*6 equal rewards"):
        draw_rankings(group_table([[1.0] * 4] * 2), tiny.pairs(), 0)


def test_rankings_are_a_function_of_seed_and_prompt() -> None:
    settings = tiny.pairs(labels=Labels.bradley_terry)
    groups = group_table([[0.0, 0.1, 0.2, 0.3]] * 50)
    first = lists(draw_rankings(groups, settings, 0))
    assert lists(draw_rankings(groups, settings, 0)) == first
    assert lists(draw_rankings(groups, settings, 1)) != first
    rest = lists(draw_rankings(groups[groups["prompt_id"] >= 20], settings, 0))
    assert [[row + 80 for row in ranking] for ranking in rest] == first[20:]
    # without one completion the others keep their order
    groups["completion_ids"] = [[prompt, max(sample, 1)] for prompt in range(50) for sample in range(4)]
    fewer = lists(draw_rankings(groups, settings, 0))
    assert fewer == [[row for row in ranking if row % 4] for ranking in first]


def test_an_epoch_has_every_ranking_in_an_order_of_its_own() -> None:
    rankings = draw_rankings(group_table([[0.0, 1.0, 2.0]] * 40), tiny.pairs(), 0)
    for order in Order:
        rows = shuffled(rankings, order, 0, 0)
        assert sorted(rows.tolist()) == list(range(40)) != rows.tolist()
        assert np.array_equal(rows, shuffled(rankings, order, 0, 0))
        assert not np.array_equal(rows, shuffled(rankings, order, 0, 1))
        assert not np.array_equal(rows, shuffled(rankings, order, 1, 0))


# --- choices


def test_the_choice_is_the_best_of_its_group() -> None:
    groups = group_table([[0.0, 3.0, 1.0], [5.0, 4.0], [2.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    drawn = draw_choices(groups, tiny.pairs(), 0)
    # rows 0-2, 3-4, 5-7, 8-10; the third group's best is tied, the fourth's is not
    assert drawn.rows[drawn.mask].tolist() == [1, 0, 2, 3, 4, 10, 8, 9]
    assert drawn.mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    assert drawn.prompts.tolist() == [0, 1, 3]
    assert drawn.dropped == {"same completion": 0, "equal rewards": 1, "below min_margin": 0}


def test_tied_best_are_drawn_evenly_if_wanted() -> None:
    groups = group_table([[2.0, 1.0, 2.0]] * 900)
    drawn = draw_choices(groups, tiny.pairs(ties=Ties.random), 0)
    places = Counter((drawn.rows[:, 0] % 3).tolist())
    assert places.keys() == {0, 2} and abs(places[0] - 450) < 60  # 4 standard deviations of 15
    assert draw_choices(groups, tiny.pairs(ties=Ties.random), 0).rows.tolist() == drawn.rows.tolist()
    assert draw_choices(groups, tiny.pairs(ties=Ties.random), 1).rows.tolist() != drawn.rows.tolist()


def test_the_margin_is_that_of_the_best_over_the_next() -> None:
    drawn = draw_choices(group_table([[0.0, 1.0, 1.4], [0.0, 0.1, 2.0]]), tiny.pairs(min_margin=0.5), 0)
    assert drawn.prompts.tolist() == [1]
    assert drawn.dropped["below min_margin"] == 1


def test_identical_completions_count_as_one() -> None:
    groups = group_table([[3.0, 3.0, 1.0], [2.0, 2.0]])
    groups["completion_ids"] = [[5], [5], [6], [7], [7]]
    drawn = draw_choices(groups, tiny.pairs(), 0)
    assert drawn.rows.tolist() == [[0, 2]]  # no tie: the best was sampled twice
    assert drawn.dropped["same completion"] == 1


@pytest.mark.parametrize("tau", [None, 2.0])
def test_drawn_choices_are_a_softmax_of_the_rewards(tau: float | None) -> None:
    rewards, count = [0.0, 1.0, 2.0], 3000
    drawn = draw_choices(group_table([rewards] * count), tiny.pairs(labels=Labels.bradley_terry, tau=tau), 0)
    weights = np.exp(np.array(rewards) / (tau or 1.0))
    expected = weights / weights.sum()
    frequencies = np.bincount(drawn.rows[:, 0] % 3, minlength=3) / count
    assert np.abs(frequencies - expected).max() < 4 * math.sqrt(0.25 / count)


def test_a_choice_is_a_function_of_seed_and_prompt() -> None:
    groups = group_table([[0.0, 1.0, 2.0]] * 60)
    config = tiny.pairs(labels=Labels.bradley_terry)
    whole, half = (draw_choices(part, config, 0) for part in (groups, groups.iloc[90:].reset_index(drop=True)))
    assert (whole.rows[30:, 0] - 90).tolist() == half.rows[:, 0].tolist()
