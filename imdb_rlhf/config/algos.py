"""Each algorithm's run: its own keys, its knob and what it needs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from imdb_rlhf.config.families import LearnedRun, OutsideModelConfig, PreferenceRun, ReservoirRun, TrainedRun
from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ppo import PPOConfig, Scale, ValueNetwork
from imdb_rlhf.config.ranges import Coefficient, PositiveCoefficient, Range
from imdb_rlhf.config.reward import Objective, RewardSource
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.errors import ConfigError


@dataclass
class SFTRun(Run):
    """`algo=sft`: the reference policy itself, evaluated."""


@dataclass
class OwnModelConfig(OutsideModelConfig):
    """A causal LM that was trained elsewhere."""


@dataclass
class OwnModelRun(Run):
    """`algo=own_model`: a model that was trained elsewhere, evaluated as a policy."""

    leaves_model = False  # it is elsewhere
    own_model: OwnModelConfig

    @property
    def variant(self) -> str | None:
        """Its name."""
        return self.own_model.shown_name

    @property
    def hashed_instead(self) -> dict[str, Any]:
        """The model's name, which `summary.json` holds, whether it was given or is its folder's."""
        return {"own_model": {"name": self.variant}}


class DPOLoss(StrEnum):
    """DPO's loss of a pair's margin, or of a ranking."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"
    robust = "robust"
    plackett_luce = "plackett_luce"


class Divergence(StrEnum):
    """What DPO holds the policy to the reference by."""

    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js = "js"
    alpha = "alpha"


@dataclass
class DPOConfig:
    """Which loss of the DPO family, and its constants."""

    loss: DPOLoss
    divergence: Divergence
    divergence_alpha: Annotated[float, Range(0.001, 0.999)] | None
    label_smoothing: Annotated[float, Range(0, 0.4999)]
    average_logprobs: bool

    def check(self, at: str) -> None:
        """Refuse a key that the loss does not use, and a loss without a key that it needs."""
        if self.divergence != Divergence.reverse_kl and self.loss != DPOLoss.sigmoid:
            raise ConfigError(
                f"{at}divergence={self.divergence} is used by {at}loss=sigmoid alone; set it to reverse_kl"
            )
        if self.divergence == Divergence.alpha and self.divergence_alpha is None:
            raise ConfigError(
                f"{at}divergence=alpha needs {at}divergence_alpha, from 0 (reverse KL) to 1 (forward KL); "
                f"for example {at}divergence_alpha=0.5"
            )
        if self.divergence != Divergence.alpha and self.divergence_alpha is not None:
            raise ConfigError(
                f"{at}divergence_alpha={self.divergence_alpha} is used by {at}divergence=alpha alone; set it to null"
            )
        if self.label_smoothing and self.loss not in (DPOLoss.sigmoid, DPOLoss.robust):
            raise ConfigError(
                f"{at}label_smoothing={self.label_smoothing} is used by {at}loss=sigmoid and robust alone; set it to 0"
            )
        if self.loss == DPOLoss.robust and not self.label_smoothing:
            raise ConfigError(
                f"{at}loss=robust needs {at}label_smoothing, the share of flipped labels; "
                f"for example {at}label_smoothing=0.1"
            )
        if self.average_logprobs and self.loss != DPOLoss.ipo:
            raise ConfigError(f"{at}average_logprobs=true is used by {at}loss=ipo alone; drop it")


@dataclass
class DPORun(PreferenceRun):
    """`algo=dpo`: direct preference optimization; the knob is beta."""

    beta: PositiveCoefficient
    dpo: DPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dpo.loss == DPOLoss.plackett_luce:
            if self.data.preferences is not None:
                raise ConfigError(
                    "dpo.loss=plackett_luce ranks groups of completions, but data.preferences brings pairs; "
                    "use another dpo.loss"
                )
            if self.pairs.labels == Labels.noisy:
                raise ConfigError(
                    "pairs.labels=noisy flips pairs, and dpo.loss=plackett_luce has rankings; use bradley_terry"
                )

    @property
    def knob(self) -> tuple[str, float] | None:
        """Beta."""
        return "beta", self.beta

    @property
    def variant(self) -> str | None:
        """The loss or the divergence, where it is not the paper's."""
        if self.dpo.loss != DPOLoss.sigmoid:
            return str(self.dpo.loss)
        return None if self.dpo.divergence == Divergence.reverse_kl else str(self.dpo.divergence)


