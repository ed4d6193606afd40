"""Each algorithm's run: its own keys, its knob and what it needs."""

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from imdb_rlhf.config.model import ScratchModel
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.ranges import number
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import (
    Eos,
    GroupsConfig,
    Init,
    Labels,
    Objective,
    PairsConfig,
    PolicyConfig,
    ReservoirConfig,
    RewardModelConfig,
)
from imdb_rlhf.errors import ConfigError


class DPOLoss(StrEnum):
    """What DPO makes of a margin, or of a ranking."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"
    robust = "robust"
    plackett_luce = "plackett_luce"


class RewardSource(StrEnum):
    """Which reward a method optimises or selects by."""

    learned = "learned"
    ground_truth = "ground_truth"


class Scale(StrEnum):
    """The true reward on its reporting scale (p(positive)) or on its ranking scale (log-odds)."""

    reward = "reward"
    logit = "logit"


class ValueNetwork(StrEnum):
    """Where PPO's value head stands."""

    own = "own"
    shared = "shared"


class Whitening(StrEnum):
    """Over what PPO's advantages are whitened."""

    minibatch = "minibatch"
    batch = "batch"


# Groups that only one algorithm has.
ALGO_OF_GROUP = {"ppo": "ppo"}


@dataclass
class SFTRun(Run):
    """`algo=sft`: the reference policy itself, evaluated."""


@dataclass
class OwnModelConfig:
    """A causal LM that exists."""

    path: str
    revision: str | None
    name: str | None

    def check(self, at: str) -> None:
        """Refuse a path or a name that is empty."""
        for key in ("path", "name"):
            if getattr(self, key) == "":
                raise ConfigError(f"{at}{key} is empty; give one, or leave {at}name=null")


@dataclass
class OwnModelRun(Run):
    """`algo=own_model`: a model that exists, evaluated as a policy."""

    own_model: OwnModelConfig

    @property
    def variant(self) -> str | None:
        """Its name: as given, or its Hub id, or its folder's name; that of a run's `model/` is the run's."""
        given, path = self.own_model.name, self.own_model.path
        if given is not None or not os.path.isdir(os.path.expanduser(path)):
            return given or path
        folder, last = os.path.split(os.path.abspath(os.path.expanduser(path)))
        return os.path.basename(folder) if last == "model" and os.path.basename(folder) else last

    @property
    def hashed_instead(self) -> dict[str, Any]:
        """The model's name, which `summary.json` holds; its content is hashed in the artifact's key."""
        return {"own_model": asdict(self.own_model) | {"path": None, "name": self.variant}}


@dataclass
class GroupsRun(Run):
    """What every algorithm that learns from groups of completions has."""

    groups: GroupsConfig
    pairs: PairsConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uses_groups:
            longest = self.data.prompts.max_tokens + self.generation.max_new_tokens + 1
            context = self.model.context if isinstance(self.model, ScratchModel) and self.sft.path is None else longest
            if self.groups.eos == Eos.appended and longest > context:
                raise ConfigError(
                    f"groups.eos=appended makes rows of {longest} tokens, longer than model.context={context}; "
                    "shorten generation.max_new_tokens"
                )
        if self.data.preferences is not None and self.pairs.labels == Labels.bradley_terry:
            raise ConfigError(
                "pairs.labels=bradley_terry draws labels from rewards, but data.preferences brings its own; "
                "use pairs.labels=deterministic or noisy"
            )

    @property
    def uses_groups(self) -> bool:
        """They are what is learnt from."""
        return True

    @property
    def appends_eos(self) -> bool:
        """As configured, where groups are used."""
        return self.uses_groups and self.groups.eos == Eos.appended


@dataclass
class TrainedRun(Run):
    """A run that trains a policy."""

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy."""
        raise NotImplementedError


@dataclass
class PreferenceRun(GroupsRun, TrainedRun):
    """What every algorithm that trains a policy on groups has."""

    policy: PolicyConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("policy.batch_size", self.policy.batch_size)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy."""
        return self.policy.optim


@dataclass
class DPOConfig:
    """Which loss of the family."""

    loss: DPOLoss
    label_smoothing: float
    average_logprobs: bool

    def check(self, at: str) -> None:
        """Refuse a value out of range, or a key that the loss does not use."""
        number(self, "label_smoothing", at, 0, 0.4999)
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

    beta: float
    dpo: DPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "beta", "", 0, above=True)
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
        """The loss, where it is not the paper's."""
        return None if self.dpo.loss == DPOLoss.sigmoid else str(self.dpo.loss)


@dataclass
class UnlikelihoodRun(PreferenceRun):
    """`algo=unlikelihood`: the winner's likelihood up, the loser's down with weight alpha, which is the knob."""

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "alpha", "", 0)

    @property
    def knob(self) -> tuple[str, float] | None:
        """Alpha."""
        return "alpha", self.alpha


@dataclass
class PreferredFTRun(PreferenceRun):
    """`algo=preferred_ft`: supervised fine-tuning on the winners."""


