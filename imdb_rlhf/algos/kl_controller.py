"""The adaptive KL controller of arXiv 1909.08593, section 2.2: it steers beta so that the KL reaches a target."""

from typing import Any

import numpy as np

from imdb_rlhf.config.ppo import PPOConfig
from imdb_rlhf.losses import KL_ERROR_CLIP, next_kl_coefficient


class KLController:
    """Moves beta once per batch of episodes; without a target, beta is fixed.

    Attributes:
        coefficient: beta of the next batch, reward per nat.
        history: per batch: mean KL in nats, and the beta that it was trained with.
    """

    def __init__(self, config: PPOConfig, target_kl: float | None, coefficient: float) -> None:
        """Start at a coefficient.

        Args:
            config: number and size of the batches, horizon, floor and ceiling.
            target_kl: nats per sequence; None for a fixed beta.
            coefficient: beta of the first batch.
        """
        self.config, self.target_kl, self.coefficient = config, target_kl, coefficient
        self.history: list[list[float]] = []

    @property
    def horizon(self) -> float:
        """Episodes over which an error is corrected; by default they give log beta its configured range.

        Never less than a batch: beta then moves by a fifth at most.
        """
        config = self.config
        episodes = config.batches * config.batch_size
        derived = max(KL_ERROR_CLIP * episodes / config.coefficient_range, config.batch_size)
        return derived if config.horizon is None else config.horizon

    def step(self, kl: float) -> None:
        """Record the mean KL of a batch, and move beta for the next one."""
        self.history.append([kl, self.coefficient])
        if self.target_kl is not None:
            config = self.config
            limits = (config.min_kl_coefficient, config.max_kl_coefficient)
            self.coefficient = next_kl_coefficient(
                self.coefficient, kl, self.target_kl, config.batch_size, self.horizon, *limits
            )

    def restore(self, coefficient: float, history: list[list[float]]) -> None:
        """Continue from a checkpoint."""
        self.coefficient, self.history = coefficient, history

    def report(self) -> dict[str, Any]:
        """Return the KL over the last fifth of the batches, and the last coefficient, for `summary.json`."""
        last = self.history[-max(1, len(self.history) // 5) :]
        kl, coefficient = float(np.mean([kl for kl, _ in last])), self.history[-1][1]
        target, steered = self.target_kl, self.target_kl is not None
        return {
            "target_kl": target,
            "kl_last_fifth": kl,
            "on_target": None if target is None else abs(kl / target - 1) <= 0.25,
            "kl_coefficient": coefficient,
            "first_kl_coefficient": self.history[0][1],
            "at_floor": steered and coefficient <= self.config.min_kl_coefficient * (1 + 1e-9),
            "at_ceiling": steered and coefficient >= self.config.max_kl_coefficient * (1 - 1e-9),
        }
