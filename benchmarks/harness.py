"""Runs programs, each in a process of its own, ours and the peers' in turn."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.plan import Case, Program
from benchmarks.programs.record import Record, parse

ROOT = Path(__file__).resolve().parents[1]
# How much of a failure's last line a table has room for.
WIDTH = 160


@dataclass(frozen=True)
class Machine:
    """What every program is told of the machine.

    Attributes:
        device: cpu or cuda.
        precision: of training and sampling.
        threads: of the CPU, the same for all.
        timeout: seconds after which a program has failed.
        caches: where libraries of the peers may leave theirs.
    """

    device: str
    precision: str
    threads: int
    timeout: float
    caches: Path

    def environment(self) -> dict[str, str]:
        """The variables of a program's process: threads, no network, one GPU or none."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
        quiet = {"WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if self.device == "cuda" else ""
        homes = {"HF_HOME": str(self.caches), "PYTHONWARNINGS": "ignore"}
        return {**os.environ, **threads, **offline, **quiet, **homes, "CUDA_VISIBLE_DEVICES": visible}


@dataclass
class Outcome:
    """What became of a program: a record a round, or why there is none.

    A failure of one round fails the program: a median of the rounds that went well would be of the lucky ones.
    """

    case: Case
    program: Program
    records: list[Record] = field(default_factory=list)
    failure: str | None = None


def run_program(
    module: str,
    folder: Path,
    machine: Machine,
    options: Sequence[str] = (),
    repetitions: int = 3,
    python: Path | None = None,
) -> Record | str:
    """Run a program of `benchmarks.programs` in a process of its own.

    Args:
        module: its name there.
        folder: of the workload.
        machine: device, precision, threads, time limit.
        options: its own command line; one that the machine sets too overrules it.
        repetitions: timed.
        python: interpreter of a peer's environment; None is this one.

    Returns:
        Its record, or in one line why there is none.
    """
    words = [str(python or sys.executable), "-m", f"benchmarks.programs.{module}", str(folder.resolve())]
    for name in ("device", "precision", "threads"):
        words += [f"--{name}", str(getattr(machine, name))]
    words += ["--repetitions", str(repetitions), *options]
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=machine.environment(), capture_output=True, text=True, timeout=machine.timeout
        )
    except subprocess.TimeoutExpired:
        return f"not done after {machine.timeout:g} s"
    found = parse(done.stdout) if done.returncode == 0 else None
    return reason(done.returncode, done.stderr) if found is None else found


def reason(code: int, errors: str) -> str:
    """In one line why a program has no record: how it ended, and the last line that it wrote.

    Args:
        code: its exit status; below 0 the signal that ended it.
        errors: what it wrote to stderr.
    """
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1][:WIDTH] if lines else "it said nothing"
    if code == -9:
        return "killed (signal 9): out of memory, most likely"
    if "OutOfMemoryError" in errors:
        return "out of the GPU's memory"
    return f"killed by signal {-code}: {last}" if code < 0 else f"exit code {code}: {last}"


def measure(
    cases: Sequence[Case],
    rounds: int,
    machine: Machine,
    folders: Mapping[str, Path],
    pythons: Mapping[str, Path | str],
    told: Callable[[int, Case, Program, Outcome | None], None],
    saved: Callable[[list[Outcome]], None],
) -> list[Outcome]:
    """Measure cases one after the other, in each of them every program in turn, round after round.

    So what is compared ran minutes apart, and a machine that slows down slows both.

    Args:
        cases: what to measure.
        rounds: fresh processes of each program.
        machine: device, precision, threads, time limit.
        folders: workloads by the names of shapes.
        pythons: interpreters by the names of environments; a text is why there is none.
        told: called before a program runs, with the round from 1 on and None, and after it, with its outcome so far.
        saved: called after each program with all outcomes so far.
    """
    outcomes: list[Outcome] = []
    for case in cases:
        found = [Outcome(case, program) for program in case.programs]
        outcomes += found
        for number in range(1, rounds + 1):
            for outcome in found:
                if outcome.failure is not None:
                    continue
                program = outcome.program
                told(number, case, program, None)
                python = pythons.get(program.environment) if program.environment else None
                if isinstance(python, str):
                    result: Record | str = python
                else:
                    result = run_program(
                        program.module, folders[case.shape.name], machine, program.options, program.repetitions, python
                    )
                if isinstance(result, str):
                    outcome.failure = result
                else:
                    outcome.records.append(result)
                told(number, case, program, outcome)
                saved(outcomes)
    return outcomes
