"""What a method's loss asks for: the policy that minimises its expectation over all completions of the reference.

A trained policy differs from it by the finite data and by how far the optimisation came. `frontier/population.py` reads
its reward and KL off a reservoir.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from imdb_rlhf.config.ppo import Scale
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import Labels


class Selector(StrEnum):
    """The number by which a population optimum tells completions apart: a column of a reservoir, or ranks in it."""

    reward = "reward"
    logit = "reward_logit"
    learned = "learned"
    rank = "rank"


@dataclass(frozen=True)
class Tilted:
    """In proportion to reference * exp(selector / c), a policy for each c > 0, which the knob moves."""

    selector: Selector


@dataclass(frozen=True)
class BestOf:
    """The best of n reference samples by a selector."""

    n: int
    selector: Selector


@dataclass(frozen=True)
class Winners:
    """The winners of all pairs of reference samples, each as often as it wins.

    Attributes:
        labels: how a pair's winner is drawn from the log-odds of the true reward.
        tau: temperature of Bradley-Terry labels.
        noise: share of flipped labels.
        min_margin: pairs whose log-odds differ by less are left out.
    """

    labels: Labels
    tau: float = 1.0
    noise: float = 0.0
    min_margin: float = 0.0

    @staticmethod
    def of(pairs: Mapping[str, Any]) -> "Winners":
        """Those of the section `pairs` of a configuration."""
        tau, labels = pairs["tau"], Labels(str(pairs["labels"]))
        return Winners(labels, 1.0 if tau is None else tau, pairs["noise"] or 0.0, pairs["min_margin"])


def tilted_by(section: Mapping[str, Any]) -> Tilted:
    """What a method asks for that maximises the reward of its section less beta times the KL."""
    if section["reward"] == RewardSource.learned:
        return Tilted(Selector.learned)
    return Tilted(Selector.logit if section.get("scale") == Scale.logit else Selector.reward)


Population = Tilted | BestOf | Winners
