"""Generated reviews: distinct, reproducible, balanced, and neutral in their first words."""

import os
import re
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from imdb_rlhf.data import embedded_words as words
from imdb_rlhf.data.embedded import Review, generate

SLOT = re.compile(r"\{(?:a:)?([~!]*)(\w+)\}")
SHAPES = (
    words.NEUTRAL_OPENERS,
    words.OPINION_OPENERS,
    words.FILLERS,
    words.BODIES,
    words.VERDICTS,
)


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    return generate(20_000, seed=3)


def probabilities(reviews: list[Review]) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array([review.log_odds for review in reviews])))


def test_a_count_gives_that_many_distinct_texts(reviews: list[Review]) -> None:
    assert len({review.text for review in reviews}) == 20_000
    assert generate(0, seed=3) == []


def test_a_negative_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        generate(-1, seed=0)


def test_a_smaller_count_is_a_prefix(reviews: list[Review]) -> None:
    assert generate(50, seed=3) == reviews[:50]


@pytest.mark.parametrize("other", [4, -3, 2**40])
def test_seeds_have_streams_of_their_own(reviews: list[Review], other: int) -> None:
    texts = {review.text for review in reviews[:2000]}
    assert sum(review.text in texts for review in generate(2000, seed=other)) < 20


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_generates_the_same(reviews: list[Review], hash_seed: str) -> None:
    code = "import sys; from imdb_rlhf.data.embedded import generate; sys.stdout.write(generate(20, 3)[-1].text)"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == reviews[19].text


def test_labels_are_signs_and_log_odds_are_bounded(reviews: list[Review]) -> None:
    for review in reviews:
        assert review.log_odds != 0
        assert review.label == (1 if review.log_odds > 0 else 0)
        assert abs(review.log_odds) < words.BOUND


def test_texts_read_like_prose(reviews: list[Review]) -> None:
    for review in reviews:
        assert review.text.isascii()
        assert 15 <= len(review.text.split()) <= 55
        sentences = review.text.removesuffix(".").split(". ")
        assert 2 <= len(sentences) <= 6
        assert all(sentence[0].isupper() for sentence in sentences)
        assert not re.search(r"\s[,.]|[,.]\w|\s\s|[{}~!:|]|\.\.|\b[Aa] [aeiou](?!ne\b)|\b[Aa]n [^aeiouh]", review.text)


def test_praise_and_blame_are_balanced_and_moderate(reviews: list[Review]) -> None:
    positive = probabilities(reviews)
    assert 0.42 < positive.mean() < 0.58
    assert 0.27 < positive.std() < 0.36
    assert np.mean(np.abs([review.log_odds for review in reviews]) < 3) > 0.8


def test_the_first_four_words_leave_the_sentiment_open(reviews: list[Review]) -> None:
    groups = defaultdict(list)
    for review in reviews:
        groups[tuple(review.text.split()[:4])].append(review.label)
    shares = [np.mean(labels) for labels in groups.values() if len(labels) >= 60]
    assert len(shares) > 20
    assert min(shares) > 0.25 and max(shares) < 0.75
    assert any(start[:2] == ("The", "acting") and len(set(labels)) == 2 for start, labels in groups.items())


def test_openings_vary(reviews: list[Review]) -> None:
    assert len({" ".join(review.text.split()[:8]) for review in reviews}) > 8_000


def test_the_vocabulary_has_several_hundred_words(reviews: list[Review]) -> None:
    spoken = {word for review in reviews for word in re.findall(r"[a-z0-9']+", review.text.lower())}
    assert 500 <= len(spoken) <= 900
    unspoken = {"adore", "despise", "loathe"}  # base forms are in negated slots only, which take no extremes
    assert (set(words.VALENCE) | set(words.INTENSIFIERS)) - spoken == unspoken
    assert len(spoken & words.NEGATORS) >= 8


def test_a_concession_contrasts(reviews: list[Review]) -> None:
    contrast = re.compile(r"has an? (?:\w+ )?(\w+) \w+, but an? (?:\w+ )?(\w+) \w+\.")
    pairs = [match.groups() for review in reviews for match in contrast.finditer(review.text)]
    assert len(pairs) > 200
    assert all(words.VALENCE[granted] * words.VALENCE[asserted] < 0 for granted, asserted in pairs)


def test_a_word_has_one_worth() -> None:
    for sign, table in ((1, words.POSITIVE), (-1, words.NEGATIVE)):
        for grades in table.values():
            for row, strength in zip(grades, (0.4, 0.8, 1.2, 1.6), strict=True):
                assert all(words.VALENCE[word] == sign * strength for word in row.split())
    assert words.VALENCE["decent"] < words.VALENCE["good"] < words.VALENCE["superb"]
    assert words.VALENCE["slow"] > words.VALENCE["bad"] > words.VALENCE["dreadful"]


def test_neutral_phrases_hold_no_opinion() -> None:
    loaded = set(words.VALENCE) | set(words.INTENSIFIERS) | words.NEGATORS
    fixed = [SLOT.sub(" ", shape) for shapes in SHAPES for shape in shapes]
    phrases = [phrase for entries in words.NEUTRAL.values() for phrase in entries]
    for text in phrases:
        assert not loaded & set(re.findall(r"[\w']+", text.lower())), text
    for text in fixed:
        assert not set(words.VALENCE) & set(re.findall(r"[\w']+", text.lower())), text


def test_no_review_can_run_out_of_fresh_words() -> None:
    """Words are not repeated in a review: six sentences of the hungriest shapes must not use up a list."""
    hunger = defaultdict(list)
    negated = set()
    for shapes in SHAPES:
        for shape in shapes:
            slots = SLOT.findall(shape)
            names = [name for _, name in slots]
            negated |= {name for marks, name in slots if "!" in marks}
            for name in set(names):
                hunger[name].append(names.count(name))
    for name, counts in hunger.items():
        most = sum(sorted(counts)[-6:])
        if name in words.NEUTRAL:
            supply = len(words.NEUTRAL[name])
        else:  # a negated slot takes no word of the highest grade
            grades = 3 if name in negated else 4
            supply = min(len(" ".join(table[name][:grades]).split()) for table in (words.POSITIVE, words.NEGATIVE))
        assert name == "film" or most < supply, name
