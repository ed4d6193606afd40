"""The role of each review, and prompts: disjoint, exact prefixes, a function of the seed."""

import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.config.data import EmbeddedData, ImdbData, PromptsConfig
from imdb_rlhf.data import prompts
from imdb_rlhf.errors import RunError
from tests import tiny
from tests.data.tables import imdb_data, write_split

LENGTHS = PromptsConfig(train=20, validation=5, test=10, min_tokens=2, max_tokens=8)


def encode(texts: list[str]) -> list[list[int]]:
    """A tokenizer for tests: pieces of at most four characters, none of which spans two words."""
    pieces = [re.findall(r"\s*\S{1,4}", text) for text in texts]
    return [[zlib.crc32(piece.encode()) >> 2 for piece in row] for row in pieces]


def imdb_config(**changes: Any) -> ImdbData:
    return imdb_data(**{"sft_reviews": 30, "prompts": LENGTHS, **changes})


def embedded_config(**changes: Any) -> EmbeddedData:
    return tiny.data(**{"sft_reviews": 30, "labelled_reviews": 12, "prompts": LENGTHS, **changes})


def review(split: str, number: int) -> str:
    return f"Review {number} of the {split} split is long enough to make a prompt of."


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "test"):
        write_split(tmp_path, split, [review(split, number) for number in range(40)])
    write_split(tmp_path, "unsupervised", [review("unsupervised", number) for number in range(40)], [-1] * 40)
    return tmp_path


# --- roles


def roles(reviews: prompts.Reviews) -> list[set[str]]:
    return [set(reviews.texts[role]) for role in ("sft", *prompts.PROMPT_ROLES)]


def assert_disjoint(reviews: prompts.Reviews, sizes: list[int]) -> None:
    sets = roles(reviews)
    assert [len(texts) for texts in sets] == sizes
    assert len(set[str]().union(*sets)) == sum(sizes)


def test_no_text_serves_twice(folder):
    reviews = prompts.divide(imdb_config(), 0, folder)
    assert_disjoint(reviews, [30, 20, 5, 10])
    assert reviews.report["reviews"] == {"sft": 30, "train": 20, "validation": 5, "test": 10}
    assert len(reviews.labelled) == len(reviews.held_out) == 0


def test_splits_are_asked_in_their_order(folder):
    reviews = prompts.divide(imdb_config(sft_reviews=45), 0, folder)
    assert all(" test split" in text for text in reviews.texts["test"])
    assert all(" train split" in text for role in ("train", "validation") for text in reviews.texts[role])
    of_split = Counter("unsupervised" in text for text in reviews.texts["sft"])
    assert of_split == {True: 40, False: 5}


def test_prompts_go_on_in_the_next_split(folder):
    wanted = PromptsConfig(train=50, validation=5, test=10, min_tokens=2, max_tokens=8)
    reviews = prompts.divide(imdb_config(prompts=wanted, sft_reviews=25), 0, folder)
    assert Counter("unsupervised" in text for text in reviews.texts["train"]) == {False: 35, True: 15}
    assert_disjoint(reviews, [25, 50, 5, 10])


def test_a_reward_is_held_to_account_on_reviews_that_nothing_else_sees(folder):
    reviews = prompts.divide(imdb_config(), 7, folder)
    assert len(reviews.held_out) == 7 and set(reviews.held_out.columns) >= {"text", "label"}
    held = set(reviews.held_out["text"])
    assert all(" test split" in text for text in held)
    assert not held & set[str]().union(*roles(reviews))
    assert set(reviews.labelled["label"]) == {0, 1}
    everything = {review("train", number) for number in range(40)}
    assert set(reviews.labelled["text"]) == everything - set(reviews.texts["validation"])
    assert not held & set(reviews.labelled["text"])


def test_labels_stay_with_their_texts(folder):
    reviews = prompts.divide(imdb_config(), 7, folder)
    for frame in (reviews.labelled, reviews.held_out):
        assert [int(re.findall(r"\d+", text)[0]) % 2 for text in frame["text"]] == frame["label"].tolist()


def test_two_splits_with_labels(folder):
    reviews = prompts.divide(imdb_config(labelled_splits=["train", "test"]), 7, folder)
    everything = {review(split, number) for split in ("train", "test") for number in range(40)}
    apart = set(reviews.held_out["text"]) | set(reviews.texts["test"]) | set(reviews.texts["validation"])
    assert set(reviews.labelled["text"]) == everything - apart
    assert len(reviews.labelled) == 80 - 7 - 10 - 5


@pytest.mark.parametrize("kind", ["imdb", "embedded"])
def test_who_serves_what_does_not_depend_on_what_is_held_out(folder, kind):
    config = imdb_config(labelled_splits=["train", "test"]) if kind == "imdb" else embedded_config()
    none, some, more = (prompts.divide(config, count, folder) for count in (0, 5, 9))
    assert none.texts == some.texts == more.texts
    assert some.held_out["text"].tolist() == more.held_out["text"].tolist()[:5]