@dataclass
class UnlikelihoodRun(PreferenceRun):
    """`algo=unlikelihood`: the winner's likelihood up, the loser's down with weight alpha, which is the knob."""

    alpha: Coefficient

    @property
    def knob(self) -> tuple[str, float] | None:
        """Alpha."""
        return "alpha", self.alpha


@dataclass
class PreferredFTRun(PreferenceRun):
    """`algo=preferred_ft`: supervised fine-tuning on the winners."""


@dataclass
class RewardModelRun(LearnedRun):
    """`algo=reward_model`: the learned reward itself, compared with the true one."""

    has_policy = False

    @property
    def uses_learned_reward(self) -> bool:
        """Always: it is what the run reports."""
        return True

    @property
    def variant(self) -> str | None:
        """Its objective, where that is not pairs."""
        return None if self.reward_model.objective == Objective.pairs else str(self.reward_model.objective)


@dataclass
class BestOfNConfig:
    """Which reward chooses the best sample."""

    selector: RewardSource


@dataclass
class BestOfNRun(ReservoirRun):
    """`algo=best_of_n`: the best of N reference samples; nothing is trained; the knob is n."""

    has_policy = False  # its curve is computed from the reservoir
    leaves_model = False  # its model is the reference
    n: Annotated[int, Range(1, 10**6)]
    best_of_n: BestOfNConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n > self.reservoir.samples:
            raise ConfigError(
                f"n={self.n} is above reservoir.samples={self.reservoir.samples}; lower the one or raise the other"
            )

    @property
    def knob(self) -> tuple[str, float] | None:
        """N."""
        return "n", self.n

    @property
    def variant(self) -> str | None:
        """The selector."""
        return str(self.best_of_n.selector)

    @property
    def uses_learned_reward(self) -> bool:
        """Only with best_of_n.selector=learned."""
        return self.best_of_n.selector == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """Always: the best is chosen from its samples."""
        return True


@dataclass
class PPORun(ReservoirRun, TrainedRun):
    """`algo=ppo`: proximal policy optimization; the knob is target_kl, or the fixed coefficient."""

    target_kl: PositiveCoefficient | None
    ppo: PPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = self.ppo.kl_coefficient
        if self.target_kl is not None and fixed is not None:
            raise ConfigError(
                f"target_kl={self.target_kl} and ppo.kl_coefficient={fixed} exclude each other: one is adaptive, the "
                "other fixed; set target_kl=null or ppo.kl_coefficient=null"
            )
        if self.ppo.scale == Scale.logit and self.uses_learned_reward:
            raise ConfigError(
                "ppo.scale=logit is a scale of the true reward, and ppo.reward=learned has its own; "
                "set ppo.reward=ground_truth or ppo.scale=reward"
            )
        if self.target_kl is None and fixed is None:
            raise ConfigError("target_kl=null needs ppo.kl_coefficient, the fixed one; or give target_kl")
        self._check_divisible("ppo.minibatch_size", self.ppo.minibatch_size)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy and of the value network, with the target's learning rate."""
        return self.ppo.optim_for(self.target_kl)

    @property
    def precision(self) -> PolicyPrecision | None:
        """As configured."""
        return self.ppo.precision

    @property
    def networks(self) -> int:
        """The policy, and a value network of its own."""
        return 2 if self.ppo.value == ValueNetwork.own else 1

    @property
    def knob(self) -> tuple[str, float] | None:
        """The target, or the coefficient where that is fixed."""
        if self.target_kl is not None:
            return "target_kl", self.target_kl
        assert self.ppo.kl_coefficient is not None
        return "kl_coefficient", self.ppo.kl_coefficient

    @property
    def variant(self) -> str | None:
        """The reward that it optimises, and its preset."""
        return f"{self.ppo.reward}, {self.ppo.preset}"

    @property
    def uses_learned_reward(self) -> bool:
        """Only with ppo.reward=learned."""
        return self.ppo.reward == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """It gives the first coefficient, and the mean and standard deviation of the true reward."""
        adaptive = self.target_kl is not None and self.ppo.initial_kl_coefficient is None
        return adaptive or (self.ppo.normalize and self.ppo.reward == RewardSource.ground_truth)


# The names under which conf/ finds these classes: `/schema/<key>`; every subclass of `Run` is an algorithm.
SCHEMAS: dict[str, type] = {
    "sft": SFTRun,
    "dpo": DPORun,
    "unlikelihood": UnlikelihoodRun,
    "preferred_ft": PreferredFTRun,
    "reward_model": RewardModelRun,
    "best_of_n": BestOfNRun,
    "ppo": PPORun,
    "own_model": OwnModelRun,
}
