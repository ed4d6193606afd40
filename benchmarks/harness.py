"""Runs programs one after the other, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.programs.program import MARK, Record

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".bench"  # workloads and the peers' environments; git-ignored
WIDTH = 160  # how much of a failure's last line a table has room for


@dataclass(frozen=True)
class Machine:
    """The machine as all programs use it; after `timeout` seconds a program has failed."""

    device: str
    precision: str
    threads: int
    timeout: float

    def environment(self) -> dict[str, str]:
        """The variables of a program's process: threads, no network, one GPU or none."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
        quiet = {"WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if self.device == "cuda" else ""
        homes = {"HF_HOME": str(STORE / "caches"), "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": visible}
        return {**os.environ, **threads, **offline, **quiet, **homes}


@dataclass(frozen=True)
class Job:
    """One process: `module.function` of `benchmarks.programs` with options (they override the machine's).

    Rounds of one program share a label; `repetitions` are timed, after one that is not; `folder` is the workload's.
    """

    label: str
    program: str
    options: Mapping[str, Any] = field(default_factory=dict)
    repetitions: int = 3
    folder: Path = Path()
    python: Path = Path(sys.executable)


def run_program(job: Job, machine: Machine) -> Record | str:
    """Run a job; returns its record, or in one line why there is none."""
    if not job.python.exists():
        return f"{job.python} does not exist: `make bench-peers` makes the peers' environments"
    setup = {name: getattr(machine, name) for name in ("device", "precision", "threads")}
    setup |= {"folder": str(job.folder.resolve()), "repetitions": job.repetitions, **job.options}
    command = [str(job.python), "-m", "benchmarks.programs", job.program, json.dumps(setup)]
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=machine.environment(), capture_output=True, text=True, timeout=machine.timeout
        )
    except subprocess.TimeoutExpired:
        return f"not done after {machine.timeout:g} s"
    lines = [line for line in process.stdout.splitlines() if line.startswith(MARK)]
    if process.returncode or not lines:
        return reason(process.returncode, process.stderr)
    return Record(**json.loads(lines[-1].removeprefix(MARK)))


def reason(code: int, errors: str) -> str:
    """In one line why a program has no record: its exit status (below 0 a signal) and its last line on stderr."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1][:WIDTH] if lines else "it printed nothing"
    if code == -9:
        return "killed (signal 9): out of memory, most likely"
    if "OutOfMemoryError" in errors:
        return "out of the GPU's memory"
    return f"killed by signal {-code}: {last}" if code < 0 else f"exit code {code}: {last}"


def run_all(jobs: Sequence[Job], machine: Machine, console: Console) -> Iterator[tuple[Job, Record | str]]:
    """Run jobs in turn; a label that failed once is not run again: a median of good rounds would be of lucky ones."""
    failed: set[str] = set()
    for number, job in enumerate(jobs, 1):
        if job.label not in failed:
            with console.status(f"{number} of {len(jobs)}: {job.label}"):
                outcome = run_program(job, machine)
            if isinstance(outcome, str):
                failed.add(job.label)
                console.print(f"{job.label}: FAILED: {outcome}", highlight=False, markup=False)
            yield job, outcome
