"""The lexicon reward: sums by hand, agreement with the generator of reviews, and hostile texts."""

import math
import random
import re
import time

import numpy as np
import pytest

from imdb_rlhf.data.embedded import Review, generate
from imdb_rlhf.data.embedded_words import NEGATORS, VALENCE
from imdb_rlhf.rewards import Scores
from imdb_rlhf.rewards.lexicon import LexiconReward, log_odds


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    return generate(20_000, seed=11)


def squash(total: float) -> float:
    return 6 * math.tanh(total / 6)


def test_a_literal_value() -> None:
    assert log_odds("The plot is very good.") == pytest.approx(1.184251921, abs=1e-9)  # 6 tanh(1.2 / 6)


# Sums by hand: decent .4, good .8, lovely 1.2, superb and wonderful 1.6; slow -.4, dull, weak and drags -.8,
# dreadful -1.6; slightly x .5, rather x .8, truly x 1.25, very x 1.5; negated x -.5; conceded x .5.
@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("", 0.0),
        ("The film was shot in Paris.", 0.0),
        ("The plot is decent.", 0.4),
        ("The plot is dreadful.", -1.6),
        ("THE PLOT IS GOOD", 0.8),
        # intensifiers
        ("The plot is slightly dull.", -0.4),
        ("It is a rather good film.", 0.64),
        ("It is a truly superb film.", 2.0),
        ("The plot is very, I think, good.", 0.0),  # the last phrase has no ordinary words
        ("The plot is very much a good one.", 0.8),  # not directly before
        ("The plot is very very good.", 1.2),
        ("The plot is very good and the cast is superb.", 2.8),
        ("It is a very good superb film.", 2.8),  # an intensifier serves one word
        # negation
        ("The plot is not good.", -0.4),
        ("The plot is not very good.", -0.6),
        ("The plot isn't dull.", 0.4),
        ("The plot isn\u2019t dull.", 0.4),
        ("The film is never dull.", 0.4),
        ("The plot is hardly lovely.", -0.6),
        ("There is nothing good about the plot.", -0.4),
        ("The film is neither good nor lovely.", -1.0),
        ("The film is not never good.", -0.4),  # two negators turn once
        ("The plot is not good and the cast is superb.", 1.2),  # "and" ends the scope
        ("It did not rain, the cast is superb.", 1.6),  # so does a comma
        ("I do not know. The cast is superb.", 1.6),
        ("The cast is superb in what is not a film.", 1.6),  # a negator looks ahead only
        # concession
        ("It has a weak plot, but a wonderful cast.", 1.2),
        ("The plot is weak yet the cast is wonderful.", 1.2),
        ("The plot is weak. But the cast is wonderful.", 0.8),  # "but" does not reach back a sentence
        ("Although the pacing drags, the cast is good.", 0.4),
        ("The cast is good, though the pacing drags.", 0.4),
        ("Despite the dull plot, the film is not slow.", -0.2),
        ("Although the plot is not good, the cast is lovely.", 1.0),
        ("Although the plot is weak, but not dull as such, the cast is good.", 0.8),  # -.4 once, +.4, +.8
        # repetition: the first mention settles a word
        ("The plot is good. The cast is good.", 0.8),
        ("The plot is not good. The cast is good.", -0.4),
        ("The plot is good. The score is lovely. The cast is very good.", 2.0),
        # piles: one opinion for two distinct ordinary words between punctuation marks
        ("superb wonderful lovely good", 0.0),
        ("Superb. Wonderful. Lovely.", 0.0),
        ("superb the the the wonderful the the", 0.0),
        ("The cast is superb wonderful lovely.", 1.6),
        ("The cast and the plot are superb and wonderful and good.", 3.2),  # the, cast, and, plot, are: two
        ("The cast is superb, wonderful, lovely.", 1.6),
        ("Superb! The cast is superb.", 0.0),  # the bare mention was the first
        ("very very very superb film", 0.0),  # an intensifier is no ordinary word
    ],
)
def test_hand_worked_sums(text: str, total: float) -> None:
    assert log_odds(text) == pytest.approx(squash(total), abs=1e-9)


def test_the_parser_agrees_with_the_generator(reviews: list[Review]) -> None:
    parsed = np.array([log_odds(review.text) for review in reviews])
    built = np.array([review.log_odds for review in reviews])
    assert np.abs(parsed - built).max() < 1e-9


