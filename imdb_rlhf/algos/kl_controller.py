"""Controllers of the KL coefficient beta: they steer it so that the mean sequence KL of a run reaches a target.

`ziegler` is that of arXiv 1909.08593, section 2.2: it moves log beta by a clipped error per batch. On the way to the
target beta drifts by all its range, whatever the policy does, so that short runs overshoot or never arrive.

`proportional_integral` is steered by the distance to the reference, which is what a run covers at an even pace: the KL
grows as its square. With x = sqrt(KL / target), and x' where x is heading, since Adam's momentum keeps a policy moving
for some steps after the rewards have changed,

    beta = I (1 + P e),    log I <- log I + Q e,    e = 1 - 1 / x',    x' = x + L (x - x two batches ago) / 2,

between floor and ceiling. I begins at beta_0, the coefficient whose optimum has the target KL. While the policy is far
below the target beta is at its floor, so that the way there takes few batches; then beta rises with the KL, and I takes
out what the optimum's coefficient is wrong by. I rests until x first reaches P / (1 + P), where beta leaves its floor
(anti-windup). From then on it does not rest: at the floor too, or noise would push it one way alone.

A batch is trained with the coefficient that its own KL gives, where Ziegler's applies to the next one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imdb_rlhf.config.ppo import KLControl, PPOConfig
from imdb_rlhf.losses import KL_ERROR_CLIP, next_kl_coefficient

# P and Q: relative change of beta per relative error of the distance: at once, and per batch. A policy that arrives at
# its target in 10 to 15 batches moves by 7 to 10 % of the distance per batch, so a batch works off 0.6 to 0.8 of an
# error. Of the values that were tried on a closed-form plant these were on target most often.
PROPORTIONAL, INTEGRAL = 8.0, 2.0
# L: batches ahead. The momentum of 0.9 lasts 10 steps, some 3 batches; half of that damps the loop, and all of it would
# make more of the noise in x.
LEAD = 1.5
# Largest relative error that I sees.
ERROR_LIMIT = 0.25
# How near to the target the KL of the last fifth of training must be.
TOLERANCE = 0.1
# How near to its best a reward has stopped rising.
SAME_REWARD = 0.01


class KLController(ABC):
    """Gives each batch of episodes its beta; without a target, beta is fixed.

    Attributes:
        start: beta to begin with, reward per nat.
        coefficient: beta of the next batch, as far as it is known.
        history: per batch: mean KL in nats, as the controller saw it, and the beta that it was trained with.
    """

    def __init__(self, config: PPOConfig, target_kl: float | None, coefficient: float) -> None:
        """Start at a coefficient.

        Args:
            config: number and size of the batches, horizon, floor and ceiling.
            target_kl: nats per sequence; None for a fixed beta.
            coefficient: beta to begin with.
        """
        self.config, self.target_kl = config, target_kl
        self.start = self.coefficient = coefficient
        self.history: list[list[float]] = []

    @abstractmethod
    def steer(self, k1: float, kl: float) -> float:
        """Record a batch, and return the beta that it is trained with.

        Args:
            k1: the batch's mean of log pi - log ref, nats per sequence.
            kl: an estimate of the same KL with less variance (`losses.mean_kl`).
        """

    def clipped(self, coefficient: float) -> float:
        """The coefficient between floor and ceiling."""
        return min(max(coefficient, self.config.min_kl_coefficient), self.config.max_kl_coefficient)

    def state(self) -> dict[str, Any]:
        """What later batches depend on."""
        return {"start": self.start, "coefficient": self.coefficient, "history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.start, self.coefficient, self.history = state["start"], state["coefficient"], state["history"]

    def report(self) -> dict[str, Any]:
        """Return the KL over the last fifth of the batches, and where beta was, for `summary.json`."""
        last = np.array(self.history[-max(1, len(self.history) // 5) :])
        kl, target, steered = float(last[:, 0].mean()), self.target_kl, self.target_kl is not None
        config = self.config
        return {
            "target_kl": target,
            "kl_last_fifth": kl,
            "on_target": None if target is None else abs(kl / target - 1) <= TOLERANCE,
            "kl_coefficient": self.history[-1][1],
            "first_kl_coefficient": self.start,
            "at_floor": steered and bool((last[:, 1] <= config.min_kl_coefficient * (1 + 1e-9)).all()),
            "at_ceiling": steered and bool((last[:, 1] >= config.max_kl_coefficient * (1 - 1e-9)).all()),
        }


class Fixed(KLController):
    """Beta as it was given."""

    def steer(self, k1: float, kl: float) -> float:
        """Record the batch."""
        self.history.append([k1, self.coefficient])
        return self.coefficient


class Ziegler(KLController):
    """The controller of arXiv 1909.08593, section 2.2."""

    @property
    def horizon(self) -> float:
        """Episodes over which an error is corrected; by default they give log beta its configured range.

        Never less than a batch: beta then moves by a fifth at most.
        """
        config = self.config
        if config.horizon is not None:
            return config.horizon
        assert config.coefficient_range is not None  # the configuration has one of the two
        return max(KL_ERROR_CLIP * config.batches * config.batch_size / config.coefficient_range, config.batch_size)

    def steer(self, k1: float, kl: float) -> float:
        """Record the batch, and move beta for the next one by k1."""
        config, used = self.config, self.coefficient
        assert self.target_kl is not None
        self.history.append([k1, used])
        limits = (config.min_kl_coefficient, config.max_kl_coefficient)
        self.coefficient = next_kl_coefficient(used, k1, self.target_kl, config.batch_size, self.horizon, *limits)
        return used


class ProportionalIntegral(KLController):
    """Beta from the error of the distance to the reference, and from its sum.

    Attributes:
        integral: I, the beta at which the KL is believed to stay at its target.
        arrived: whether the policy has been near the target.
    """

    def __init__(self, config: PPOConfig, target_kl: float | None, coefficient: float) -> None:
        super().__init__(config, target_kl, coefficient)
        self.integral, self.arrived = coefficient, False

    def steer(self, k1: float, kl: float) -> float:
        """Move beta by the batch's KL, and record both."""
        assert self.target_kl is not None
        error = 1 - 1 / self._heading(kl)
        self.coefficient = self.clipped(self.integral * (1 + PROPORTIONAL * error))
        self.arrived = self.arrived or (max(kl, 0.0) / self.target_kl) ** 0.5 >= PROPORTIONAL / (1 + PROPORTIONAL)
        if self.arrived:
            change = INTEGRAL * min(max(error, -ERROR_LIMIT), ERROR_LIMIT)
            self.integral = self.clipped(self.integral * math.exp(change))
        self.history.append([kl, self.coefficient])
        return self.coefficient

    def _heading(self, kl: float) -> float:
        """Where the distance to the reference will be, in units of the target's; above 0."""
        assert self.target_kl is not None
        nats = [earlier for earlier, _ in self.history[-2:]] + [kl]
        distances = [(max(nat, 0.0) / self.target_kl) ** 0.5 for nat in nats]
        pace = (distances[-1] - distances[0]) / max(1, len(distances) - 1)
        return max(distances[-1] + LEAD * pace, 1e-6)

    def state(self) -> dict[str, Any]:
        """The integral, and whether it moves, too."""
        return super().state() | {"integral": self.integral, "arrived": self.arrived}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        super().restore(state)
        self.integral, self.arrived = state["integral"], state["arrived"]


