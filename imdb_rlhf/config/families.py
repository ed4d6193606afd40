"""Keys, checks and needs that several algorithms share."""

import os
from dataclasses import dataclass

from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.places import Place
from imdb_rlhf.config.reward import Init, Objective, RewardModelConfig
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Eos, GroupsConfig, Labels, PairsConfig, PolicyConfig, ReservoirConfig
from imdb_rlhf.errors import ConfigError


@dataclass
class TrainedRun(Run):
    """An algorithm that trains a policy."""

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy."""
        raise NotImplementedError

    @property
    def precision(self) -> PolicyPrecision | None:
        """The arithmetic of the policy's training, where it is not the trainer's."""
        return None

    @property
    def networks(self) -> int:
        """How many networks of the policy's size are trained."""
        return 1


@dataclass
class TrainedPolicyRun(TrainedRun):
    """One whose training has the section `policy`."""

    policy: PolicyConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_divisible("policy.batch_size", self.policy.batch_size)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer of the policy."""
        return self.policy.optim

    @property
    def precision(self) -> PolicyPrecision | None:
        """As configured."""
        return self.policy.precision


@dataclass
class OutsideModelConfig:
    """A causal LM that was trained elsewhere, and its name on the frontier."""

    path: Place
    revision: Place | None
    name: str | None

    def check(self, at: str) -> None:
        """Refuse a path or a name that is empty."""
        for key in ("path", "name"):
            if getattr(self, key) == "":
                raise ConfigError(f"{at}{key} is empty; give one, or leave {at}name=null")

    @property
    def shown_name(self) -> str:
        """Its name: as given, else its Hub id or its folder's name; a run's `model/` has the name of the run."""
        if self.name is not None or not os.path.isdir(os.path.expanduser(self.path)):
            return self.name or self.path
        parent, folder = os.path.split(os.path.abspath(os.path.expanduser(self.path)))
        return os.path.basename(parent) if folder == "model" and os.path.basename(parent) else folder


@dataclass
class GroupsRun(Run):
    """An algorithm that learns from groups of completions."""

    groups: GroupsConfig
    pairs: PairsConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = self.data.prompts.max_tokens + self.generation.max_new_tokens + 1
        if self.appends_eos and self.known_context is not None and longest > self.known_context:
            raise ConfigError(
                f"groups.eos=appended makes rows of {longest} tokens, longer than model.context={self.known_context}; "
                "shorten generation.max_new_tokens"
            )
        used, all_prompts = self.pairs.prompts, self.data.prompts.train
        if used is not None and self.data.preferences is None and used > all_prompts:
            raise ConfigError(
                f"pairs.prompts={used} is above data.prompts.train={all_prompts}; raise data.prompts.train or use all "
                "(pairs.prompts=null)"
            )
        if self.data.preferences is not None and self.pairs.labels == Labels.bradley_terry:
            raise ConfigError(
                "pairs.labels=bradley_terry draws labels from rewards, but data.preferences brings its own; "
                "use pairs.labels=deterministic or noisy"
            )

    @property
    def uses_groups(self) -> bool:
        """Every such algorithm learns from them, unless it says otherwise."""
        return True

    @property
    def appends_eos(self) -> bool:
        """As configured, where groups are used."""
        return self.uses_groups and self.groups.eos == Eos.appended


@dataclass
class PreferenceRun(GroupsRun, TrainedPolicyRun):
    """An algorithm that trains a policy on groups."""


@dataclass
class LearnedRun(GroupsRun):
    """An algorithm that can use a reward model (`uses_learned_reward` says whether this run does)."""

    reward_model: RewardModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uses_learned_reward:
            return
        self._check_divisible("reward_model.batch_size", self.reward_model.batch_size)
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
        """Only a reward model learns from them."""
        return self.uses_learned_reward


@dataclass
class ReservoirRun(LearnedRun):
    """An algorithm that can use a reservoir (`uses_reservoir` says whether this run does)."""

    reservoir: ReservoirConfig