def test_one_split_can_serve_everything(folder):
    everywhere = {name: ["train"] for name in ("prompt_splits", "test_splits", "sft_splits")}
    reviews = prompts.divide(imdb_config(sft_reviews=2, **everywhere), 3, folder)
    assert_disjoint(reviews, [2, 20, 5, 10])
    assert len(reviews.labelled) == 40 - 3 - 10 - 5  # neither held out nor a test or validation prompt's
    assert not set(reviews.held_out["text"]) & (set(reviews.labelled["text"]) | set[str]().union(*roles(reviews)))


def test_duplicates_are_removed_and_counted(tmp_path):
    write_split(tmp_path, "test", [*(review("test", n) for n in range(12)), review("test", 3), review("test", 3)])
    same = [
        review("test", 0).upper(),
        review("test", 1).replace(" ", "  "),
        review("test", 2).replace("is", "<br />is"),
    ]
    write_split(tmp_path, "train", [*(review("train", n) for n in range(30)), review("train", 4), *same])
    unsupervised = [review("unsupervised", n) for n in range(30)]
    write_split(tmp_path, "unsupervised", [*unsupervised, review("train", 7), review("test", 5)], [-1] * 32)
    reviews = prompts.divide(imdb_config(sft_reviews=30), 0, tmp_path)
    assert reviews.report["duplicates_removed"] == {
        "test": {"within": 2, "also in an earlier split": 0},
        "train": {"within": 1, "also in an earlier split": 3},
        "unsupervised": {"within": 0, "also in an earlier split": 2},
    }
    assert set(reviews.texts["sft"]) == set(unsupervised)  # 30 asked for, and no duplicate among them
    with pytest.raises(RunError, match="data.prompts.train=30 is more than the 25 usable"):
        wanted = PromptsConfig(train=30, validation=5, test=10, min_tokens=2, max_tokens=8)
        prompts.divide(imdb_config(prompts=wanted, prompt_splits=["train"]), 0, tmp_path)


def test_empty_texts_and_short_ones_are_counted(folder):
    texts = [review("train", number) for number in range(25)]
    write_split(folder, "train", [*texts, "", None, *(f"Short {n}." for n in range(300))], [0] * 327)
    reviews = prompts.divide(imdb_config(sft_splits=["unsupervised"]), 0, folder)
    assert reviews.report["empty_texts_skipped"] == {"test": 0, "train": 2, "unsupervised": 0}
    assert set(reviews.texts["train"]) | set(reviews.texts["validation"]) == set(texts)
    # all 25 long ones are wanted, so nearly all of the 300 short ones are passed over, and none twice
    assert 200 < reviews.report["too_short_for_a_prompt"] <= 300


@pytest.mark.parametrize(
    ("changes", "held_out", "key"),
    [
        ({"sft_reviews": 100}, 0, "data.sft_reviews=100 is more than the 55 usable"),
        ({"prompts": PromptsConfig(70, 5, 10, 2, 8), "sft_reviews": 1}, 0, None),
        ({"prompts": PromptsConfig(76, 5, 10, 2, 8), "sft_reviews": 1}, 0, "data.prompts.train=76 is more than the 75"),
        ({"prompts": PromptsConfig(20, 81, 10, 2, 8)}, 0, "data.prompts.validation=81 is more than the 80"),
        ({"prompts": PromptsConfig(20, 5, 41, 2, 8)}, 0, "data.prompts.test=41 is more than the 40"),
        ({}, 31, "reward.held_out=31 is more than the 30"),
    ],
)
def test_fewer_reviews_than_asked_for(folder, changes, held_out, key):
    if key is None:
        prompts.divide(imdb_config(**changes), held_out, folder)
        return
    with pytest.raises(RunError) as caught:
        prompts.divide(imdb_config(**changes), held_out, folder)
    assert str(caught.value).startswith(key)
    assert str(caught.value).endswith(f"of {folder}; ask for fewer")


def test_too_few_remain_after_the_empty_ones(folder):
    write_split(folder, "test", [review("test", 0), *[""] * 39])
    with pytest.raises(RunError, match="data.prompts.test=10 is more than the 1 usable reviews left in test of"):
        prompts.divide(imdb_config(), 0, folder)


def test_labels_are_checked_where_they_are_needed_alone(folder):
    write_split(folder, "train", [review("train", number) for number in range(40)], [-1] * 40)
    prompts.divide(imdb_config(), 0, folder)
    with pytest.raises(RunError, match=r"train.*row 0: label -1 is not one of \[0, 1\]"):
        prompts.divide(imdb_config(), 5, folder)


def test_one_label_is_no_two_label_reward(folder):
    write_split(folder, "train", [review("train", number) for number in range(40)], [1] * 40)
    with pytest.raises(RunError, match="train has one label only; a two-label reward needs both"):
        prompts.divide(imdb_config(), 5, folder)


