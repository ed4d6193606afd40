"""The whole experiment of one configuration, from reviews to a finished run folder."""

import os
import time
from functools import partial
from pathlib import Path

import pandas as pd

from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import Stopped
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.runs import files
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.kind import RunKind
from imdb_rlhf.runs.kinds import kind_of
from imdb_rlhf.runs.show import show, show_again
from imdb_rlhf.runs.trackers import stage_tracker, trackers_of
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.tracking.console import STAGE_WIDTH, Console
from imdb_rlhf.training import checkpoint
from imdb_rlhf.training.memory import lack_of_memory_in_one_line
from imdb_rlhf.training.runtime import Runtime


def run_experiment(run: Run, config_yaml: str, overrides: list[str]) -> Path | None:
    """Do what a configuration says.

    Args:
        run: the typed and checked configuration.
        config_yaml: the same as text, for the run's folder.
        overrides: what the command line changed, for the run's folder.

    Returns:
        The finished folder; None where it was only planned, and on every rank but the first.

    Raises:
        RunError: a failure that a user can mend.
        Stopped: a signal came and a checkpoint is written.
    """
    with lack_of_memory_in_one_line():
        return _run(run, config_yaml, overrides)


def _run(run: Run, config_yaml: str, overrides: list[str]) -> Path | None:
    runtime = Runtime(run.trainer)
    console = Console(quiet=runtime.rank != 0)
    _warn_of_threads(runtime, console)
    pipeline = Pipeline(run, runtime, console)
    folder = RunFolder(pipeline, config_yaml, overrides)
    kind = kind_of(run)(folder)
    if run.plan:
        plan(kind)
        return None
    if not folder.finished():
        pipeline.fetch()  # before anything is written, so that a refusal leaves nothing behind
    with folder.held():
        if folder.finished():
            _check_reward(folder)
            if folder.leader and not (folder.path / files.REPORT).exists():
                _report(folder)  # it was finished by a version that made none, or its report was removed
            show_again(kind)
        else:
            console.note(_where(folder))
            folder.begin()
            pipeline.track_stage = partial(stage_tracker, folder)
            pipeline.build()
            _work(kind)
    return folder.path if folder.leader else None


def _where(folder: RunFolder) -> str:
    """What will run where, in one line."""
    facts = folder.runtime.facts()
    parts = [f"on {facts['device']} in {facts['precision']}"]
    parts += [f"{facts['threads']} {'thread' if facts['threads'] == 1 else 'threads'}"] if facts["threads"] else []
    parts += [f"{facts['processes']} processes"] if facts["processes"] > 1 else []
    return f"{folder.run.algo:<{STAGE_WIDTH}} {', '.join(parts)}: {folder.path}"


def _warn_of_threads(runtime: Runtime, console: Console) -> None:
    """Say that more threads than cores make a run slower: they may be meant, as numbers depend on their count."""
    cores = os.cpu_count() or runtime.threads
    if runtime.threads > cores:
        console.warn(
            f"trainer.threads={runtime.threads} is more than the {cores} cores of this machine: it takes longer"
        )


def _check_reward(folder: RunFolder) -> None:
    """Refuse to show a finished run whose texts the true reward now scores otherwise."""
    reward, samples = folder.pipeline.get(TrueReward), folder.path / files.SAMPLES
    if reward.kind.compared and samples.exists():
        frame = pd.read_parquet(samples, columns=["prompt", "policy", "policy_reward_logit"])
        # of a character that is split between the two, the table does not hold the first part
        frame = frame[~frame["prompt"].str.endswith("\ufffd")]
        reward.compare((frame["prompt"] + frame["policy"]).tolist(), frame["policy_reward_logit"].tolist(), folder.path)


def plan(kind: RunKind) -> None:
    """Print what would be made and what is there, and the disk that is needed; write nothing."""
    folder = kind.folder
    disk = folder.pipeline.plan()
    if not folder.plan():
        disk = disk.then(kind.size())
    folder.console.note(f"about {disk.peak / 1e6:,.0f} MB of disk needed for what is not there")


def _work(kind: RunKind) -> None:
    """Do the run's own work with its trackers, and show the results."""
    began, folder = time.perf_counter(), kind.folder
    resumed = checkpoint.load(folder.path)
    start = 0 if resumed is None else resumed.step
    trackers = trackers_of(folder, start)
    try:
        result, table = kind.work(trackers, start, began)
    except BaseException as error:
        trackers.finish({}, exit_code=75 if isinstance(error, Stopped) else 1)
        raise
    if folder.leader:
        _report(folder)
        show(kind, result, table)


def _report(folder: RunFolder) -> None:
    """Write the finished run's report; whatever goes wrong costs one warning, since the run is finished without it."""
    try:
        from imdb_rlhf.frontier.report import run_report  # here, where a run is over: none waits for it at its start

        run_report.write(folder.path)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        folder.console.warn(f"no {files.REPORT}: {why}; the same command tries again")
