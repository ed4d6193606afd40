"""Runs whose policy is decoded from several models, and the distillation of such a policy into one."""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from imdb_rlhf.config.families import LearnedRun, TrainedRun
from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.places import Place
from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.config.ranges import BatchSize, Epochs, PositiveCoefficient, Range
from imdb_rlhf.config.reward import Init, RewardSource
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import PolicyConfig
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
class RealignConfig:
    """The policy that is mixed with the reference."""

    path: Place
    revision: Place | None
    name: str | None

    def check(self, at: str) -> None:
        """Refuse a path or a name that is empty."""
        for key in ("path", "name"):
            if getattr(self, key) == "":
                raise ConfigError(f"{at}{key} is empty; give one, or leave {at}name=null")


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
        """The policy's name: as given, else its Hub id or the name of its folder or run."""
        name, path = self.realign.name, self.realign.path
        if name is not None or not os.path.isdir(os.path.expanduser(path)):
            return name or path
        parent, folder = os.path.split(os.path.abspath(os.path.expanduser(path)))
        return os.path.basename(parent) if folder == "model" and os.path.basename(parent) else folder

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
class DistillRun(GuidedRun, TrainedRun):
    """`algo=distill`: the guided policy of this beta, distilled into one causal LM."""

    one_model = True
    policy: PolicyConfig
    distill: DistillConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_divisible("policy.batch_size", self.policy.batch_size)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the student."""
        return self.policy.optim

    @property
    def precision(self) -> PolicyPrecision | None:
        """As configured."""
        return self.policy.precision


# The names under which conf/ finds these classes: `/schema/<key>`; every subclass of `Run` is an algorithm.
SCHEMAS: dict[str, type] = {
    "guided": GuidedRun,
    "realign": RealignRun,
    "distill": DistillRun,
}
