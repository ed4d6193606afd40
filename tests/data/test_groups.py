"""Pairs, rankings and labels by hand, by counting, and from a preference file."""

import math
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.config.stages import Labels, Order, PairsConfig, Ties
from imdb_rlhf.data.groups import COLUMNS, read
from imdb_rlhf.data.pairs import Pairs, draw_pairs, flip, shuffled
from imdb_rlhf.data.preferences import check_preferences, from_preferences, to_trl
from imdb_rlhf.data.rankings import Rankings, draw_rankings
from imdb_rlhf.errors import RunError

EOS = 9


def config(**changes: Any) -> PairsConfig:
    values = {"labels": Labels.deterministic, "tau": None, "noise": None, "min_margin": 0.0}
    return PairsConfig(**{**values, "ties": Ties.drop, "order": Order.prefix, **changes})


def table(rewards: list[list[float]]) -> pd.DataFrame:
    """A group of distinct completions a list, with these log-odds."""
    rows = [
        {"prompt_id": prompt, "sample_id": which, "completion_ids": [which, prompt], "reward_logit": reward}
        for prompt, group in enumerate(rewards)
        for which, reward in enumerate(group)
    ]
    return pd.DataFrame(rows).assign(prompt="a film", reward=0.0, finished=True, ref_logprob=-1.0)


def found(pairs: Pairs) -> set[tuple[int, int]]:
    return {(int(winner), int(loser)) for winner, loser in pairs.rows}


