"""Where the time of an experiment goes: `python -m benchmarks stages [key=value ...] [--sweep] [options]`.

Runs `python train.py [key=value ...]` cold, in an outputs folder of its own, and with --sweep `python train.py -m
sweep=frontier` in another; beside each stage's seconds stands what the machine's matrix-product peak would have made of
its model operations: what is left to win. --outputs DIR reads a run or a sweep that is there and runs nothing.
Leaves `stages.md` and `stages.json` in a folder under --out.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import results
from benchmarks.growth_table import duration
from benchmarks.harness import ROOT, Machine, run_program
from benchmarks.stages_account import CONSOLE, Account, Row, account
from imdb_rlhf.errors import ConfigError

# Rows that take a thousandth of the whole, and no model, are not worth a line.
SMALL = 1e-3


def run(words: Sequence[str], outputs: Path, console: Console) -> int:
    """Run train.py and keep what it says with the time of each line.

    Args:
        words: of its command line.
        outputs: its folder, made here.
        console: told the lines too.

    Returns:
        Its exit code.
    """
    outputs.mkdir(parents=True)
    command = [sys.executable, "train.py", *words, f"paths.outputs={_quoted(outputs.resolve())}"]
    console.print(f"$ python {shlex.join(command[1:])}", highlight=False, markup=False, soft_wrap=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("WANDB_MODE", "offline")  # no time of a network
    lines: list[tuple[float, str]] = []
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line.rstrip("\n")))
            console.print(f"{lines[-1][0]:8.1f} s  {lines[-1][1]}", highlight=False, markup=False, soft_wrap=True)
        code = process.wait()
    kept = {"command": command[1:], "code": code, "wall": time.perf_counter() - began, "lines": lines}
    results.write(outputs, {CONSOLE: json.dumps(kept, indent=1)})
    return code


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + str(path).replace("'", "\\'") + "'"


# --- the table --------------------------------------------------------------------------------------------------------


def peaks(
    accounts: Sequence[Account], machine: Machine, sizes: Sequence[int], console: Console
) -> dict[tuple[str, int | None], float]:
    """The matrix-product peak, operations a second, of every precision and number of threads that a stage had.

    Args:
        accounts: whose rows say what is needed.
        machine: device and time limit.
        sizes: of the products; none are the device's own.
        console: told what failed; shares of it stay empty.
    """
    found = {}
    for precision, threads in dict.fromkeys((r.precision, r.threads) for a in accounts for r in a.rows if r.operations):
        if precision is None:
            continue
        words = ["--precision", precision] + ([] if threads is None else ["--threads", str(threads)])
        words += ["--sizes", *map(str, sizes)] if sizes else []
        record = run_program("peak", Path(), machine, words, 20 if precision == "bf16" else 5)
        if isinstance(record, str):
            console.print(f"the peak of {precision} is not known: {record}", highlight=False)
        else:
            found[precision, threads] = record.work / statistics.median(record.seconds)
    return found


def rows(found: Account, known: Mapping[tuple[str, int | None], float]) -> list[dict[str, Any]]:
    """The account's rows with their share of the whole, of the peak, and what is left to win.

    Returns:
        dicts of a Row's fields and `share`, `rate` (units a second), `of_peak`, `left` (seconds above those that the
        operations would take at the peak).
    """
    whole = found.slots * found.wall if found.wall is not None else sum(row.seconds for row in found.rows)
    return [_row(row, whole, known) for row in found.rows if row.operations or abs(row.seconds) >= SMALL * whole]


def _row(row: Row, whole: float, known: Mapping[tuple[str, int | None], float]) -> dict[str, Any]:
    peak = known.get((row.precision or "", row.threads))
    at_peak = None if peak is None or row.operations is None else row.operations / peak
    return asdict(row) | {
        "share": row.seconds / whole,
        "rate": None if row.amount is None or row.seconds <= 0 else row.amount / row.seconds,
        "of_peak": None if at_peak is None or row.seconds <= 0 else at_peak / row.seconds,
        "left": row.seconds if at_peak is None else row.seconds - at_peak,
    }


HEAD = ("stage", "times", "time", "share", "rate", "work", "of peak", "left to win")


def markdown(title: str, found: Account, lines: Sequence[Mapping[str, Any]]) -> str:
    """An account as Markdown."""
    total = sum(line["seconds"] for line in lines)
    if found.wall is None:
        head = f"{found.runs} runs, {duration(total)} in all; the command was not timed, so start-up is not in it."
    elif found.slots > 1:
        head = f"{found.runs} runs in {duration(found.wall)}, {found.slots} side by side; shares are of all together."
    else:
        head = f"{duration(found.wall)} in all."
    best = sorted((line for line in lines if line["left"] > 0), key=lambda line: -line["left"])[:3]
    most = ", ".join(f"{line['stage']} {duration(line['left'])}" for line in best)
    body = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *map(_cells, lines)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in body)
    return f"## {title}\n\n{head} Most is left to win in: {most}.\n\n{table}\n"


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    machine = "" if line["precision"] is None else f" ({line['precision']})"
    return (
        line["stage"],
        str(line["count"]),
        duration(line["seconds"]),
        f"{100 * line['share']:.1f} %",
        "" if line["rate"] is None else f"{line['rate']:,.3g} {line['unit']}/s" if line["rate"] < 1000 else _many(line),
        "" if line["operations"] is None else f"{line['operations'] / 1e12:,.3g} T{machine}",
        "" if line["of_peak"] is None else f"{100 * line['of_peak']:.1f} %",
        duration(line["left"]),
    )


def _many(line: Mapping[str, Any]) -> str:
    return f"{line['rate']:,.0f} {line['unit']}/s"


EXPLAINED = (
    "Work is model operations; of peak is that work over time and the matrix-product peak measured in the same run, in "
    "the stage's precision and threads. Left to win is the time above what the work would take at the peak (all of it "
    "where no model runs): a bound that nothing reaches. Evaluations within a policy's training are told from its "
    "steps by the times in metrics.jsonl."
)


# --- the command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks stages", description=(__doc__ or "").partition(":")[0] + "."
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="for train.py; none is its default run")
    made.add_argument("--sweep", nargs="?", const="frontier", metavar="NAME", help="run sweep=NAME too (frontier)")
    made.add_argument("--outputs", type=Path, help="read the runs of this folder instead of running anything")
    made.add_argument("--peak-sizes", type=int, nargs="+", default=(), help="of the products whose peak is measured")
    results.add_result(made)
    made.set_defaults(precision="bf16", threads=None, timeout=600.0)  # of the peak alone, and each stage has its own
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run, account, print, save.

    Returns:
        0, or 1 where train.py failed.
    """
    given = list(sys.argv[1:] if words is None else words)
    parser = arguments()
    options = parser.parse_args(given)
    wrong = next((word for word in options.overrides if "=" not in word), None)
    if wrong is not None:
        parser.error(f"{wrong!r} is not of the form key=value")
    if options.outputs and (options.sweep or options.overrides):
        parser.error("--outputs reads what is there: leave --sweep and key=value out")
    try:
        machine = results.machine_of(options, results.STORE)
        before = account(options.outputs) if options.outputs else None
        folder = results.new_folder(options)
    except ConfigError as error:
        parser.error(str(error))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    accounts = {f"{options.outputs}": before} if before else {}
    facts = results.facts_of(["stages", *given], machine)
    del facts["precision"], facts["threads"]  # each stage has its own
    for name, command in _commands(options).items():
        code = run(command, folder / name, console)
        if code:
            print(
                f"error: train.py ended with exit code {code}; {folder / name / CONSOLE} has its lines", file=sys.stderr
            )
            return 1
        accounts[f"python train.py {shlex.join(command)}".strip()] = account(folder / name)
    _save(folder, facts, accounts, peaks(list(accounts.values()), machine, options.peak_sizes, console), console)
    return 0