def test_generated_reviews_are_disjoint_too():
    reviews = prompts.divide(embedded_config(), 6)
    assert_disjoint(reviews, [30, 20, 5, 10])
    assert (len(reviews.labelled), len(reviews.held_out)) == (12, 6)
    labelled, held = set(reviews.labelled["text"]), set(reviews.held_out["text"])
    assert not (labelled & held or (labelled | held) & set[str]().union(*roles(reviews)))
    assert len(prompts.divide(embedded_config(), 0).labelled) == 0


def divided(kind: str, folder: Path, seed: int) -> dict[str, list[str]]:
    config = imdb_config(seed=seed) if kind == "imdb" else embedded_config(seed=seed)
    return prompts.divide(config, 3, folder).texts


@pytest.mark.parametrize("kind", ["imdb", "embedded"])
def test_a_function_of_the_seed(folder, kind):
    assert divided(kind, folder, 0) == divided(kind, folder, 0)
    first, other = divided(kind, folder, 0), divided(kind, folder, 1)
    assert all(first[role] != other[role] for role in first)


def test_more_reviews_for_sft_leave_the_prompts_alone(folder):
    few, many = (prompts.divide(imdb_config(sft_reviews=n), 0, folder).texts for n in (10, 40))
    assert all(few[role] == many[role] for role in prompts.PROMPT_ROLES)
    assert many["sft"][:10] == few["sft"]


# --- prompts


def texts(count: int) -> list[str]:
    return [f"Number {n} is {'quite ' * (n % 3)}a review that goes on for long enough." for n in range(count)]


def test_prompts_are_exact_prefixes_of_their_reviews():
    rows = prompts.encode_prompts(texts(200), "train", LENGTHS, 0, encode)
    assert len(rows) == 200
    for row, whole in zip(rows, encode(texts(200)), strict=True):
        assert 2 <= len(row) <= 8
        assert row == whole[: len(row)]


def test_prompt_lengths_are_roughly_even():
    lengths = Counter(map(len, prompts.encode_prompts(texts(2100), "train", LENGTHS, 0, encode)))
    assert sorted(lengths) == [2, 3, 4, 5, 6, 7, 8]
    assert all(abs(count - 300) < 80 for count in lengths.values())  # 5 standard deviations of a binomial(2100, 1/7)


def test_prompt_lengths_are_a_function_of_seed_role_and_index():
    wanted = prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode)
    assert prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode) == wanted
    assert prompts.encode_prompts(texts(60), "train", LENGTHS, 0, encode)[:50] == wanted
    assert prompts.encode_prompts(texts(50), "test", LENGTHS, 0, encode) != wanted
    assert prompts.encode_prompts(texts(50), "train", LENGTHS, 1, encode) != wanted


def test_one_length_alone():
    fixed = PromptsConfig(train=1, validation=1, test=1, min_tokens=5, max_tokens=5)
    assert {len(row) for row in prompts.encode_prompts(texts(30), "train", fixed, 0, encode)} == {5}


def test_a_review_with_fewer_tokens_than_its_prompt():
    fixed = PromptsConfig(train=1, validation=1, test=1, min_tokens=5, max_tokens=5)
    with pytest.raises(RunError, match="a test review has 2 tokens, fewer than its prompt's 5"):
        prompts.encode_prompts(["One two"], "test", fixed, 0, encode)


def test_sft_rows_begin_at_the_beginning_and_end_in_eos_if_they_fit():
    rows = prompts.encode_reviews(["a b c", "a b c d", "a b c d e", "a"], 4, 99, encode)
    a, b, c, d, _ = encode(["a b c d e"])[0]
    assert rows == [[a, b, c, 99], [a, b, c, d], [a, b, c, d], [a, 99]]


# --- the artifact


def test_write_and_read(tmp_path):
    reviews = prompts.divide(embedded_config(), 6)
    parts = {
        role: prompts.encode_prompts(reviews.texts[role], role, LENGTHS, 0, encode) for role in prompts.PROMPT_ROLES
    }
    rows = prompts.encode_reviews(reviews.texts["sft"], 12, 7, encode)
    prompts.write(tmp_path, reviews, parts, rows)
    for role in prompts.PROMPT_ROLES:
        assert prompts.read_prompts(tmp_path, role) == parts[role]
    assert [row.tolist() for row in prompts.read_rows(tmp_path)] == rows
    assert all(row.dtype == np.int32 for row in prompts.read_rows(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sft_tokens"] == sum(map(len, rows))


def test_the_share_of_test_prompts_that_are_training_prompts_too(tmp_path):
    reviews = prompts.divide(embedded_config(), 0)
    parts = {
        "train": [[1, 2], [3, 4, 5], [6, 7]],
        "validation": [[8, 9]],
        "test": [[1, 2], [3, 4], [6, 7], [8, 9], [6, 7]],  # 3 of 5: [3, 4] is only the beginning of one
    }
    prompts.write(tmp_path, reviews, parts, [[1]])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["test_prompts_also_training_prompts"] == pytest.approx(0.6)
