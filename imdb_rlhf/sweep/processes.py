"""What the processes of a sweep do: one inspects the runs' folders, one runs each job, and one draws the frontier."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imdb_rlhf import ranks
from imdb_rlhf.artifacts import files
from imdb_rlhf.config.machine import TrainerConfig, WandbLogger
from imdb_rlhf.errors import ConfigError, RunError, Stopped
from imdb_rlhf.signals import describe_exit
from imdb_rlhf.sweep import forked
from imdb_rlhf.sweep.jobs import Job, Machine, cores, group_words

if TYPE_CHECKING:  # it imports torch, which the process that watches the others does not need
    from imdb_rlhf.runs.kind import RunKind

PACKAGE = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds that a job waits for a run folder: the job of a killed sweep may be writing its checkpoint
# Threads that spin while they wait cost the other jobs of the same cores more than half their speed.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class RunStatus:
    """A job's run folder before the job starts: whether it is finished; `problem` is why the job cannot run."""

    name: str
    path: Path
    finished: bool
    problem: str | None


@dataclass(frozen=True)
class FrontierResult:
    """A drawn frontier: its folders (one per world), warnings, and the problem that kept it from being drawn."""

    folders: list[Path]
    warnings: list[str]
    problem: str | None


# --- output -----------------------------------------------------------------------------------------------------------


def _write_to(log: Path) -> None:
    """Send the output of this process and of its children to a file, line by line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = open(log, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  # open until the process ends
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream


# --- before the first job ---------------------------------------------------------------------------------------------


def inspect(jobs: Sequence[Job]) -> tuple[Machine, list[RunStatus]]:
    """The machine, and the status of every job's run, asked of a process of its own: this one needs no torch.

    Raises:
        ConfigError: a job is refused.
        RunError: something that a job needs is not there.
    """
    receiver, sender = Pipe(duplex=False)
    inspector = forked.start(send_statuses, list(jobs), sender)
    sender.close()
    machine: Machine | None = None
    statuses: list[RunStatus] = []
    try:
        while machine is None or len(statuses) < len(jobs):
            message = receiver.recv()
            if isinstance(message, Exception):
                several = machine is not None and len(jobs) > 1
                job = f"job {' '.join(jobs[len(statuses)].overrides)}: " if several else ""
                raise type(message)(f"{job}{message}")
            if isinstance(message, Machine):
                machine = message
            else:
                statuses.append(message)
    except EOFError as error:
        inspector.join()
        reason = describe_exit(inspector.exitcode)
        raise RunError(f"the process that looks for finished runs: {reason}; see above") from error
    except BaseException:
        forked.stop(inspector)
        raise
    inspector.join()
    return machine, statuses


def send_statuses(jobs: Sequence[Job], sender: Connection) -> None:
    """Send the `Machine`, then the `RunStatus` of each job, or the `ConfigError` or `RunError` that ends the sweep.

    Writes nothing. A file that several jobs use is hashed once.
    """
    files.remember_hashes()
    try:
        sender.send(_machine([job.run.trainer for job in jobs]))
        for job in jobs:
            sender.send(_status(job))
    except (ConfigError, RunError) as error:
        sender.send(error)


def _machine(trainers: Sequence[TrainerConfig]) -> Machine:
    import torch

    from imdb_rlhf.training.precision import resolve_device, resolve_threads

    with_gpu = any(resolve_device(trainer.device) == "cuda" for trainer in trainers)
    threads = max(resolve_threads(trainer.threads) * trainer.processes for trainer in trainers)
    return Machine(torch.cuda.device_count() if with_gpu else 0, cores(), threads)


def _status(job: Job) -> RunStatus:
    folder = _kind(job).folder
    try:
        return RunStatus(folder.name, folder.path.absolute(), folder.finished(), None)
    except RunError as error:
        return RunStatus(folder.name, folder.path.absolute(), False, str(error))


def _kind(job: Job, *, quiet: bool = True) -> "RunKind":
    """A job's run with the folder that it would have, whether it is run by one process or by several."""
    from imdb_rlhf.pipeline import Pipeline
    from imdb_rlhf.runs.folder import RunFolder
    from imdb_rlhf.runs.kinds import kind_of
    from imdb_rlhf.tracking.console import Console
    from imdb_rlhf.training.runtime import Runtime

    class FutureRuntime(Runtime):
        """The runtime of `trainer.processes` processes, as far as the facts go that name the folder."""

        def facts(self) -> dict[str, Any]:
            return super().facts() | {"processes": job.run.trainer.processes}

    runtime = FutureRuntime(replace(job.run.trainer, processes=1))
    pipeline = Pipeline(job.run, runtime, Console(quiet=quiet))
    return kind_of(job.run)(RunFolder(pipeline, job.config_yaml, job.overrides))


