"""Reviews as tokens: prompts are exact prefixes, their lengths a function of the seed; SFT rows."""

import json
import re
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.config.data import EmbeddedData, PromptsConfig
from imdb_rlhf.data import prompts
from imdb_rlhf.data.reviews import PROMPT_ROLES, dataset_of
from imdb_rlhf.errors import RunError
from tests import tiny

LENGTHS = PromptsConfig(train=20, validation=5, test=10, min_tokens=2, max_tokens=8)


def encode(texts: list[str]) -> list[list[int]]:
    """A tokenizer for tests: pieces of at most four characters, none of which spans two words."""
    pieces = [re.findall(r"\s*\S{1,4}", text) for text in texts]
    return [[zlib.crc32(piece.encode()) >> 2 for piece in row] for row in pieces]


def embedded_config(**changes: Any) -> EmbeddedData:
    return tiny.data(**{"sft_reviews": 30, "labelled_reviews": 12, "prompts": LENGTHS, **changes})


# --- prompts


def texts(count: int) -> list[str]:
    return [f"Number {n} is {'quite ' * (n % 3)}a review that goes on for long enough." for n in range(count)]


def test_prompts_are_exact_prefixes_of_their_reviews():
    rows = prompts.encode_prompts(texts(200), "train", LENGTHS, 0, encode, None)
    assert len(rows) == 200
    for row, whole in zip(rows, encode(texts(200)), strict=True):
        assert 2 <= len(row) <= 8
        assert row == whole[: len(row)]


def test_prompt_lengths_are_roughly_even():
    lengths = Counter(map(len, prompts.encode_prompts(texts(2100), "train", LENGTHS, 0, encode, None)))
    assert sorted(lengths) == [2, 3, 4, 5, 6, 7, 8]
    assert all(abs(count - 300) < 80 for count in lengths.values())  # 5 standard deviations of a binomial(2100, 1/7)


def test_prompt_lengths_are_a_function_of_seed_role_and_index():
    wanted = prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode, None)
    assert prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode, None) == wanted
    assert prompts.encode_prompts(texts(60), "train", LENGTHS, 0, encode, None)[:50] == wanted
    assert prompts.encode_prompts(texts(50), "test", LENGTHS, 0, encode, None) != wanted
    assert prompts.encode_prompts(texts(50), "train", LENGTHS, 1, encode, None) != wanted


def test_one_length_alone():
    fixed = PromptsConfig(train=1, validation=1, test=1, min_tokens=5, max_tokens=5)
    assert {len(row) for row in prompts.encode_prompts(texts(30), "train", fixed, 0, encode, None)} == {5}


def test_a_review_with_fewer_tokens_than_its_prompt():
    fixed = PromptsConfig(train=1, validation=1, test=1, min_tokens=5, max_tokens=5)
    with pytest.raises(RunError, match="a test review has 2 tokens, fewer than its prompt's 5"):
        prompts.encode_prompts(["One two"], "test", fixed, 0, encode, None)


def test_sft_rows_begin_at_the_beginning_and_end_in_eos_if_they_fit():
    rows = prompts.encode_reviews(["a b c", "a b c d", "a b c d e", "a"], 4, 99, encode, None)
    a, b, c, d, _ = encode(["a b c d e"])[0]
    assert rows == [[a, b, c, 99], [a, b, c, d], [a, b, c, d], [a, 99]]


# --- the artifact


def test_write_and_read(tmp_path):
    reviews = dataset_of(embedded_config()).divide(6)
    parts = {role: prompts.encode_prompts(reviews.texts[role], role, LENGTHS, 0, encode, None) for role in PROMPT_ROLES}
    rows = prompts.encode_reviews(reviews.texts["sft"], 12, 7, encode, None)
    prompts.write(tmp_path, reviews, parts, rows, None)
    for role in PROMPT_ROLES:
        assert prompts.read_prompts(tmp_path, role) == parts[role]
    assert [row.tolist() for row in prompts.read_rows(tmp_path)] == rows
    assert all(row.dtype == np.int32 for row in prompts.read_rows(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sft_tokens"] == sum(map(len, rows))


def test_the_share_of_test_prompts_that_are_training_prompts_too(tmp_path):
    reviews = dataset_of(embedded_config()).divide(0)
    parts = {
        "train": [[1, 2], [3, 4, 5], [6, 7]],
        "validation": [[8, 9]],
        "test": [[1, 2], [3, 4], [6, 7], [8, 9], [6, 7]],  # 3 of 5: [3, 4] is only the beginning of one
    }
    prompts.write(tmp_path, reviews, parts, [[1]], None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["test_prompts_also_training_prompts"] == pytest.approx(0.6)


# --- rows that begin with BOS


def test_prompts_are_the_same_after_bos() -> None:
    plain = prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode, None)
    assert prompts.encode_prompts(texts(50), "train", LENGTHS, 0, encode, 77) == [[77, *row] for row in plain]


def test_reviews_after_bos_are_as_long_as_others() -> None:
    rows = prompts.encode_reviews(["a b", "a b c", "a b c d", "a b c d e"], 4, 99, encode, 77)
    words = encode(["a b c"])[0]
    assert rows == [[77, *words[:2], 99], [77, *words], [77, *words], [77, *words]]


def bytes_of_words(texts: list[str]) -> list[list[int]]:
    """A token per word, as tokenizers that merge blanks have it."""
    return encode([" ".join(text.split()) for text in texts])


@pytest.mark.parametrize("blanks", [10, 1100])
def test_a_review_that_begins_with_blanks_ends_where_it_ends(blanks) -> None:
    """1,100 blanks are fewer tokens than characters: the beginning that is encoded first holds no word."""
    text = " " * blanks + " ".join("abcdefghijklmnopqrstuvwxyz")
    words = encode([" ".join("abcdefghijklmnop")])[0]
    assert prompts.encode_reviews([text], 16, 99, bytes_of_words, None) == [words]
    (prompt,) = prompts.encode_prompts([text], "train", LENGTHS, 0, bytes_of_words, None)
    assert prompt == words[: len(prompt)]
