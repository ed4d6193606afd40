"""What every algorithm's configuration has."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from imdb_rlhf.config.data import DataConfig
from imdb_rlhf.config.machine import LauncherConfig, LoggerConfig, PathsConfig, TrainerConfig
from imdb_rlhf.config.model import ModelConfig, ScratchModel
from imdb_rlhf.config.ranges import check
from imdb_rlhf.config.reward import RewardConfig, TwoLabelReward
from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig, Init, SFTConfig
from imdb_rlhf.errors import ConfigError


class KeepModel(StrEnum):
    """Which trained policy stays in the run's folder."""

    last = "last"
    best = "best"
    none = "none"


# Keys of a run that its numbers do not depend on.
NOT_IN_HASH = ("logger", "launcher", "paths", "plan")


@dataclass
class Run:
    """What every algorithm has."""

    algo: str
    seed: int
    plan: bool
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

    def __post_init__(self) -> None:
        check(self)
        prompt = self.data.prompts.max_tokens
        total = prompt + self.generation.max_new_tokens
        if isinstance(self.model, ScratchModel) and self.sft.path is None:
            if total > self.model.context:
                raise ConfigError(
                    f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={self.generation.max_new_tokens} is "
                    f"longer than model.context={self.model.context}; shorten them or raise model.context"
                )
            if self.sft.max_tokens > self.model.context:
                raise ConfigError(
                    f"sft.max_tokens={self.sft.max_tokens} is longer than model.context={self.model.context}; "
                    "shorten it or raise model.context"
                )
        if self.sft.path is None and self.sft.revision is not None:
            raise ConfigError(
                f"sft.revision={self.sft.revision} is used with sft.path alone; set sft.path or model.revision"
            )
        if self.data.preferences is not None and not self.uses_groups:
            raise ConfigError(
                f"data.preferences={self.data.preferences} is not used by algo={self.algo}"
                f"{'' if self.variant is None else f' ({self.variant})'}; drop it or choose algo=dpo"
            )
        self._divides("sft.batch_size", self.sft.batch_size)
        if isinstance(self.reward, TwoLabelReward):
            if self.sft.path is not None and self.reward.init == Init.base:
                raise ConfigError(
                    "reward.init=base is the model that SFT starts from, and sft.path leaves none; use sft"
                )
            self._divides("reward.batch_size", self.reward.batch_size)

    def _divides(self, name: str, value: int) -> None:
        if value % self.trainer.processes:
            raise ConfigError(
                f"{name}={value} is not a multiple of trainer.processes={self.trainer.processes}; choose a multiple"
            )

    @property
    def knob(self) -> tuple[str, float] | None:
        """Name and value of the key that a paper sweeps for this algorithm, or None."""
        return None

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
        """Sections that the run's hash holds in another form: without places, with names that are derived."""
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


# Where conf/ names these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "run": Run,
}