def plan(job: Job) -> None:
    """Print what a job would make and what it would reuse, and the disk that it needs; write nothing.

    Raises:
        RunError: something that it needs is not there.
    """
    from imdb_rlhf import experiment

    experiment.plan(_kind(job, quiet=False))


# --- a job ------------------------------------------------------------------------------------------------------------


def work(job: Job, path: Path, log: Path, environment: Mapping[str, str], patience: float | None = PATIENCE) -> int:
    """Run one job with its output in `log`; returns the exit code that `train.py` would have.

    Args:
        job: checked.
        path: its run's folder.
        log: where its output goes.
        environment: variables that are set first.
        patience: seconds to wait for the run's folder while another process has it; None waits until it ends.
    """
    _write_to(log)
    os.environ.update(environment)
    try:
        files.wait_until_free(path, patience, lambda line: print(line, flush=True))  # noqa: T201  # its log
        if job.run.trainer.processes > 1:
            return _several(job)
        from imdb_rlhf.experiment import run_experiment

        run_experiment(job.run, job.config_yaml, job.overrides)
    except ConfigError as error:
        return _end(2, f"refused: {error}")
    except RunError as error:
        return _end(1, f"failed: {' '.join(str(error).split())}")
    except Stopped as error:
        return _end(75, f"stopped: {error}")
    except KeyboardInterrupt:
        return _end(75, "stopped: finished stages are kept; run the same command to go on")
    return 0


def _end(code: int, line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return code


def _several(job: Job) -> int:
    """Run a job in several processes."""
    added = group_words(job.run)
    added += [] if job.run.hub.push is None else ["hub.push=null"]  # the sweep pushes, when all jobs are done
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", PACKAGE.name, *job.options, *job.overrides, *added]
    code, line = ranks.run(command, job.run.trainer.processes, {"PYTHONPATH": path})
    return _end(code, line) if code else 0


# --- the frontier -----------------------------------------------------------------------------------------------------


def draw(runs: Sequence[Path], folder: Path, wandb_group: tuple[WandbLogger, str] | None, sender: Connection) -> None:
    """Draw the frontier of finished runs, one per world, and send the `FrontierResult`.

    Args:
        runs: their folders.
        folder: the sweep's; a world has a folder of its own inside it, where there are several. Output goes to `logs/`.
        wandb_group: W&B's settings and the group, to show the frontier there too.
        sender: of the result.
    """
    _write_to(folder / "logs" / "frontier.log")
    files.remember_hashes()  # runs share their artifacts
    from imdb_rlhf.frontier import draw as frontier
    from imdb_rlhf.frontier.comparable import worlds

    folders: list[Path] = []
    warnings: list[str] = []
    problem = None
    try:
        for name, members in worlds(list(runs)).items():
            place = folder / name if name else folder
            measured = frontier.draw(members, place)
            folders.append(place)
            warnings += measured["warnings"]
            if wandb_group is not None:
                from imdb_rlhf.frontier.wandb_run import frontier as show

                logger, group = wandb_group
                show(measured, place, logger, group, warnings.append)
    except (ConfigError, RunError, OSError) as error:
        problem = str(error)
    sender.send(FrontierResult(folders, warnings, problem))
