"""The configuration that every algorithm has."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from imdb_rlhf.config.data import Bos, DataConfig
from imdb_rlhf.config.hub import HubConfig
from imdb_rlhf.config.machine import LauncherConfig, LoggerConfig, PathsConfig, TrainerConfig
from imdb_rlhf.config.model import ModelConfig, ScratchModel
from imdb_rlhf.config.objective import check_objective
from imdb_rlhf.config.ranges import Seed, check
from imdb_rlhf.config.reward import Init, RewardConfig
from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig, SFTConfig
from imdb_rlhf.errors import ConfigError


class KeepModel(StrEnum):
    """Which trained policy stays in the run's folder."""

    last = "last"
    best = "best"
    none = "none"


# Keys that no number of a run depends on.
NOT_IN_HASH = ("logger", "launcher", "paths", "plan", "objective", "baselines", "hub")


@dataclass
class Run:
    """The keys that every algorithm has; a subclass in `algos.py` adds those of one algorithm.

    `has_policy` says whether a run ends in a policy, which is a point of the frontier; `leaves_model` whether it has a
    model to leave in its folder (`keep_model` says whether it does); `one_model` whether that is a single causal LM.
    """

    has_policy: ClassVar[bool] = True
    leaves_model: ClassVar[bool] = True
    one_model: ClassVar[bool] = True
    algo: str
    seed: Seed
    plan: bool
    objective: list[str]
    baselines: bool
    keep_model: KeepModel
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    generation: GenerationConfig
    sft: SFTConfig
    evaluation: EvaluationConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    launcher: LauncherConfig
    paths: PathsConfig
    hub: HubConfig

    def __post_init__(self) -> None:
        check(self)
        check_objective(self.objective)
        prompt, context = self.data.prompts.max_tokens, self.known_context
        if context is not None:
            if prompt + self.generation.max_new_tokens > context:
                raise ConfigError(
                    f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={self.generation.max_new_tokens} is "
                    f"longer than model.context={context}; shorten them or raise model.context"
                )
            if self.sft.max_tokens > context:
                raise ConfigError(
                    f"sft.max_tokens={self.sft.max_tokens} is longer than model.context={context}; "
                    "shorten it or raise model.context"
                )
        if self.data.bos == Bos.always and self.sft.path is None and isinstance(self.model, ScratchModel):
            raise ConfigError(
                f"data.bos=always: the tokenizer that is trained for model={self.model.name} has no BOS token; "
                "use data.bos=auto or never"
            )
        if self.sft.path is None and self.sft.revision is not None:
            raise ConfigError(
                f"sft.revision={self.sft.revision} is used with sft.path alone; set sft.path or model.revision"
            )
        revision = self.data.preferences_revision
        if self.data.preferences is None and revision is not None:
            raise ConfigError(f"data.preferences_revision={revision} is used with data.preferences alone; set that")
        if self.data.preferences is not None and not self.uses_groups:
            raise ConfigError(
                f"data.preferences={self.data.preferences} is not used by algo={self.algo}"
                f"{'' if self.variant is None else f' ({self.variant})'}; drop it or choose algo=dpo"
            )
        if self.reward.starts_from == Init.base and self.sft.path is not None:
            raise ConfigError("reward.init=base is the model that SFT starts from, and sft.path leaves none; use sft")
        self._check_divisible("sft.batch_size", self.sft.batch_size)
        self._check_divisible("reward.batch_size", self.reward.training_batch_size)

    def _check_divisible(self, key: str, value: int | None) -> None:
        if value is not None and value % self.trainer.processes:
            raise ConfigError(
                f"{key}={value} is not a multiple of trainer.processes={self.trainer.processes}; choose a multiple"
            )

    @property
    def known_context(self) -> int | None:
        """Longest row that the policy reads, in tokens; None where only a model's files tell."""
        return self.model.known_context if self.sft.path is None else None

    @property
    def knob(self) -> tuple[str, float] | None:
        """Name and value of the key that a paper sweeps, at the root or in a section; or None."""
        return None

    def check_knob(self) -> None:
        """Refuse a knob that is no key: a sweep could not vary it.

        Raises:
            ConfigError: naming the class to mend.
        """
        try:
            knob = self.knob
        except AttributeError as error:
            raise ConfigError(f"algo={self.algo}: {error}; mend {type(self).__name__}.knob") from error
        if knob is not None:
            name, value = knob
            holders = (self, *(getattr(self, field.name) for field in fields(self)))
            if not any(getattr(holder, name, None) == value for holder in holders):
                raise ConfigError(
                    f"algo={self.algo}: {name}={value} is no key of it, neither at the root nor in a section; "
                    f"mend {type(self).__name__}.knob"
                )

    @property
    def variant(self) -> str | None:
        """What sets runs of one algorithm apart as methods of their own, or None."""
        return None

    @property
    def uses_groups(self) -> bool:
        """Whether K completions of each training prompt are needed."""
        return False

    @property
    def hashed_instead(self) -> dict[str, Any]:
        """Sections that the run's hash holds in another form: with names that are derived."""
        return {}

    @property
    def appends_eos(self) -> bool:
        """Whether a completion that was cut at the length limit is trained with an EOS that was never sampled."""
        return False

    @property
    def uses_learned_reward(self) -> bool:
        """Whether a reward model is needed."""
        return False

    @property
    def uses_reservoir(self) -> bool:
        """Whether M reference samples of each evaluation prompt are needed."""
        return False


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "run": Run,
}