def missed_because(report: Mapping[str, Any], rewards: Sequence[float]) -> str | None:
    """Say why the KL of the last fifth of training is not on target; None if it is, or if there is none.

    Args:
        report: of the controller.
        rewards: mean reward of validation prompts at each evaluation point, in order.
    """
    if report["on_target"] is not False:
        return None
    if report["at_ceiling"] and report["kl_last_fifth"] > report["target_kl"]:
        return "coefficient at its ceiling: a lower ppo.optim.lr has a lower KL"
    if not report["at_floor"] or report["kl_last_fifth"] > report["target_kl"]:
        return "the coefficient had not settled: more ppo.episodes let it"
    if rewards and rewards[-1] >= max(rewards) - SAME_REWARD:
        return f"coefficient at its floor, reward within {SAME_REWARD:g} of the run's best: more KL buys none"
    return "coefficient at its floor: more ppo.episodes, or a higher ppo.optim.lr, go further"


CONTROLLERS = {KLControl.ziegler: Ziegler, KLControl.proportional_integral: ProportionalIntegral}


def controller(config: PPOConfig, target_kl: float | None, coefficient: float) -> KLController:
    """The configured controller, or none for a fixed beta; arguments as in `KLController`."""
    kind = Fixed if target_kl is None else CONTROLLERS[config.controller]
    return kind(config, target_kl, coefficient)