@dataclass
class LearnedRun(GroupsRun):
    """What every algorithm that can use a reward model has."""

    reward_model: RewardModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uses_learned_reward:
            return
        self._divides("reward_model.batch_size", self.reward_model.batch_size)
        if self.sft.path is not None and self.reward_model.init == Init.base:
            raise ConfigError(
                "reward_model.init=base is the model that SFT starts from, and sft.path leaves none; use sft"
            )
        if self.reward_model.objective == Objective.best_of_k:
            if self.data.preferences is not None:
                raise ConfigError(
                    "reward_model.objective=best_of_k chooses from groups, but data.preferences brings pairs; use pairs"
                )
            if self.pairs.labels == Labels.noisy:
                raise ConfigError(
                    "pairs.labels=noisy flips pairs, and reward_model.objective=best_of_k has choices; "
                    "use bradley_terry"
                )

    @property
    def uses_groups(self) -> bool:
        """The reward model learns from them."""
        return self.uses_learned_reward


@dataclass
class RewardModelRun(LearnedRun):
    """`algo=reward_model`: the learned reward itself, held to account."""

    @property
    def uses_learned_reward(self) -> bool:
        """It is the result."""
        return True

    @property
    def variant(self) -> str | None:
        """What it is trained on, where that is not pairs."""
        return None if self.reward_model.objective == Objective.pairs else str(self.reward_model.objective)


@dataclass
class BestOfNConfig:
    """By what the best is chosen."""

    selector: RewardSource


@dataclass
class ReservoirRun(LearnedRun):
    """What every algorithm that can use a reservoir has (`uses_reservoir` says whether this run does)."""

    reservoir: ReservoirConfig


@dataclass
class BestOfNRun(ReservoirRun):
    """`algo=best_of_n`: the best of N reference samples; nothing is trained; the knob is n."""

    n: int
    best_of_n: BestOfNConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "n", "", 1)
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
        """Where it selects."""
        return self.best_of_n.selector == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """The samples to choose from."""
        return True


@dataclass
class PPOConfig:
    """Proximal policy optimization: constants of the optimisation, and what is optimised."""

    preset: str
    reward: RewardSource
    scale: Scale
    normalize: bool
    value: ValueNetwork
    episodes: int
    batch_size: int
    minibatch_size: int
    epochs: int
    rollout_batch_size: int
    gamma: float
    lam: float
    policy_clip: float
    value_clip: float
    value_coefficient: float
    whiten_rewards: bool
    advantage_whitening: Whitening
    kl_coefficient: float | None
    initial_kl_coefficient: float | None
    min_kl_coefficient: float
    max_kl_coefficient: float
    horizon: float | None
    coefficient_range: float
    missing_eos_penalty: float
    early_stop_kl: float | None
    optim: OptimConfig

    @property
    def batches(self) -> int:
        """Batches of episodes in a run."""
        return self.episodes // self.batch_size

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that a batch of episodes is used for."""
        return self.epochs * (self.batch_size // self.minibatch_size)

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("batch_size", "minibatch_size", "epochs", "rollout_batch_size"):
            number(self, key, at, 1)
        for key in ("gamma", "lam"):
            number(self, key, at, 0, 1)
        for key in ("policy_clip", "value_clip", "horizon", "coefficient_range", "early_stop_kl"):
            number(self, key, at, 0, above=True)
        for key in ("kl_coefficient", "value_coefficient", "missing_eos_penalty"):
            number(self, key, at, 0)
        for key in ("initial_kl_coefficient", "min_kl_coefficient", "max_kl_coefficient"):
            number(self, key, at, 0, above=True)
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


@dataclass
class PPORun(ReservoirRun, TrainedRun):
    """`algo=ppo`: proximal policy optimization; the knob is target_kl, or the fixed coefficient."""

    target_kl: float | None
    ppo: PPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "target_kl", "", 0, above=True)
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
        self._divides("ppo.minibatch_size", self.ppo.minibatch_size)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy and of the value network."""
        return self.ppo.optim

    @property
    def knob(self) -> tuple[str, float] | None:
        """The target, or the fixed coefficient."""
        if self.target_kl is not None:
            return "target_kl", self.target_kl
        assert self.ppo.kl_coefficient is not None
        return "kl_coefficient", self.ppo.kl_coefficient

    @property
    def variant(self) -> str | None:
        """What is optimised, and by which preset."""
        return f"{self.ppo.reward}, {self.ppo.preset}"

    @property
    def uses_learned_reward(self) -> bool:
        """Where it is optimised."""
        return self.ppo.reward == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """For the coefficient to begin with, and the true reward's scale."""
        adaptive = self.target_kl is not None and self.ppo.initial_kl_coefficient is None
        return adaptive or (self.ppo.normalize and self.ppo.reward == RewardSource.ground_truth)


# Where conf/ names these classes: `/schema/<key>`.
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
