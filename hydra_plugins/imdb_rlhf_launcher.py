"""Hydra's launchers and ours: `hydra/launcher=processes` runs each job of a sweep in a process of its own.

Any other launcher is handed the jobs, and its workers run `imdb_rlhf.cli.job`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf import cli, typed_run
from imdb_rlhf.config.explain import explain
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.sweep.jobs import Job, in_group, quoted, refuse_torchrun

OURS = "hydra_plugins.imdb_rlhf_launcher.ProcessesLauncher"
GRIDS = "hydra_plugins.imdb_rlhf_sweeper.GridsSweeper"


class Ended(JobReturn):
    """What became of a job: its value, or the error that asking for it raises."""

    @property
    def return_value(self) -> Any:
        """The job's value; Hydra's own would write to the terminal before it raises."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class ProcessesLauncher(Launcher):
    """Runs the jobs of any sweeper, each in a process of its own, as many at once as `launcher=` says."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs are composed from."""
        self.loader, self.master = hydra_context.config_loader, config
        self.known: list[Any] = []  # the records of earlier batches

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; each returns the values of `objective=`.

        Raises:
            ConfigError: a job is refused; none of the batch was run.
            RunError: something that a job needs is not there.
        """
        from imdb_rlhf.frontier.objective import objective  # with it comes pandas
        from imdb_rlhf.sweep.run import run_batch

        refuse_torchrun()
        folder = Path(str(self.master.hydra.sweep.dir)).expanduser()
        alone = len(job_overrides) == 1 and not self.known
        made = [composed(self.loader, self.master, list(job), alone=alone) for job in job_overrides]
        runs = [in_group(run, folder.name) for run, _ in made]
        if any(run.plan for run in runs):
            raise ConfigError("plan=true plans the runs of a sweep that are known: leave hydra/sweeper= out")
        if any(run.hub.push for run in runs):
            raise ConfigError(f"hub.push={runs[0].hub.push}: {cli.NO_PUSH}")
        jobs = [job_of(run, list(job)) for run, job in zip(runs, job_overrides, strict=True)]
        records, code = run_batch(folder, self.known, jobs, cli.SWEEP_COMMAND.text)
        if code == 75:
            sys.exit(75)
        returns = []
        for run, record in zip(runs, records, strict=True):
            ended = Ended(overrides=record.job.overrides, status=JobStatus.COMPLETED)
            try:
                if record.state != "done":
                    raise RunError(record.reason or record.state)
                ended.return_value = objective(record.path, run.objective)
            except RunError as error:
                ended.status, ended.return_value = JobStatus.FAILED, error
            returns.append(ended)
        return returns


def composed(loader: ConfigLoader, master: DictConfig, job: list[str], alone: bool) -> tuple[Run, DictConfig]:
    """A job's run and its configuration, Hydra's own included.

    Raises:
        ConfigError: it is refused; the message names the job unless it is `alone`.
    """
    try:
        config = loader.load_sweep_config(master, job)
        OmegaConf.set_readonly(config, None)
        return typed_run.checked(config, job), config
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, ConfigError) else explain(error)
        raise ConfigError(message if alone else f"job {' '.join(job)}: {message}") from error


def job_of(run: Run, overrides: list[str]) -> Job:
    """A job of a sweep."""
    return Job(run, OmegaConf.to_yaml(OmegaConf.structured(run)), overrides, cli.SWEEP_COMMAND.options)


def launcher_of(configs: Sequence[DictConfig]) -> DictConfig | None:
    """The configuration of the jobs that names their launcher; None where that is ours.

    Raises:
        ConfigError: the jobs differ in it, or one names a sweeper.
    """
    for config in configs:
        if config.hydra.sweeper._target_ != GRIDS:
            raise ConfigError("hydra/sweeper is chosen on the command line, not in a file that a job is composed from")
        if config.hydra.launcher != configs[0].hydra.launcher:
            raise ConfigError(
                "hydra/launcher is one for all jobs of a sweep, and they differ; give it on the command line"
            )
    return None if configs[0].hydra.launcher._target_ == OURS else configs[0]


def handing(
    config: DictConfig, folder: Path, context: HydraContext, task_function: TaskFunction
) -> Callable[[Sequence[list[str]]], list[BaseException | None]]:
    """What hands jobs to a launcher of Hydra's.

    Args:
        config: of any of the jobs; `hydra.launcher` names the launcher.
        folder: of the sweep, where the launcher keeps its own files.
        context: of Hydra.
        task_function: that the launcher's workers call.
    """
    added = [f"hydra.sweep.dir={quoted(str(folder.resolve()))}"]
    with flag_override(config, ["struct", "readonly"], False):
        config.hydra.sweep.dir = str(folder.resolve())

    def launch(overrides: Sequence[list[str]]) -> list[BaseException | None]:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )
        with _one_lost_of_many():
            returns = launcher.launch([[*job, *added] for job in overrides], 0)
        return [job._return_value if job.status == JobStatus.FAILED else None for job in returns]

    return launch


@contextmanager
def _one_lost_of_many() -> Iterator[None]:
    """Let submitit's launcher wait for all jobs where one was killed: it would drop the results of the others."""
    try:
        import submitit
    except ImportError:
        yield
        return
    before = submitit.Job.results

    def results(job: Any) -> list[Any]:
        try:
            return list(before(job))
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            return [JobReturn(status=JobStatus.FAILED, _return_value=RunError(lost(job, error)))]

    submitit.Job.results = results
    try:
        yield
    finally:
        submitit.Job.results = before


def lost(job: Any, error: Exception) -> str:
    """One line about a job whose worker left no result, from what the scheduler says of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")] or [type(error).__name__]
    said = lines[-1] if "trace" in lines[0] else lines[0]  # a traceback ends with what is wrong
    return f"job {job.job_id} (state {job.state}): {said}"


@dataclass
class ProcessesLauncherConfig:
    """The configuration that Hydra makes the launcher from."""

    _target_: str = OURS


ConfigStore.instance().store(
    group="hydra/launcher", name="processes", node=ProcessesLauncherConfig, provider="imdb_rlhf"
)
