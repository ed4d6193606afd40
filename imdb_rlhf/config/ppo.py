"""PPO's configuration; a preset (`ppo=paper`) sets the constants of the optimisation."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.places import LATER
from imdb_rlhf.config.ranges import BatchSize, Coefficient, PositiveCoefficient, Range, Share
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.errors import ConfigError


class Scale(StrEnum):
    """The true reward on its reporting scale (p(positive)) or on its ranking scale (log-odds)."""

    reward = "reward"
    logit = "logit"


class ValueNetwork(StrEnum):
    """Which network PPO's value head is on: one of its own, or the policy's."""

    own = "own"
    shared = "shared"


class KLControl(StrEnum):
    """What steers the KL coefficient to a target: Ziegler et al.'s controller, or a proportional-integral one."""

    ziegler = "ziegler"
    proportional_integral = "proportional_integral"


class Whitening(StrEnum):
    """The batch over which PPO whitens advantages."""

    minibatch = "minibatch"
    batch = "batch"


@dataclass
class PPOConfig:
    """The constants of PPO, and the reward that it optimises."""

    preset: str
    reward: RewardSource
    scale: Scale
    normalize: bool
    value: ValueNetwork
    episodes: Annotated[int, Range(1, 10**10)]
    batch_size: BatchSize
    minibatch_size: BatchSize
    epochs: Annotated[int, Range(1, 1000)]
    rollout_batch_size: BatchSize
    gamma: Share
    lam: Share
    policy_clip: Annotated[float, Range(0, 10, above=True)]
    value_clip: PositiveCoefficient
    value_coefficient: Coefficient
    whiten_rewards: bool
    advantage_whitening: Whitening
    kl_coefficient: Coefficient | None
    controller: KLControl
    initial_kl_coefficient: PositiveCoefficient | None
    min_kl_coefficient: PositiveCoefficient
    max_kl_coefficient: PositiveCoefficient
    horizon: Annotated[float | None, Range(0, 10**12, above=True)]
    coefficient_range: Annotated[float | None, Range(0, 100, above=True)]
    lr_target_kl: Annotated[float | None, Range(0, 10**6, above=True)]
    missing_eos_penalty: Coefficient
    early_stop_kl: Annotated[float | None, Range(0, 10**12, above=True)]
    precision: Annotated[PolicyPrecision | None, LATER]
    optim: OptimConfig

    @property
    def batches(self) -> int:
        """Batches of episodes per run."""
        return self.episodes // self.batch_size

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps per batch of episodes."""
        return self.epochs * (self.batch_size // self.minibatch_size)

    def optim_for(self, target_kl: float | None) -> OptimConfig:
        """The optimizer, with the learning rate of a target.

        The KL grows as the square of the distance that steps cover, and steps cover more as the reward's gradient
        grows: with the fourth root of the target, the batches until it is reached are about the same for all.
        """
        if target_kl is None or self.lr_target_kl is None:
            return self.optim
        return replace(self.optim, lr=self.optim.lr * (target_kl / self.lr_target_kl) ** 0.25)

    def check(self, at: str) -> None:
        """Refuse constants that do not go together."""
        self._check_controller(at)
        if self.batch_size % self.minibatch_size:
            raise ConfigError(
                f"{at}minibatch_size={self.minibatch_size} does not divide {at}batch_size={self.batch_size}; "
                "choose a divisor"
            )
        if self.episodes < self.batch_size:
            raise ConfigError(
                f"{at}episodes={self.episodes} is less than one batch ({at}batch_size={self.batch_size}); raise it"
            )
        if self.min_kl_coefficient > self.max_kl_coefficient:
            raise ConfigError(
                f"{at}min_kl_coefficient={self.min_kl_coefficient} is above "
                f"{at}max_kl_coefficient={self.max_kl_coefficient}; lower the one or raise the other"
            )
        if self.horizon is not None and self.horizon <= 0.2 * self.batch_size:
            raise ConfigError(
                f"{at}horizon={self.horizon} is so short that one batch of {self.batch_size} episodes would take the "
                f"coefficient to 0; give more than {0.2 * self.batch_size:g}"
            )
        start = self.initial_kl_coefficient
        if start is not None and not self.min_kl_coefficient <= start <= self.max_kl_coefficient:
            raise ConfigError(
                f"{at}initial_kl_coefficient={start} is outside {at}min_kl_coefficient={self.min_kl_coefficient} to "
                f"{at}max_kl_coefficient={self.max_kl_coefficient}; choose one between"
            )

    def _check_controller(self, at: str) -> None:
        """Refuse constants of another controller than the configured one."""
        given = {name: getattr(self, name) for name in ("horizon", "coefficient_range")}
        if self.controller == KLControl.ziegler and all(value is None for value in given.values()):
            raise ConfigError(
                f"{at}controller=ziegler needs {at}coefficient_range=2.5, or a {at}horizon; give one of them"
            )
        if self.controller != KLControl.ziegler:
            for name, value in given.items():
                if value is not None:
                    raise ConfigError(
                        f"{at}{name}={value} is of {at}controller=ziegler; set it to null, or {at}controller=ziegler"
                    )
