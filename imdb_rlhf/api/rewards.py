"""A user's reward, live: a function from texts to numbers, by the rules of `reward=own`."""

from collections.abc import Callable, Sequence
from typing import Any

from imdb_rlhf.errors import ConfigError
from imdb_rlhf.rewards import Reward, Scores
from imdb_rlhf.rewards.own import scores_of

RewardFunction = Callable[[list[str]], Sequence[float]]


class CallableReward:
    """A function's numbers, on both scales as they are."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__))

    def score(self, texts: Sequence[str]) -> Scores:
        """The function's numbers, checked."""
        return scores_of(self.function, texts, f"reward {self.name}")

    def __call__(self, texts: list[str]) -> list[float]:
        """The reward of each text: prompt + completion."""
        return [float(value) for value in self.score(texts).reward]


class TrueReward:
    """The true reward of a run: scores on both scales, and as a function its reporting scale."""

    def __init__(self, reward: Reward, name: str) -> None:
        self.reward, self.name = reward, name

    def score(self, texts: Sequence[str]) -> Scores:
        """Score each text on both scales."""
        return self.reward.score(texts)

    def __call__(self, texts: list[str]) -> list[float]:
        """The reward of each text: prompt + completion."""
        return [float(value) for value in self.score(texts).reward]


def as_reward(reward: Any) -> CallableReward | TrueReward:
    """What is given as a reward, as the package scores with it.

    Raises:
        ConfigError: it is no function.
    """
    if isinstance(reward, TrueReward):
        return reward
    if callable(getattr(reward, "score", None)):
        return TrueReward(reward, type(reward).__name__)
    if not callable(reward):
        raise ConfigError(
            f"reward is a {type(reward).__name__}; give a function from a list of texts to a list of floats"
        )
    return CallableReward(reward)
