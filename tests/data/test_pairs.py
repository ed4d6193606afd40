"""Pairs, their labels and their order: by hand and by counting; drawn, or read from an artifact."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.config.stages import Labels, Order, Ties
from imdb_rlhf.data.pairs import Pairs, draw_pairs, flip, load_pairs, shuffled
from imdb_rlhf.errors import RunError
from tests import tiny
from tests.data.tables import group_table, within


def winners_and_losers(pairs: Pairs) -> set[tuple[int, int]]:
    return {(int(winner), int(loser)) for winner, loser in pairs.rows}


# --- labels


def test_all_six_pairs_of_four_with_the_better_first() -> None:
    pairs = draw_pairs(group_table([[0.5, -1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]]), tiny.pairs(), 0)
    first = {(0, 1), (2, 0), (0, 3), (2, 1), (3, 1), (2, 3)}
    second = set(combinations(range(4, 8), 2))  # already in order
    assert winners_and_losers(pairs) == first | second
    assert pairs.prompts.tolist() == [0] * 6 + [1] * 6
    assert set(pairs.dropped.values()) == {0}


def test_rows_are_positions_whatever_the_index() -> None:
    groups = group_table([[1.0, 2.0], [4.0, 3.0]])
    groups.index = pd.Index([70, 50, 10, 30])
    assert winners_and_losers(draw_pairs(groups, tiny.pairs(), 0)) == {(1, 0), (2, 3)}


def test_equal_rewards_are_dropped_or_decided_by_a_fair_coin() -> None:
    groups = group_table([[1.0, 1.0, 0.0]])
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    assert winners_and_losers(pairs) == {(0, 2), (1, 2)}
    assert pairs.dropped == {"same completion": 0, "equal rewards": 1, "below min_margin": 0}
    many = draw_pairs(group_table([[1.0, 1.0]] * 2000), tiny.pairs(ties=Ties.random), 0)
    assert len(many.rows) == 2000
    assert within(int((many.rows[:, 0] % 2 == 0).sum()), 2000, 0.5)


def test_min_margin_drops_what_is_nearer() -> None:
    pairs = draw_pairs(group_table([[0.0, 0.25, 1.0, 1.125]]), tiny.pairs(min_margin=0.25), 0)
    assert winners_and_losers(pairs) == {(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)}  # 0.25 itself is kept
    assert pairs.dropped["below min_margin"] == 1


def test_equal_completions_are_no_pair() -> None:
    groups = group_table([[1.0, 2.0, 3.0]])
    groups["completion_ids"] = [[5, 6], [5, 6], [5]]
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    assert winners_and_losers(pairs) == {(2, 0), (2, 1)}
    assert pairs.dropped["same completion"] == 1


def test_no_pair_left_is_refused_with_the_reasons() -> None:
    with pytest.raises(RunError, match="no preference pair is left of 6 .*6 equal rewards"):
        draw_pairs(group_table([[1.0] * 4]), tiny.pairs(), 0)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_flips_that_share_of_labels(noise: float) -> None:
    groups = group_table([[0.0, 1.0, 2.0, 3.0]] * 600)
    pairs = draw_pairs(groups, tiny.pairs(labels=Labels.noisy, noise=noise), 0)
    wrong = int((pairs.rows[:, 0] < pairs.rows[:, 1]).sum())  # rewards rise with the row
    assert len(pairs.rows) == 3600
    assert within(wrong, 3600, noise)


@pytest.mark.parametrize("tau", [None, 0.5, 2.0])
@pytest.mark.parametrize("gap", [0.8, -1.5])
def test_bradley_terry_wins_with_the_probability_of_the_logistic(gap: float, tau: float | None) -> None:
    pairs = draw_pairs(group_table([[gap, 0.0]] * 4000), tiny.pairs(labels=Labels.bradley_terry, tau=tau), 0)
    first_wins = int((pairs.rows[:, 0] % 2 == 0).sum())
    assert within(first_wins, 4000, 1 / (1 + math.exp(-gap / (tau or 1.0))))


@pytest.mark.filterwarnings("error")
def test_bradley_terry_bears_any_gap() -> None:
    pairs = draw_pairs(group_table([[1e5, -1e5], [-1e5, 1e5]]), tiny.pairs(labels=Labels.bradley_terry, tau=1e-3), 0)
    assert winners_and_losers(pairs) == {(0, 1), (3, 2)}


def test_the_pairs_of_a_group_are_labelled_independently() -> None:
    groups = group_table([[0.0, 0.0, 0.0, 0.0]] * 500)
    pairs = draw_pairs(groups, tiny.pairs(ties=Ties.random), 0)
    first_wins = (pairs.rows[:, 0] < pairs.rows[:, 1]).reshape(500, 6)
    correlation = np.corrcoef(first_wins.T)
    assert np.abs(correlation - np.eye(6)).max() < 4 / math.sqrt(500)


@pytest.mark.parametrize("labels", [Labels.bradley_terry, Labels.noisy])
def test_labels_are_a_function_of_seed_and_prompt(labels: Labels) -> None:
    settings = tiny.pairs(labels=labels, noise=0.4 if labels == Labels.noisy else None)
    groups = group_table([[0.0, 0.1, 0.2, 0.3]] * 50)
    first = draw_pairs(groups, settings, 0)
    assert winners_and_losers(draw_pairs(groups, settings, 0)) == winners_and_losers(first)
    assert winners_and_losers(draw_pairs(groups, settings, 1)) != winners_and_losers(first)
    # without the first 20 prompts the others keep their labels
    rest = groups[groups["prompt_id"] >= 20]
    assert {(best + 80, worst + 80) for best, worst in winners_and_losers(draw_pairs(rest, settings, 0))} == {
        (best, worst) for best, worst in winners_and_losers(first) if best >= 80
    }


def test_dropping_one_pair_leaves_the_other_labels_alone() -> None:
    settings = tiny.pairs(labels=Labels.bradley_terry)
    groups = group_table([[0.0, 0.1, 0.2, 0.3]] * 50)
    whole = winners_and_losers(draw_pairs(groups, settings, 0))
    groups["completion_ids"] = [[prompt, max(sample, 1)] for prompt in range(50) for sample in range(4)]
    fewer = draw_pairs(groups, settings, 0)
    assert fewer.dropped["same completion"] == 50
    assert winners_and_losers(fewer) < whole
    assert len(fewer.rows) == 250


def test_a_coin_of_noise_is_not_the_coin_of_a_tie() -> None:
    groups = group_table([[1.0, 1.0]] * 2000)
    coins, noisy = (
        draw_pairs(groups, tiny.pairs(ties=Ties.random, **labels), 0).rows[:, 0]
        for labels in ({}, {"labels": Labels.noisy, "noise": 0.25})
    )
    assert within(int((coins != noisy).sum()), 2000, 0.25)
    assert within(int((noisy % 2 == 0).sum()), 2000, 0.5)


def test_flips_turn_pairs_round() -> None:
    pairs = Pairs(np.array([[1, 0]] * 3000), np.zeros(3000, dtype=np.int64), {"empty": 2})
    turned = flip(pairs, 0.2, 0)
    assert within(int((turned.rows[:, 0] == 0).sum()), 3000, 0.2)
    assert (turned.rows.sum(1) == 1).all()
    assert turned.dropped == {"empty": 2}
    assert np.array_equal(flip(pairs, 0.2, 0).rows, turned.rows)
    assert np.array_equal(flip(pairs, 0.0, 0).rows, pairs.rows)


# --- order


def test_an_order_is_a_permutation_of_all_pairs() -> None:
    pairs = draw_pairs(group_table([[0.0, 1.0, 2.0, 3.0]] * 30), tiny.pairs(), 0)
    for order in Order:
        rows = shuffled(pairs, order, 0, 0)
        assert sorted(rows.tolist()) == list(range(180))
        assert np.array_equal(rows, shuffled(pairs, order, 0, 0))
        assert not np.array_equal(rows, shuffled(pairs, order, 0, 1))
        assert not np.array_equal(rows, shuffled(pairs, order, 1, 0))


def test_the_prefix_order_keeps_the_pairs_of_a_prompt_together() -> None:
    pairs = draw_pairs(group_table([[0.0, 1.0, 2.0, 3.0]] * 30), tiny.pairs(), 0)
    order = shuffled(pairs, Order.prefix, 0, 0)
    prompts = pairs.prompts[order]
    assert (np.diff(prompts) != 0).sum() == 29  # one change a prompt
    firsts = prompts[::6].tolist()
    assert firsts != sorted(firsts)
    within_prompt = {tuple((order[at : at + 6] % 6).tolist()) for at in range(0, 180, 6)}
    assert len(within_prompt) > 20  # and shuffled among themselves
    alone = pairs.prompts[shuffled(pairs, Order.shuffled, 0, 0)]
    assert (np.diff(alone) != 0).sum() > 150


# --- the artifact


def test_pairs_are_drawn_or_those_of_a_preference_file(tmp_path: Path) -> None:
    table = group_table([[0.0, 1.0, 2.0, 3.0]] * 10)
    table.to_parquet(tmp_path / "groups.parquet")
    groups, drawn = load_pairs(tmp_path, tiny.pairs(), 0)
    assert len(groups) == 40
    assert np.array_equal(drawn.rows, draw_pairs(table, tiny.pairs(), 0).rows) and len(drawn.rows) == 60
    np.savez(tmp_path / "pairs.npz", rows=np.array([[3, 0], [4, 5]]), prompts=np.array([0, 1]))
    (tmp_path / "report.json").write_text('{"dropped": {"empty": 3, "same completion": 0}}')
    _, brought = load_pairs(tmp_path, tiny.pairs(), 0)
    assert brought.rows.tolist() == [[3, 0], [4, 5]]
    assert brought.dropped == {"empty": 3, "same completion": 0}
    _, flipped = load_pairs(tmp_path, tiny.pairs(labels=Labels.noisy, noise=1.0), 0)
    assert flipped.rows.tolist() == [[0, 3], [5, 4]]
