"""Ours and the peers in one run: `python -m benchmarks [peak dpo generate ppo sft] [options]`.

`growth` (`growth.py`), `stages` (`stages.py`) and `hours` (`hours.py`) in their place have options of their own.
Leaves `table.md` and `results.json` (every single timing, versions, device, threads, commit, command) in a folder of
its own under --out. Exit code 1 where a program failed or two that should agree do not.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import environments, growth, hours, plan, results, stages, table, workload
from benchmarks.harness import ROOT, Machine, Outcome, measure
from benchmarks.results import STORE
from imdb_rlhf.errors import ConfigError, RunError

OTHERS = {"growth": growth.main, "stages": stages.main, "hours": hours.main}
SHARED = ROOT.parent / "shared"
GENERATED = "generated"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("measurements", nargs="*", help=f"some of {', '.join(plan.MEASUREMENTS)}; none is all")
    made.add_argument("--shapes", nargs="+", default=["mini", "gpt2"], choices=list(workload.SHAPES))
    made.add_argument(
        "--pairs",
        nargs="+",
        default=["prefix", "shuffled"],
        choices=["prefix", "shuffled"],
        help="prefix: of the first groups, always; shuffled: ours with pairs of many groups too",
    )
    made.add_argument("--rounds", type=int, default=3, help="fresh processes of each program")
    made.add_argument("--peers", choices=["yes", "no"], default="yes", help="no leaves the peers out")
    made.add_argument("--activation", choices=["gelu_new", "gelu_pytorch_tanh"], help="another name of GPT-2's GELU")
    made.add_argument("--data", help=f"folder of real reviews, or `{GENERATED}`; default: ../shared/imdb if there")
    made.add_argument("--tokenizer", type=Path, help="folder of GPT-2's; default: ../shared/gpt2-tokenizer if there")
    results.add_machine(made)
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, save it.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if words is None else words)
    if given and given[0] in OTHERS:
        return OTHERS[given[0]](given[1:])
    parser = arguments()
    options = parser.parse_args(given)
    unknown = [name for name in options.measurements if name not in plan.MEASUREMENTS]
    if unknown:
        parser.error(f"no measurement {unknown[0]!r}; there are {', '.join(plan.MEASUREMENTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} measures nothing; give at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a log is as wide as it is made
    try:
        machine = results.machine_of(options, STORE)
        source = source_of(options)
        folder = results.new_folder(options)
    except ConfigError as error:
        parser.error(str(error))
    cases = cases_of(options)
    try:
        folders = {
            shape.name: workload.make(shape, source, STORE / "workloads")
            for shape in dict.fromkeys(case.shape for case in cases)
        }
    except RunError as error:
        folder.rmdir()
        print(f"error: {error}", file=sys.stderr)
        return 1
    facts = results.facts_of(given, machine) | {"texts": source.words}
    pythons = pythons_of(cases, console)
    facts["versions"] |= {
        name: dict(environments.versions(python)) for name, python in pythons.items() if isinstance(python, Path)
    }
    outcomes = _measure(cases, options.rounds, machine, folders, pythons, folder, facts, console)
    found = table.rows(outcomes)
    console.print(table.terminal(found, console.width))
    console.print(f"saved: {folder / 'table.md'}, {folder / 'results.json'}")
    return int(any(row.rate is None or row.agrees is False for row in found))


def _measure(
    cases: Sequence[plan.Case],
    rounds: int,
    machine: Machine,
    folders: Mapping[str, Path],
    pythons: Mapping[str, Path | str],
    folder: Path,
    facts: dict[str, Any],
    console: Console,
) -> list[Outcome]:
    """Run everything under a line that says what runs now; save after every program."""
    total, done = rounds * sum(len(case.programs) for case in cases), 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def told(number: int, case: plan.Case, program: plan.Program, outcome: Outcome | None) -> None:
            nonlocal done
            name = f"{case.measurement} {case.shape.name}, {program.label}, round {number} of {rounds}"
            if outcome is None:
                progress.update(task, description=f"{done + 1} of {total}: {name}")
                return
            done += 1
            row = next(row for row in table.rows([outcome]))
            progress.console.print(f"{name}: {row.note if row.rate is None else table.cells(row)[3]}", highlight=False)

        return measure(
            cases, rounds, machine, folders, pythons, told, lambda outcomes: save(folder, outcomes, facts, machine)
        )


def save(folder: Path, outcomes: Sequence[Outcome], facts: Mapping[str, Any], machine: Machine) -> None:
    """Write `table.md` and `results.json`, whole each time."""
    found = table.rows(outcomes)
    names = [o.records[0].facts["device"] for o in outcomes if o.records and "device" in o.records[0].facts]
    known = {**facts, "device": names[0] if names else facts["device"]}
    programs = [
        {
            "measurement": outcome.case.measurement,
            "shape": asdict(outcome.case.shape),
            "program": outcome.program.label,
            "module": outcome.program.module,
            "options": outcome.program.options,
            "failure": outcome.failure,
            "rounds": [asdict(record) for record in outcome.records],
        }
        for outcome in outcomes
    ]
    result = {**known, "rows": [asdict(row) for row in found], "programs": programs}
    head = (
        f"{known['device']}, {machine.threads} threads, {machine.precision}, {known['texts']}, commit {known['commit']}"
    )
    texts = {"results.json": json.dumps(result, indent=1), "table.md": f"{head}\n\n{table.markdown(found)}"}
    results.write(folder, texts)


def source_of(options: argparse.Namespace) -> workload.Source:
    """Real reviews where they are, generated ones elsewhere.

    Raises:
        ConfigError: a folder that is named is not there.
    """
    named = {"--data": None if options.data == GENERATED else options.data, "--tokenizer": options.tokenizer}
    for name, path in named.items():
        if path is not None and not Path(path).is_dir():
            raise ConfigError(f"{name}={path} is no folder; give one that is there, or leave it out")
    if options.data == GENERATED:
        return workload.Source(None, options.tokenizer)
    reviews = Path(options.data) if options.data else SHARED / "imdb"
    tokenizer = options.tokenizer or SHARED / "gpt2-tokenizer"
    return workload.Source(reviews if reviews.is_dir() else None, tokenizer if tokenizer.is_dir() else None)


def cases_of(options: argparse.Namespace) -> list[plan.Case]:
    """What the command line asks for, without the peers if so."""
    found = plan.cases(options.measurements or plan.MEASUREMENTS, dict.fromkeys(options.shapes), options.pairs)
    found = [
        plan.Case(case.measurement, workload.with_activation(case.shape, options.activation), case.programs)
        for case in found
    ]
    if options.peers == "yes":
        return found
    return [
        plan.Case(case.measurement, case.shape, tuple(program for program in case.programs if program.ours))
        for case in found
    ]


def pythons_of(cases: Sequence[plan.Case], console: Console) -> dict[str, Path | str]:
    """The interpreters of the environments that the cases need; a text is why one could not be made."""
    needed = {program.environment for case in cases for program in case.programs if program.environment}
    found: dict[str, Path | str] = {}
    for name in sorted(needed):
        try:
            found[name] = environments.make(environments.peers()[name], STORE, console.print)
        except environments.EnvironmentFailed as error:
            found[name] = f"its environment could not be made: {error}"
    return found


if __name__ == "__main__":
    sys.exit(main())