def within(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count is within 4 standard deviations of its mean."""
    return abs(count - trials * probability) <= 4 * math.sqrt(trials * probability * (1 - probability))


# --- labels


def test_all_six_pairs_of_four_with_the_better_first() -> None:
    pairs = draw_pairs(table([[0.5, -1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]]), config(), 0)
    first = {(0, 1), (2, 0), (0, 3), (2, 1), (3, 1), (2, 3)}
    second = set(combinations(range(4, 8), 2))  # already in order
    assert found(pairs) == first | second
    assert pairs.prompts.tolist() == [0] * 6 + [1] * 6
    assert set(pairs.dropped.values()) == {0}


def test_rows_are_positions_whatever_the_index() -> None:
    groups = table([[1.0, 2.0], [4.0, 3.0]])
    groups.index = pd.Index([70, 50, 10, 30])
    assert found(draw_pairs(groups, config(), 0)) == {(1, 0), (2, 3)}


def test_equal_rewards_are_dropped_or_decided_by_a_fair_coin() -> None:
    groups = table([[1.0, 1.0, 0.0]])
    pairs = draw_pairs(groups, config(), 0)
    assert found(pairs) == {(0, 2), (1, 2)}
    assert pairs.dropped == {"same completion": 0, "equal rewards": 1, "below min_margin": 0}
    many = draw_pairs(table([[1.0, 1.0]] * 2000), config(ties=Ties.random), 0)
    assert len(many.rows) == 2000
    assert within(int((many.rows[:, 0] % 2 == 0).sum()), 2000, 0.5)


def test_min_margin_drops_what_is_nearer() -> None:
    pairs = draw_pairs(table([[0.0, 0.25, 1.0, 1.125]]), config(min_margin=0.25), 0)
    assert found(pairs) == {(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)}  # 0.25 itself is kept
    assert pairs.dropped["below min_margin"] == 1


def test_equal_completions_are_no_pair() -> None:
    groups = table([[1.0, 2.0, 3.0]])
    groups["completion_ids"] = [[5, 6], [5, 6], [5]]
    pairs = draw_pairs(groups, config(), 0)
    assert found(pairs) == {(2, 0), (2, 1)}
    assert pairs.dropped["same completion"] == 1


def test_no_pair_left_is_refused_with_the_reasons() -> None:
    with pytest.raises(RunError, match="no preference pair is left of 6 .*6 equal rewards"):
        draw_pairs(table([[1.0] * 4]), config(), 0)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_flips_that_share_of_labels(noise: float) -> None:
    groups = table([[0.0, 1.0, 2.0, 3.0]] * 600)
    pairs = draw_pairs(groups, config(labels=Labels.noisy, noise=noise), 0)
    wrong = int((pairs.rows[:, 0] < pairs.rows[:, 1]).sum())  # rewards rise with the row
    assert len(pairs.rows) == 3600
    assert within(wrong, 3600, noise)


@pytest.mark.parametrize("tau", [None, 0.5, 2.0])
@pytest.mark.parametrize("gap", [0.8, -1.5])
def test_bradley_terry_wins_with_the_probability_of_the_logistic(gap: float, tau: float | None) -> None:
    pairs = draw_pairs(table([[gap, 0.0]] * 4000), config(labels=Labels.bradley_terry, tau=tau), 0)
    first_wins = int((pairs.rows[:, 0] % 2 == 0).sum())
    assert within(first_wins, 4000, 1 / (1 + math.exp(-gap / (tau or 1.0))))


@pytest.mark.filterwarnings("error")
def test_bradley_terry_bears_any_gap() -> None:
    pairs = draw_pairs(table([[1e5, -1e5], [-1e5, 1e5]]), config(labels=Labels.bradley_terry, tau=1e-3), 0)
    assert found(pairs) == {(0, 1), (3, 2)}


def test_the_pairs_of_a_group_are_labelled_independently() -> None:
    groups = table([[0.0, 0.0, 0.0, 0.0]] * 500)
    pairs = draw_pairs(groups, config(ties=Ties.random), 0)
    first_wins = (pairs.rows[:, 0] < pairs.rows[:, 1]).reshape(500, 6)
    correlation = np.corrcoef(first_wins.T)
    assert np.abs(correlation - np.eye(6)).max() < 4 / math.sqrt(500)


@pytest.mark.parametrize("labels", [Labels.bradley_terry, Labels.noisy])
def test_labels_are_a_function_of_seed_and_prompt(labels: Labels) -> None:
    settings = config(labels=labels, noise=0.4 if labels == Labels.noisy else None)
    groups = table([[0.0, 0.1, 0.2, 0.3]] * 50)
    first = draw_pairs(groups, settings, 0)
    assert found(draw_pairs(groups, settings, 0)) == found(first)
    assert found(draw_pairs(groups, settings, 1)) != found(first)
    # without the first 20 prompts the others have the labels that they had
    rest = groups[groups["prompt_id"] >= 20]
    assert {(best + 80, worst + 80) for best, worst in found(draw_pairs(rest, settings, 0))} == {
        (best, worst) for best, worst in found(first) if best >= 80
    }


def test_dropping_one_pair_leaves_the_other_labels_alone() -> None:
    settings = config(labels=Labels.bradley_terry)
    groups = table([[0.0, 0.1, 0.2, 0.3]] * 50)
    whole = found(draw_pairs(groups, settings, 0))
    groups["completion_ids"] = [[prompt, max(which, 1)] for prompt in range(50) for which in range(4)]
    fewer = draw_pairs(groups, settings, 0)
    assert fewer.dropped["same completion"] == 50
    assert found(fewer) < whole
    assert len(fewer.rows) == 250


def test_a_coin_of_noise_is_not_the_coin_of_a_tie() -> None:
    groups = table([[1.0, 1.0]] * 2000)
    coins, noisy = (
        draw_pairs(groups, config(ties=Ties.random, **labels), 0).rows[:, 0]
        for labels in ({}, {"labels": Labels.noisy, "noise": 0.25})
    )
    assert within(int((coins != noisy).sum()), 2000, 0.25)
    assert within(int((noisy % 2 == 0).sum()), 2000, 0.5)


# --- order


def test_an_order_is_a_permutation_of_all_pairs() -> None:
    pairs = draw_pairs(table([[0.0, 1.0, 2.0, 3.0]] * 30), config(), 0)
    for order in Order:
        found = shuffled(pairs, order, 0, 0)
        assert sorted(found.tolist()) == list(range(180))
        assert np.array_equal(found, shuffled(pairs, order, 0, 0))
        assert not np.array_equal(found, shuffled(pairs, order, 0, 1))
        assert not np.array_equal(found, shuffled(pairs, order, 1, 0))


def test_the_prefix_order_keeps_the_pairs_of_a_prompt_together() -> None:
    pairs = draw_pairs(table([[0.0, 1.0, 2.0, 3.0]] * 30), config(), 0)
    order = shuffled(pairs, Order.prefix, 0, 0)
    prompts = pairs.prompts[order]
    assert (np.diff(prompts) != 0).sum() == 29  # one change a prompt
    firsts = prompts[::6].tolist()
    assert firsts != sorted(firsts)
    within_prompt = {tuple((order[at : at + 6] % 6).tolist()) for at in range(0, 180, 6)}
    assert len(within_prompt) > 20  # and shuffled among themselves
    alone = pairs.prompts[shuffled(pairs, Order.shuffled, 0, 0)]
    assert (np.diff(alone) != 0).sum() > 150


def test_flips_turn_pairs_round() -> None:
    pairs = Pairs(np.array([[1, 0]] * 3000), np.zeros(3000, dtype=np.int64), {"empty": 2})
    turned = flip(pairs, 0.2, 0)
    assert within(int((turned.rows[:, 0] == 0).sum()), 3000, 0.2)
    assert (turned.rows.sum(1) == 1).all()
    assert turned.dropped == {"empty": 2}
    assert np.array_equal(flip(pairs, 0.2, 0).rows, turned.rows)
    assert np.array_equal(flip(pairs, 0.0, 0).rows, pairs.rows)


# --- rankings


def lists(rankings: Rankings) -> list[list[int]]:
    """The completions that are there, best first."""
    assert rankings.rows.dtype == np.int64 and rankings.mask.dtype == np.bool_
    assert rankings.rows.shape == rankings.mask.shape
    return [row[mask].tolist() for row, mask in zip(rankings.rows, rankings.mask, strict=True)]


def shares(rewards: dict[int, float], tau: float) -> dict[tuple[int, ...], float]:
    """The Plackett-Luce probability of each order, a choice at a time."""
    out = {}
    for order in permutations(rewards):
        probability = 1.0
        for place, first in enumerate(order):
            weights = {row: math.exp(rewards[row] / tau) for row in order[place:]}
            probability *= weights[first] / sum(weights.values())
        out[order] = probability
    return out


def test_rankings_are_sorted_by_reward() -> None:
    groups = table([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 4.0]])
    groups.index = pd.Index([80, 10, 20, 30, 40, 50, 60, 70])  # rows are positions
    rankings = draw_rankings(groups, config(), 0)
    assert lists(rankings) == [[2, 0, 3, 1], [7, 4, 6, 5]]
    assert rankings.prompts.tolist() == [0, 1]
    assert set(rankings.dropped.values()) == {0}


def test_short_rankings_are_padded_with_their_best() -> None:
    rankings = draw_rankings(table([[1.0, 2.0], [3.0, 5.0, 4.0, 6.0], [0.0, 0.0], [8.0, 7.0, 9.0]]), config(), 0)
    assert rankings.rows.tolist() == [[1, 0, 1, 1], [5, 3, 4, 2], [10, 8, 9, 10]]
    assert rankings.mask.sum(1).tolist() == [2, 4, 3]
    assert lists(rankings) == [[1, 0], [5, 3, 4, 2], [10, 8, 9]]
    assert rankings.prompts.tolist() == [0, 1, 3]
    assert rankings.dropped == {"same completion": 0, "equal rewards": 1, "below min_margin": 0, "ranking of one": 1}


def test_a_ranking_of_two_is_a_pair() -> None:
    rewards = np.random.default_rng(0).normal(size=(30, 2)).round(1)
    groups = table([*rewards.tolist(), [1.0, 1.0]])
    for settings in (config(), config(min_margin=0.5)):
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
    drawn = draw_rankings(table([list(rewards.values())] * 4000), config(labels=Labels.bradley_terry, tau=tau), 0)
    count = Counter(tuple(row % 3 for row in ranking) for ranking in lists(drawn))
    for order, share in shares(rewards, tau or 1.0).items():
        assert within(count[order], 4000, share)


def test_what_is_left_out_does_not_move_the_shares_of_the_rest() -> None:
    # 0 and 1 are one text; 2 is equal to 3 and near 4; of each set one stays, chosen before anything is drawn
    groups = table([[0.5, 0.5, 0.0, 0.0, -0.1, -1.0]] * 4000)
    groups["completion_ids"] = [[max(which, 1), prompt] for prompt in range(4000) for which in range(6)]
    drawn = draw_rankings(groups, config(labels=Labels.bradley_terry, min_margin=0.25), 0)
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
    drawn = draw_rankings(table([[-1e5, 1e5, 0.0]]), config(labels=Labels.bradley_terry, tau=1e-3), 0)
    assert lists(drawn) == [[1, 2, 0]]


def test_equal_rewards_stay_in_a_random_order_or_one_of_them_stays() -> None:
    groups = table([[1.0, 0.0, 1.0, 1.0]] * 1200)
    one = draw_rankings(groups, config(), 0)
    assert lists(one) == [[4 * prompt, 4 * prompt + 1] for prompt in range(1200)]
    assert one.dropped["equal rewards"] == 2400
    stay = draw_rankings(groups, config(ties=Ties.random), 0)
    assert stay.dropped["equal rewards"] == 0
    count = Counter(tuple(row % 4 for row in ranking) for ranking in lists(stay))
    assert count.keys() == {(*order, 1) for order in permutations((0, 2, 3))}
    assert all(within(number, 1200, 1 / 6) for number in count.values())


def test_a_ranking_keeps_what_is_a_margin_apart_from_all_above() -> None:
    rankings = draw_rankings(table([[0.0, 1.125, 0.25, 1.0, 0.75]]), config(min_margin=0.25), 0)
    # 1.0 is too near 1.125; 0.75 is not; 0.25 and 0.0 are exactly a margin apart
    assert lists(rankings) == [[1, 4, 2, 0]]
    assert rankings.dropped["below min_margin"] == 1


def test_equal_completions_are_ranked_once() -> None:
    groups = table([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    groups["completion_ids"] = [[5, 6], [5, 6], [5], [7], [7], [7]]
    rankings = draw_rankings(groups, config(), 0)
    assert lists(rankings) == [[2, 1]]
    assert rankings.dropped == {"same completion": 3, "equal rewards": 0, "below min_margin": 0, "ranking of one": 1}


def test_no_ranking_left_is_refused_with_the_reasons() -> None:
    with pytest.raises(RunError, match="no ranking is left of 2 .*6 equal rewards"):
        draw_rankings(table([[1.0] * 4] * 2), config(), 0)


def test_rankings_are_a_function_of_seed_and_prompt() -> None:
    settings = config(labels=Labels.bradley_terry)
    groups = table([[0.0, 0.1, 0.2, 0.3]] * 50)
    first = lists(draw_rankings(groups, settings, 0))
    assert lists(draw_rankings(groups, settings, 0)) == first
    assert lists(draw_rankings(groups, settings, 1)) != first
    rest = lists(draw_rankings(groups[groups["prompt_id"] >= 20], settings, 0))
    assert [[row + 80 for row in ranking] for ranking in rest] == first[20:]
    # without one completion the others stand in the order that they had
    groups["completion_ids"] = [[prompt, max(which, 1)] for prompt in range(50) for which in range(4)]
    fewer = lists(draw_rankings(groups, settings, 0))
    assert fewer == [[row for row in ranking if row % 4] for ranking in first]


def test_an_epoch_has_every_ranking_in_an_order_of_its_own() -> None:
    rankings = draw_rankings(table([[0.0, 1.0, 2.0]] * 40), config(), 0)
    for order in Order:
        found = shuffled(rankings, order, 0, 0)
        assert sorted(found.tolist()) == list(range(40)) != found.tolist()
        assert np.array_equal(found, shuffled(rankings, order, 0, 0))
        assert not np.array_equal(found, shuffled(rankings, order, 0, 1))
        assert not np.array_equal(found, shuffled(rankings, order, 1, 0))


# --- out


def test_the_exported_table_by_hand() -> None:
    groups = pd.DataFrame(
        {
            "prompt_id": [0, 0, 0, 1, 1],
            "prompt": ["The film"] * 3 + ["A plot"] * 2,
            "completion": [" is dull", " is good", " is dull", " x", " y"],
            "reward_logit": [-1.0, 2.0, -0.5, 1.0, 1.0],
        }
    )
    exported = to_trl(groups)
    assert exported.to_dict("list") == {
        "prompt": ["The film", "The film"],
        "chosen": [" is good", " is good"],
        "rejected": [" is dull", " is dull"],
        "score_chosen": [2.0, 2.0],
        "score_rejected": [-1.0, -0.5],
    }
    assert list(to_trl(groups[3:]).columns) == list(exported.columns)  # also where it has no rows


# --- in


def encode(texts: list[str]) -> list[list[int]]:
    """A token a character."""
    return [[ord(letter) for letter in text] for text in texts]


def write(folder: Path, rows: list[tuple[Any, ...]], columns: str = "prompt chosen rejected") -> Path:
    pd.DataFrame(rows, columns=columns.split()).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def take(file: Path, append_eos: bool = True, context: int = 100) -> tuple[pd.DataFrame, Pairs]:
    return from_preferences(file, encode, EOS, append_eos=append_eos, context=context)


def test_a_preference_file_becomes_groups(tmp_path: Path) -> None:
    rows = [("p", "a", "b"), ("q", "c", "d"), ("p", "a", "c"), ("p", "b", "c")]
    groups, pairs = take(write(tmp_path, rows))
    assert list(groups.columns) == COLUMNS
    texts = list(zip(groups["prompt"], groups["completion"], strict=True))
    assert texts == [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d"), ("p", "c")]  # each completion once a prompt
    assert groups["completion_ids"].tolist() == [[ord(text), EOS] for _, text in texts]
    assert groups["prompt_ids"].tolist() == [[ord(prompt)] for prompt, _ in texts]
    assert groups["sample_id"].tolist() == [0, 1, 0, 1, 2]
    assert [tuple(texts[i] for i in pair) for pair in pairs.rows] == [
        (("p", "a"), ("p", "b")),
        (("p", "a"), ("p", "c")),
        (("p", "b"), ("p", "c")),
        (("q", "c"), ("q", "d")),
    ]
    assert pairs.prompts.tolist() == [0, 0, 0, 1]  # the pairs of a prompt are neighbours
    assert groups["reward"].tolist() == [1, 0, 1, 0, 0]  # b: chosen as often as rejected
    assert groups["ref_logprob"].isna().all()
    assert groups["finished"].all()


def test_eos_is_appended_only_where_it_is_wanted(tmp_path: Path) -> None:
    file = write(tmp_path, [("p", "ab", "c")])
    assert [ids[-1] for ids in take(file)[0]["completion_ids"]] == [EOS, EOS]
    groups, _ = take(file, append_eos=False)
    assert groups["completion_ids"].tolist() == [[ord("a"), ord("b")], [ord("c")]]
    assert not groups["finished"].any()


def test_pairs_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [("p", "a", "a"), ("", "a", "b"), ("p", "", "b"), ("p", "a" * 9, "b"), ("p", "a" * 8, "b")]
    groups, pairs = take(write(tmp_path, rows), append_eos=False, context=9)
    assert groups["completion"].tolist() == ["a" * 8, "b"]
    assert pairs.dropped == {"same completion": 1, "empty": 2, "longer than the context": 1}
    # with EOS the empty text is EOS alone, and the longest has no room
    groups, pairs = take(write(tmp_path, rows), context=9)
    assert groups["completion_ids"].tolist() == [[EOS], [ord("b"), EOS]]
    assert pairs.dropped == {"same completion": 1, "empty": 1, "longer than the context": 2}


def test_no_usable_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no pair is left of 2 .*2 same completion"):
        take(write(tmp_path, [("p", "a", "a"), ("q", "b", "b")]))
    with pytest.raises(RunError, match="no pair is left of 0"):
        take(write(tmp_path, []))


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_a_value_that_is_no_string_is_refused(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "pairs.parquet"
    good = [["x"], ["x"]] if isinstance(value, list) else ["x", "y"] if value is None else [1, 2]
    rejected = [*good[:1], value]
    pd.DataFrame({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": rejected}).to_parquet(file)
    with pytest.raises(RunError, match=rf"row {1 if value is None else 0}: rejected is not a string"):
        take(file)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no column 'rejected' \\(it has prompt, chosen, bad\\)"):
        check_preferences(write(tmp_path, [("p", "a", "b")], "prompt chosen bad"))
    with pytest.raises(RunError, match="no such file"):
        check_preferences(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("prompt,chosen,rejected")
    with pytest.raises(RunError, match="not a readable parquet") as caught:
        check_preferences(tmp_path / "text.parquet")
    assert "\n" not in str(caught.value)


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    file = write(tmp_path, [("b", 1.0, "a", "p")], "rejected score chosen prompt")
    groups, pairs = take(file)
    assert groups["completion"].tolist() == ["a", "b"]
    assert pairs.rows.tolist() == [[0, 1]]


def test_what_is_exported_can_be_read_back(tmp_path: Path) -> None:
    groups = table([[0.0, 1.0, 2.0, 3.0]] * 2)
    groups["prompt"] = [f"prompt {prompt}" for prompt in groups["prompt_id"]]
    groups["completion"] = [f" text {at}" for at in range(8)]
    to_trl(groups).to_parquet(tmp_path / "preferences.parquet", index=False)
    back, pairs = take(tmp_path / "preferences.parquet")
    texts = back["completion"].tolist()
    wanted = draw_pairs(groups, config(), 0)
    expected = {(f" text {best}", f" text {worst}") for best, worst in wanted.rows}
    assert {(texts[best], texts[worst]) for best, worst in pairs.rows} == expected
    assert len(pairs.rows) == 12


# --- the artifact


def test_an_artifact_is_read_with_or_without_pairs(tmp_path: Path) -> None:
    groups = table([[0.0, 1.0]])
    groups.to_parquet(tmp_path / "groups.parquet", index=False)
    frame = read(tmp_path)
    assert frame["reward_logit"].tolist() == [0, 1]
    groups.assign(ref_logprob=[-1.0, np.inf]).to_parquet(tmp_path / "groups.parquet", index=False)
    with pytest.raises(RunError, match="not finite"):
        read(tmp_path)
