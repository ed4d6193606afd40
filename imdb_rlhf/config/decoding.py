"""Runs whose policy is decoded from several models, and the distillation of such a policy into one."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from imdb_rlhf.config.families import LearnedRun, OutsideModelConfig, TrainedPolicyRun
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.config.ranges import BatchSize, Epochs, PositiveCoefficient, Range
from imdb_rlhf.config.reward import Init, RewardSource
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError


@dataclass
class ValueConfig:
    """The action value that guides sampling, and what it is learned from."""

    reward: RewardSource
    samples: Annotated[int | None, Range(2, 10_000)]
    bins: Annotated[int, Range(2, 1000)]
    network: ValueNetwork
    init: Init
    rank: Annotated[int, Range(1, 10_000)]
    epochs: Epochs
    batch_size: BatchSize
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse weights to start from for a network that is not trained."""
        if self.network == ValueNetwork.shared and self.init != Init.sft:
            raise ConfigError(
                f"{at}network=shared reads the reference's own states, so {at}init={self.init} has no effect; "
                f"drop it or set {at}network=own"
            )


@dataclass
class GuidedRun(LearnedRun):
    """`algo=guided`: value-guided sampling; the knob is beta, and one value serves every beta."""

    one_model = False
    beta: PositiveCoefficient
    value: ValueConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.preferences is not None:
            raise ConfigError(
                f"algo={self.algo} learns its value from the reference's own completions, and data.preferences brings "
                "others; drop it"
            )
        if self.appends_eos and self.value.samples is None:
            raise ConfigError(
                f"groups.eos=appended is not how the reference samples, which algo={self.algo} learns its value from; "
                "use groups.eos=sampled or set value.samples"
            )
        self._check_divisible("value.batch_size", self.value.batch_size)

    @property
    def knob(self) -> tuple[str, float] | None:
        """Beta."""
        return "beta", self.beta

    @property
    def variant(self) -> str | None:
        """The reward and the samples that its value is learned from, and the network if it is the reference's."""
        shared = ", shared" if self.value.network == ValueNetwork.shared else ""
        return f"{self.value.reward}, {self.value.samples or self.groups.k} samples{shared}"

    @property
    def uses_learned_reward(self) -> bool:
        """Only with value.reward=learned."""
        return self.value.reward == RewardSource.learned

    @property
    def uses_groups(self) -> bool:
        """For the value, unless it has samples of its own, and for the learned reward."""
        return self.value.samples is None or self.uses_learned_reward


@dataclass
class RealignConfig(OutsideModelConfig):
    """The policy that is mixed with the reference."""


@dataclass
class RealignRun(Run):
    """`algo=realign`: the reference's and a policy's logits, mixed per token; the knob is lam."""

    one_model = False
    lam: Annotated[float, Range(0, 1000)]
    realign: RealignConfig

    @property
    def knob(self) -> tuple[str, float] | None:
        """Lambda: 0 is the reference, 1 the policy."""
        return "lam", self.lam

    @property
    def variant(self) -> str | None:
        """The policy's name."""
        return self.realign.shown_name

    @property
    def hashed_instead(self) -> dict[str, Any]:
        """The policy's name, which `summary.json` holds, whether it was given or is its folder's."""
        return {"realign": {"name": self.variant}}


class Divergence(StrEnum):
    """Which KL between the guided policy and its student is minimised, and whose samples it is taken on."""

    forward = "forward"
    reverse = "reverse"


@dataclass
class DistillConfig:
    """How a guided policy is distilled."""

    divergence: Divergence


@dataclass
class DistillRun(GuidedRun, TrainedPolicyRun):
    """`algo=distill`: the guided policy of this beta, distilled into one causal LM."""

    one_model = True
    distill: DistillConfig


# The names under which conf/ finds these classes: `/schema/<key>`; every subclass of `Run` is an algorithm.
SCHEMAS: dict[str, type] = {
    "guided": GuidedRun,
    "realign": RealignRun,
    "distill": DistillRun,
}
