"""A sweep from its checked jobs to its frontier: skip the finished ones, run the others, show the results."""

import os
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.artifacts.files import in_use
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.publish.results import prepare_sweep
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.base import Sweep
from imdb_rlhf.sweep.handed import HandedSweep, Launch
from imdb_rlhf.sweep.jobs import Job, Machine, devices, labels, slots
from imdb_rlhf.sweep.pushing import push
from imdb_rlhf.sweep.records import Record, records
from imdb_rlhf.sweep.slots import SlotSweep
from imdb_rlhf.tracking.sweep_console import SweepConsole


def run_sweep(name: str, jobs: Sequence[Job], command: str, launch: Launch | None = None) -> int:
    """Run all jobs that are not finished, and draw the frontier of all that are.

    Args:
        name: of the folder.
        jobs: checked, none twice.
        command: that the user typed, for `sweep.json`.
        launch: hands jobs to a launcher of Hydra's; None runs them here, in slots.

    Returns:
        The exit code: 0 all done, 1 a job or the frontier failed, 75 stopped by a signal.

    Raises:
        ConfigError: a job is refused; nothing was written.
        RunError: something that a job needs is not there (nothing was written), or the sweep is running already.
    """
    console, first = SweepConsole(), jobs[0].run
    if first.plan:
        return _plan(jobs, console)
    if launch is not None and first.launcher.jobs != 1:
        raise ConfigError(
            f"launcher.jobs={first.launcher.jobs} is for jobs that run here, and hydra/launcher= hands them to another "
            "launcher, which has keys of its own (such as hydra.launcher.array_parallelism); leave it out"
        )
    machine, statuses = _inspected(first, jobs)
    results = prepare_sweep({s.name: job.run for job, s in zip(jobs, statuses, strict=True)}, console.note)
    folder = sweep_folder(first, name)
    make_folder(folder, first)
    with in_use(folder):
        all_records, repetitions = records(jobs, statuses, folder)
        for label in repetitions:
            console.note(f"{label} is the same run as another job: run once")
        if launch is not None:
            sweep: Sweep = HandedSweep(folder, all_records, launch, console, command)
        else:
            sweep = SlotSweep(folder, all_records, _environments(jobs, machine, console), console, command)
        code = sweep.run()
        if results is not None and code != 75:
            code = push(results, all_records, sweep.drawn, console)
        return code


def run_batch(folder: Path, known: list[Record], jobs: Sequence[Job], command: str) -> tuple[list[Record], int]:
    """Run jobs that a sweeper chose as it went, and add their records to those of its earlier batches.

    Args:
        folder: of the whole search.
        known: the records of earlier batches; new ones are added.
        jobs: of this batch, checked.
        command: that the user typed.

    Returns:
        A record per job, and the exit code.

    Raises:
        ConfigError, RunError: as `run_sweep`.
    """
    console = SweepConsole()
    machine, statuses = _inspected(jobs[0].run, jobs)
    make_folder(folder, jobs[0].run)
    with in_use(folder):
        found, _ = records(jobs, statuses, folder)
        earlier = {record.path: record for record in known}
        known += [record for record in found if record.path not in earlier]
        batch = SlotSweep(folder, known, _environments(jobs, machine, console), console, command, part=True)
        code = batch.run()
    by_path = {record.path: record for record in known}
    return [by_path[status.path] for status in statuses], code


def sweep_folder(run: Run, name: str) -> Path:
    """The folder of a sweep of this name."""
    return Path(run.paths.outputs) / "sweeps" / name


def make_folder(folder: Path, run: Run) -> None:
    """Make a sweep's folder.

    Raises:
        RunError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"paths.outputs={run.paths.outputs} cannot be made: {error}; give another") from error


def _inspected(first: Run, jobs: Sequence[Job]) -> tuple[Machine, list[processes.RunStatus]]:
    if first.launcher.jobs != 1:
        for key, value in processes.PASSIVE.items():
            os.environ.setdefault(key, value)  # before the fork server loads torch
    return processes.inspect(jobs)


def _environments(jobs: Sequence[Job], machine: Machine, console: SweepConsole) -> list[dict[str, str]]:
    """The variables that each slot adds; one line says why there is a single slot, where more were asked for."""
    launcher = jobs[0].run.launcher
    per_job = max(job.run.trainer.processes for job in jobs)
    at_once = slots(launcher, machine, per_job)
    if launcher.jobs is None and at_once == 1 and not machine.gpus and machine.cores > 1:
        console.note(_why_alone(launcher.name, machine))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [devices(slot, machine.gpus, per_job, visible) for slot in range(at_once)]


def _why_alone(launcher: str, machine: Machine) -> str:
    return (
        f"launcher={launcher}: one job at a time, because each computes with {machine.threads} threads and there are "
        f"{machine.cores} cores; trainer.threads=1 runs {machine.cores} at once (as runs of another name: their "
        "numbers differ in the last bits)"
    )


def _plan(jobs: Sequence[Job], console: SweepConsole) -> int:
    failed = []
    for number, (job, label) in enumerate(zip(jobs, labels([job.overrides for job in jobs]), strict=True), 1):
        console.note(f"job {number} of {len(jobs)}: {label}")
        try:
            processes.plan(job)
        except RunError as error:
            failed.append((label, str(error), ""))
        console.note("")
    if failed:
        console.failures(failed)
    return 1 if failed else 0
