"""What every kind of reward is held to: one finite score per text, within the range that the kind says."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.config.reward import LexiconReward as LexiconConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.rewards import CheckedReward, Reward, Scores, kind_of
from imdb_rlhf.rewards.lexicon import Kind, LexiconReward

TEXTS = ["a great film", "a dull film"]


class Fixed:
    """Gives the same scores to any texts."""

    def __init__(self, reward: Sequence[float], logit: Sequence[float]) -> None:
        self.scores = Scores(np.array(reward), np.array(logit))

    def score(self, texts: Sequence[str]) -> Scores:
        return self.scores


def checked(reward: Any, ends: tuple[float, float] = (0.0, 1.0)) -> CheckedReward:
    kind = Kind(LexiconConfig("mine"))
    kind.range = ends
    return CheckedReward(reward, kind)


def refused(reward: Reward, ends: tuple[float, float] = (0.0, 1.0)) -> str:
    with pytest.raises(RunError) as caught:
        checked(reward, ends).score(TEXTS)
    return str(caught.value)


def test_good_scores_are_passed_on() -> None:
    scores, plain = checked(LexiconReward()).score(TEXTS), LexiconReward().score(TEXTS)
    assert (scores.reward == plain.reward).all() and (scores.logit == plain.logit).all()
    assert checked(Fixed([0.0, 1.0], [-700.0, 700.0])).score(TEXTS).reward.tolist() == [0, 1]  # the ends belong to it
    assert checked(Fixed([-5.0, 9e9], [0, 0]), (-math.inf, math.inf)).score(TEXTS).reward.tolist() == [-5, 9e9]
    assert checked(Fixed([], [])).score([]).reward.size == 0


@pytest.mark.parametrize(
    ("reward", "logit", "message"),
    [
        ([0.5], [0.0, 0.0], "reward=mine gave shape (1,) for 2 texts; return one per text"),
        ([0.5, 0.5], [[0.0, 0.0]], "reward=mine gave shape (1, 2) for 2 texts; return one per text"),
        ([0.5, math.nan], [0.0, 0.0], "reward=mine gave nan for the text 'a dull film'; return finite numbers"),
        ([0.5, 0.5], [math.inf, 0.0], "reward=mine gave inf for the text 'a great film'; return finite numbers"),
        ([0.5, 0.5], [0.0, -1e308], "reward=mine gave -1e+308 for the text 'a dull film'; return numbers between "),
        (
            [0.5, 9.25],
            [0.0, 0.0],
            "reward=mine gave 9.25 for the text 'a dull film'; its range is 0 to 1: mend",
        ),
        (
            [-0.5, 0.5],
            [0.0, 0.0],
            "reward=mine gave -0.5 for the text 'a great film'; its range is 0 to 1: ",
        ),
    ],
)
def test_scores_that_cannot_be_used(reward: list[float], logit: Any, message: str) -> None:
    assert refused(Fixed(reward, logit)).startswith(message)


@pytest.mark.parametrize("thing", [None, 3, object()])
def test_what_is_no_reward(thing: Any) -> None:
    with pytest.raises(RunError, match=r"^imdb_rlhf.rewards.lexicon.Kind.open returns .*, which has no method score$"):
        checked(thing)


def test_scores_in_lists_are_scores() -> None:
    class Lists:
        def score(self, texts: Sequence[str]) -> Any:
            return Scores([0.25, 1], [-1, 2])  # type: ignore[arg-type]

    scores = checked(Lists()).score(TEXTS)
    assert scores.reward.tolist() == [0.25, 1.0] and scores.logit.tolist() == [-1.0, 2.0]
    assert scores.reward.dtype == scores.logit.dtype == np.float64


def test_scores_on_one_scale_alone() -> None:
    class Bare:
        def score(self, texts: Sequence[str]) -> Any:
            return np.zeros(len(texts))

    assert refused(Bare()) == "reward=mine gave ndarray instead of Scores; return both scales"


@pytest.mark.parametrize("ends", [3.0, (0, None), ("a", "b"), (3.0, 0.0), (1.0, 1.0), (0.0, math.nan), (0.0,), None])
def test_a_range_that_is_none(monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    monkeypatch.setattr(Kind, "range", ends)
    with pytest.raises(RunError, match=r"^imdb_rlhf.rewards.lexicon.Kind has range .*; give two numbers, the smaller"):
        kind_of(LexiconConfig("mine"))
