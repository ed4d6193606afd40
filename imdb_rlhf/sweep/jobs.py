"""The jobs of a sweep before one starts: which are the same, their names, and how many run at once."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from imdb_rlhf.artifacts.files import hash_of
from imdb_rlhf.config.machine import LauncherConfig, WandbLogger, processes_running
from imdb_rlhf.config.run import NOT_IN_HASH, Run
from imdb_rlhf.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        run: typed and checked.
        config_yaml: the same as text.
        overrides: of the default configuration.
        options: of the command line that the overrides need, such as `--config-dir`.
    """

    run: Run
    config_yaml: str
    overrides: list[str]
    options: list[str]


@dataclass(frozen=True)
class Machine:
    """GPUs (0 where the jobs use none) and cores that the jobs share, and the threads that each computes with."""

    gpus: int
    cores: int
    threads: int


def refuse_torchrun() -> None:
    """Refuse a sweep that torchrun has started.

    Raises:
        ConfigError: naming the way out.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or processes_running() > 1:
        raise ConfigError(
            "a sweep starts the processes of its jobs itself: run it without torchrun, with trainer.processes=N for "
            "N processes per job"
        )


def distinct(runs: Sequence[Run]) -> list[int]:
    """The positions of the runs that do not repeat an earlier one.

    Raises:
        ConfigError: the runs differ in their launcher, their paths, their plan or their hub, of which a sweep has one.
    """
    for name in ("launcher", "paths", "plan", "hub"):
        if any(getattr(run, name) != getattr(runs[0], name) for run in runs):
            raise ConfigError(
                f"{name} is one for all jobs of a sweep, and they differ; give one {name}=... on the command line"
            )
    first: dict[str, int] = {}
    for position, run in enumerate(runs):
        first.setdefault(identity(run), position)
    return list(first.values())


def identity(run: Run) -> str:
    """The same for runs that are one run: a hash of what its numbers depend on."""
    return hash_of({key: value for key, value in asdict(run).items() if key not in NOT_IN_HASH})


def folder_name(title: str, runs: Sequence[Run]) -> str:
    """`<title>-<hash8>`; the order of the runs and their place on the disk do not change it."""
    words = re.sub(r"[^\w.]+", "-", title).strip("-.")[:80]
    return f"{words}-{hash_of(sorted(map(identity, runs)))[:8]}"


def in_group(run: Run, group: str) -> Run:
    """The run, in a W&B group unless it has one, and with a name of its own where one name is given for all.

    Args:
        run: of a sweep.
        group: where neither the configuration nor WANDB_RUN_GROUP names one.
    """
    logger = run.logger
    if not isinstance(logger, WandbLogger):
        return run
    group = logger.group or os.environ.get("WANDB_RUN_GROUP") or group
    return replace(run, logger=replace(logger, group=group, run_name=logger.run_name_of_several))


def group_words(run: Run) -> list[str]:
    """What `in_group` has set, as overrides of a command line."""
    logger = run.logger
    if not isinstance(logger, WandbLogger):
        return []
    return [f"logger.{key}={quoted(getattr(logger, key))}" for key in ("group", "run_name")]


def quoted(text: str) -> str:
    """A text as a value that Hydra's command line takes for this text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """A name per job: its algorithm, and the overrides that not all jobs of that algorithm have."""
    groups: dict[str, list[set[str]]] = {}
    for job in overrides:
        groups.setdefault(_algo(job), []).append(set(job))
    shared = {algo: set.intersection(*members) - {algo} for algo, members in groups.items()}
    return [" ".join(word for word in job if word not in shared[_algo(job)]) or " ".join(job) for job in overrides]


def _algo(job: Sequence[str]) -> str:
    return next((word for word in job if word.startswith("algo=")), "")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots(launcher: LauncherConfig, machine: Machine, processes: int) -> int:
    """Jobs that run at once, at least one.

    Args:
        launcher: as configured.
        machine: that they share.
        processes: per job; each has a GPU of its own, where there are GPUs.
    """
    if launcher.jobs is not None:
        return launcher.jobs
    return max(1, machine.gpus // processes if machine.gpus else machine.cores // machine.threads)


def devices(slot: int, gpus: int, processes: int, visible: str | None) -> dict[str, str]:
    """The environment that gives the jobs of a slot GPUs of their own, as far as there are enough.

    Args:
        slot: from 0.
        gpus: that this process sees.
        processes: per job.
        visible: the present CUDA_VISIBLE_DEVICES.
    """
    if gpus < 2:
        return {}
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    slot_names = [names[(slot * processes + number) % len(names)] for number in range(min(processes, len(names)))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(slot_names)}