def _commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Folder -> words for train.py."""
    if options.outputs:
        return {}
    words = [*options.overrides] + ([] if options.device == "auto" else [f"trainer.device={options.device}"])
    found = {"run": words}
    if options.sweep:
        found["sweep"] = ["-m", f"sweep={options.sweep}", *words]
    return found


def _save(
    folder: Path,
    facts: Mapping[str, Any],
    accounts: Mapping[str, Account],
    known: Mapping[tuple[str, int | None], float],
    console: Console,
) -> None:
    tables = {title: rows(found, known) for title, found in accounts.items()}
    measured = [{"precision": p, "threads": t, "operations_a_second": peak} for (p, t), peak in known.items()]
    words = ", ".join(f"{peak / 1e12:.3g} T/s {precision}, {_threads(t)}" for (precision, t), peak in known.items())
    head = f"{facts['device']}, commit {facts['commit']}; matrix-product peak: {words or 'not measured'}"
    parts = [markdown(title, accounts[title], lines) for title, lines in tables.items()]
    text = "\n\n".join(["# Stages", head, EXPLAINED, *parts])
    listed = [
        {"command": title, "wall": found.wall, "slots": found.slots, "runs": found.runs, "rows": tables[title]}
        for title, found in accounts.items()
    ]
    whole = {**facts, "peaks": measured, "accounts": listed}
    results.write(folder, {"stages.json": json.dumps(whole, indent=1) + "\n", "stages.md": text})
    console.print(Markdown(text))
    console.print(f"saved: {folder / 'stages.md'}, {folder / 'stages.json'}", soft_wrap=True)


def _threads(threads: int | None) -> str:
    return "all threads" if threads is None else f"{threads} thread" + ("" if threads == 1 else "s")