def test_ignoring_negation_is_wrong_on_many_reviews(reviews: list[Review]) -> None:
    negator = re.compile(rf"\b(?:{'|'.join(sorted(NEGATORS))})(?![\w'])", re.IGNORECASE)
    built = np.array([review.log_odds for review in reviews[:4000]])
    ignorant = np.array([log_odds(negator.sub("indeed", review.text)) for review in reviews[:4000]])
    assert np.mean(np.abs(ignorant - built) > 0.1) > 0.4
    assert np.mean(ignorant * built < 0) > 0.12


def test_sentiment_comes_after_the_first_words_and_within_forty(reviews: list[Review]) -> None:
    def first(count: int) -> np.ndarray:
        return np.array([log_odds(" ".join(review.text.split()[:count])) for review in reviews[:4000]])

    built = np.array([review.log_odds for review in reviews[:4000]])
    assert np.mean(first(4) != 0) < 0.01
    assert abs(np.corrcoef(first(8), built)[0, 1]) < 0.25
    assert np.corrcoef(first(40), built)[0, 1] > 0.9
    assert np.mean(first(40) != 0) > 0.95


def test_repeating_a_text_or_a_phrase_adds_nothing(reviews: list[Review]) -> None:
    for review in reviews[:200]:
        assert log_odds(f"{review.text} {review.text}") == log_odds(review.text)
    once = log_odds("The cast is truly superb.")
    assert log_odds("The cast is truly superb. " * 40) == once


def test_varied_praise_beats_piles() -> None:
    pile = "superb wonderful brilliant masterpiece perfect stunning flawless masterful"
    prose = "The cast is superb and the score is wonderful. I loved the ending. The whole film is brilliantly shot."
    assert log_odds(pile) == 0
    assert log_odds(f"A {pile} film") < 2
    assert log_odds(prose) > 4


def nasty() -> list[str]:
    draw = random.Random(5)
    noise = [bytes(draw.randrange(256) for _ in range(2000)).decode("latin-1") for _ in range(20)]
    tokens = ["superb", "dull", "not", "but", "although", "very", ",", ".", "'", "isn't", "the", "a", "\u2019", "-"]
    salads = [draw.choice(["", " "]).join(draw.choices(tokens, k=3000)) for _ in range(20)]
    return [
        *noise,
        *salads,
        " ",
        "...",
        "'" * 1000,
        "\x00\ud800\u202e",
        "\U0001f600 superb \U0001f44d\U0001f3fd film \U0001f600",
        "caf\u00e9 \u0130stanbul na\u00efve \u4e2d\u6587",
        "superb " * 100_000,
        "superb but " * 50_000,
        "a'" * 50_000,
        "The act was sup",
        "wonderf",
    ]


@pytest.mark.parametrize("index", range(len(nasty())))
def test_any_string_has_finite_bounded_log_odds(index: int) -> None:
    text = nasty()[index]
    start = time.perf_counter()
    value = log_odds(text)
    assert math.isfinite(value) and abs(value) <= 6
    assert time.perf_counter() - start < 5  # linear: a quadratic parser takes minutes on the longest


def test_every_opinion_at_once_stays_in_the_bound() -> None:
    praise = " ".join(f"The part {i} is {word}." for i, word in enumerate(VALENCE) if VALENCE[word] > 0)
    assert 5.99 < log_odds(praise) <= 6
    blame = " ".join(f"The part {i} is {word}." for i, word in enumerate(VALENCE) if VALENCE[word] < 0)
    assert -6 <= log_odds(blame) < -5.99


def test_scores_hold_both_scales() -> None:
    scores = LexiconReward().score(["", "The plot is very good.", "The plot is not very good."])
    assert isinstance(scores, Scores)
    assert scores.reward.dtype == scores.logit.dtype == np.float64
    np.testing.assert_allclose(scores.logit, [0, squash(1.2), squash(-0.6)], atol=1e-12)
    # 1 / (1 + e^-1.184251921) and 1 / (1 + e^0.598008), worked out with awk
    np.testing.assert_allclose(scores.reward, [0.5, 0.765711, 0.354800], atol=2e-6)


def test_no_texts_give_empty_scores() -> None:
    scores = LexiconReward().score([])
    assert scores.reward.shape == scores.logit.shape == (0,)


def test_ten_thousand_texts_are_quick(reviews: list[Review]) -> None:
    texts = [review.text for review in reviews[:10_000]]
    start = time.process_time()
    LexiconReward().score(texts)
    assert time.process_time() - start < 3  # about 0.3 s on one idle core
