"""REINFORCE, RLOO, GRPO and online DPO: methods that learn from their own completions, without a value network."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from imdb_rlhf.config.families import ReservoirRun, TrainedRun
from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ppo import Scale
from imdb_rlhf.config.ranges import BatchSize, Coefficient, PositiveCoefficient, Range
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.errors import ConfigError

Group = Annotated[int, Range(2, 10_000)]
Clip = Annotated[float, Range(0, 10, above=True)]


@dataclass
class OnlineConfig:
    """The reward that is optimised, and how many completions are sampled for it."""

    reward: RewardSource
    scale: Scale
    normalize: bool
    episodes: Annotated[int, Range(1, 10**10)]
    batch_size: BatchSize
    rollout_batch_size: BatchSize
    missing_eos_penalty: Coefficient
    precision: PolicyPrecision | None
    optim: OptimConfig

    @property
    def group(self) -> int:
        """Completions per prompt of a batch."""
        return 1

    @property
    def batches(self) -> int:
        """Batches of episodes per run."""
        return self.episodes // self.batch_size

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps per batch of episodes."""
        return 1

    def check(self, at: str) -> None:
        """Refuse constants that do not go together."""
        if self.episodes < self.batch_size:
            raise ConfigError(
                f"{at}episodes={self.episodes} is less than one batch ({at}batch_size={self.batch_size}); raise it"
            )
        if self.scale == Scale.logit and self.reward == RewardSource.learned:
            raise ConfigError(
                f"{at}scale=logit is a scale of the true reward, and {at}reward=learned has its own; "
                f"set {at}reward=ground_truth or {at}scale=reward"
            )


class Baseline(StrEnum):
    """What REINFORCE subtracts from a reward: the mean of the batch's others, or that of all batches before."""

    batch = "batch"
    moving_average = "moving_average"


@dataclass
class ReinforceConfig(OnlineConfig):
    """REINFORCE: one step per batch."""

    baseline: Baseline

    @property
    def minibatch_size(self) -> int:
        """The whole batch: a second step on it would not be REINFORCE's."""
        return self.batch_size

    def check(self, at: str) -> None:
        """Refuse a batch without others."""
        super().check(at)
        if self.batch_size < 2:
            raise ConfigError(f"{at}batch_size={self.batch_size} leaves a baseline of no episode; give at least 2")


@dataclass
class GroupConfig(OnlineConfig):
    """A method that samples K completions of each prompt, and may take several steps on a batch."""

    k: Group
    minibatch_size: BatchSize
    epochs: Annotated[int, Range(1, 1000)]

    @property
    def group(self) -> int:
        """K."""
        return self.k

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps per batch of episodes."""
        return self.epochs * (self.batch_size // self.minibatch_size)

    def check(self, at: str) -> None:
        """Refuse minibatches that do not divide the batch, or that would split a group."""
        super().check(at)
        if self.batch_size % self.minibatch_size:
            raise ConfigError(
                f"{at}minibatch_size={self.minibatch_size} does not divide {at}batch_size={self.batch_size}; "
                "choose a divisor"
            )
        if self.minibatch_size % self.k:
            raise ConfigError(
                f"{at}minibatch_size={self.minibatch_size} is not a multiple of {at}k={self.k}, the completions per "
                "prompt; choose a multiple"
            )


@dataclass
class RLOOConfig(GroupConfig):
    """RLOO, with the clip range of a completion's ratio where several steps are taken on a batch."""

    clip: Clip


class KLPlace(StrEnum):
    """Where GRPO puts the KL: into the loss, as k3 per token or as k3 times the ratio, or into the reward, as RLOO."""

    loss = "loss"
    loss_corrected = "loss_corrected"
    reward = "reward"


class LengthNorm(StrEnum):
    """What GRPO divides a completion's summed token losses by: its own length, or the largest that is allowed."""

    completion = "completion"
    constant = "constant"


@dataclass
class GRPOConfig(GroupConfig):
    """GRPO and Dr. GRPO, with the clip range of a token's ratio."""

    clip: Clip
    kl_in: KLPlace
    scale_advantages: bool
    length_norm: LengthNorm


@dataclass
class OnlineDPOConfig(GroupConfig):
    """Online DPO, and how the winner of a pair is drawn."""

    labels: Labels
    tau: PositiveCoefficient | None

    def check(self, at: str) -> None:
        """Refuse labels that do not exist here, and a tau that they do not use."""
        super().check(at)
        if self.labels == Labels.noisy:
            raise ConfigError(f"{at}labels=noisy flips pairs that are stored; use deterministic or bradley_terry")
        if self.tau is not None and self.labels != Labels.bradley_terry:
            raise ConfigError(f"{at}tau={self.tau} is used by {at}labels=bradley_terry alone; set {at}tau=null")


@dataclass
class OnlineRun(ReservoirRun, TrainedRun):
    """A method that learns from its own completions at a fixed beta, which is the knob."""

    beta: Coefficient

    def __post_init__(self) -> None:
        super().__post_init__()
        config, groups = self.online, self.online.group * self.trainer.processes
        key = "minibatch_size" if isinstance(config, GroupConfig) else "batch_size"
        if config.minibatch_size % groups:
            raise ConfigError(
                f"{self.algo}.{key}={config.minibatch_size} cannot be shared among "
                f"trainer.processes={self.trainer.processes} by whole groups of {config.group}; "
                f"choose a multiple of {groups}"
            )

    @property
    def online(self) -> ReinforceConfig | GroupConfig:
        """The method's section."""
        raise NotImplementedError

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy."""
        return self.online.optim

    @property
    def precision(self) -> PolicyPrecision | None:
        """As configured."""
        return self.online.precision

    @property
    def knob(self) -> tuple[str, float] | None:
        """Beta."""
        return "beta", self.beta

    @property
    def variant(self) -> str | None:
        """The reward that it optimises."""
        return str(self.online.reward)

    @property
    def uses_learned_reward(self) -> bool:
        """Only with reward=learned in the method's section."""
        return self.online.reward == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """It gives the mean and standard deviation of the true reward."""
        return self.online.normalize and self.online.reward == RewardSource.ground_truth


@dataclass
class ReinforceRun(OnlineRun):
    """`algo=reinforce`: REINFORCE with the KL in the reward."""

    reinforce: ReinforceConfig

    @property
    def online(self) -> ReinforceConfig:
        """Its section."""
        return self.reinforce


@dataclass
class RLOORun(OnlineRun):
    """`algo=rloo`: REINFORCE leave-one-out."""

    rloo: RLOOConfig

    @property
    def online(self) -> GroupConfig:
        """Its section."""
        return self.rloo


@dataclass
class GRPORun(OnlineRun):
    """`algo=grpo`: group relative policy optimization."""

    grpo: GRPOConfig

    @property
    def online(self) -> GroupConfig:
        """Its section."""
        return self.grpo


@dataclass
class OnlineDPORun(OnlineRun):
    """`algo=online_dpo`: DPO on pairs of the policy's own completions."""

    online_dpo: OnlineDPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"beta={self.beta} gives DPO's loss no slope; give a number above 0")

    @property
    def online(self) -> GroupConfig:
        """Its section."""
        return self.online_dpo


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "reinforce": ReinforceRun,
    "rloo": RLOORun,
    "grpo": GRPORun,
    "online_dpo": OnlineDPORun,
}
