"""The machine, the logger, the launcher and the output folder."""

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from imdb_rlhf.config.ranges import BatchSize, Range, Steps
from imdb_rlhf.errors import ConfigError


class Device(StrEnum):
    """Where the models are."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    """Arithmetic of training and sampling; reported numbers are float32 always."""

    auto = "auto"
    bf16 = "bf16"
    float32 = "float32"


class PolicyPrecision(StrEnum):
    """Arithmetic of the policy's training, where it is not the trainer's."""

    bf16 = "bf16"
    float32 = "float32"


@dataclass
class TrainerConfig:
    """The machine."""

    device: Device
    precision: Precision
    processes: Annotated[int, Range(1, 4096)]
    threads: Annotated[int | None, Range(1, 512)]  # at 4096 torch ends with a segmentation fault
    micro_batch: BatchSize | None
    checkpoint_every: Annotated[int, Range(0, 10**9)]
    log_every: Steps


# The trackers besides W&B: what is imported, and what pip installs.
TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass
class LoggerConfig:
    """Where copies of a run's numbers go, besides W&B; its own files are always there."""

    tensorboard: bool
    mlflow: bool
    trackio: bool

    @property
    def others(self) -> list[str]:
        """The chosen ones of `TRACKERS`."""
        chosen = {"tensorboard": self.tensorboard, "mlflow": self.mlflow, "trackio": self.trackio}
        return [name for name, is_chosen in chosen.items() if is_chosen]


class WandbMode(StrEnum):
    """W&B's mode; auto is online where a key is configured and offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"


OWN_NAME = "{run}"  # in a W&B run's name: that of the run's folder


@dataclass
class WandbLogger(LoggerConfig):
    """A Weights & Biases run that shows the run's own files; null leaves a value to the environment."""

    project: str | None
    entity: str | None
    group: str | None
    run_name: str | None
    notes: str | None
    tags: list[str] | None
    mode: WandbMode
    system: bool
    console: bool
    git: bool
    code: bool
    artifacts: bool

    @property
    def run_name_of_several(self) -> str:
        """The name of runs that would all be called the same: `{run}` in it stands for what each is called."""
        name = self.run_name or os.environ.get("WANDB_NAME") or OWN_NAME
        return name if OWN_NAME in name else f"{name} {OWN_NAME}"


def check_trackers(logger: LoggerConfig) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    for name in logger.others:
        if find_spec(name) is None:
            raise ConfigError(f"logger={name}: its package is not installed; pip install {TRACKERS[name]}")


@dataclass
class LauncherConfig:
    """How many jobs of a sweep run at once."""

    name: str
    jobs: Annotated[int | None, Range(1, 4096)]


@dataclass
class PathsConfig:
    """Where everything is written."""

    outputs: str

    def check(self, at: str) -> None:
        """Refuse no folder at all, which would be the current one, and one that cannot be made."""
        if not self.outputs.strip():
            raise ConfigError(f"{at}outputs= names no folder; give one, or . for the current one")
        problem = _why_not_a_folder(Path(self.outputs))
        if problem is not None:
            raise ConfigError(f"{at}outputs={self.outputs[:200]!r} cannot be made: {problem}; give another")


# The longest path below paths.outputs, in characters: of an artifact's weights, being written.
BELOW = 120


def _why_not_a_folder(path: Path) -> str | None:
    """Why a path that need not exist can be no folder with files; None if it can. Nothing is written."""
    try:
        for place in (path / ("x" * BELOW), path, *path.parents):
            try:
                mode = place.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            return None if stat.S_ISDIR(mode) else f"{place} is not a folder"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a null character
        return str(error)
    return None


def processes_running() -> int:
    """The processes of this run, as torchrun says in the environment.

    Raises:
        ConfigError: it says no number.
    """
    stated = os.environ.get("WORLD_SIZE", "1")
    if not stated.isdigit():
        raise ConfigError(f"WORLD_SIZE={stated} in the environment is not a number; unset it, or start with torchrun")
    return int(stated)


def check_processes(wanted: int) -> None:
    """Refuse to run in another number of processes than `trainer.processes`.

    torchrun sets WORLD_SIZE to their number. `accelerate launch --cpu --num_processes 2` silently runs one.

    Raises:
        ConfigError: naming both numbers and the way out.
    """
    running = processes_running()
    if running != wanted:
        raise ConfigError(
            f"trainer.processes={wanted}, but {running} running; set trainer.processes={running}, or start "
            f"`python train.py ... trainer.processes={wanted}` alone, which starts them itself"
        )


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "trainer": TrainerConfig,
    "logger/wandb": WandbLogger,
    "logger/none": LoggerConfig,
    "launcher": LauncherConfig,
}
