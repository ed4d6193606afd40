"""Where the time of an experiment goes: `python -m benchmarks stages [key=value ...] [--sweep] [options]`.

Runs `python train.py [key=value ...]` cold, in an outputs folder of its own, and with --sweep `python train.py -m
sweep=frontier` in another. Beside each stage's seconds is what is left to win: the time above that of its model
operations at the machine's matrix-product peak. Exit code 1 if train.py fails.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks import results
from benchmarks.account import CONSOLE, Account, read_account
from benchmarks.harness import ROOT, Job, Machine, run_all
from benchmarks.results import duration, number, percent
from imdb_rlhf.artifacts.files import atomic_write

SMALL = 1e-3  # rows of a smaller share of the whole, and without a model, are not worth a line
Peaks = dict[tuple[str, int | None], float]  # precision and threads -> operations per second of matrix products
HEAD = ("stage", "times", "time", "share", "rate", "work", "of peak", "left to win")
EXPLAINED = (
    "Work is model operations; of peak is that work over the time and the matrix-product peak measured in the same "
    "run, in the stage's precision and threads. Left to win is the time above that of the work at the peak (all of it "
    "where no model runs): a bound that nothing reaches."
)


def run(words: Sequence[str], outputs: Path, console: Console) -> int:
    """Run train.py into a new folder and keep every line of its console with its time; returns its exit code."""
    outputs.mkdir(parents=True)
    quoted = str(outputs.resolve()).replace("'", "\\'")  # Hydra's grammar
    command = [sys.executable, "train.py", *words, f"paths.outputs='{quoted}'"]
    environment = {"WANDB_MODE": "offline", **os.environ, "PYTHONUNBUFFERED": "1"}  # no time of a network
    console.print(f"$ python {shlex.join(command[1:])}", markup=False, soft_wrap=True)
    lines: list[tuple[float, str]] = []
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line.rstrip("\n")))
            console.print(f"{lines[-1][0]:8.1f} s  {lines[-1][1]}", markup=False, soft_wrap=True)
        code = process.wait()
    saved = {"command": command[1:], "code": code, "wall": time.perf_counter() - began, "lines": lines}
    atomic_write(outputs / CONSOLE, json.dumps(saved, indent=1))
    return code


def peaks(accounts: Sequence[Account], machine: Machine, sizes: Sequence[int]) -> Peaks:
    """The peaks of every precision and number of threads that a stage had, by products of some sizes (default: 3)."""
    needed = dict.fromkeys((p["precision"], p["threads"]) for a in accounts for p in a.parts if p["operations"])
    known: Peaks = {}
    for precision, threads in needed:
        options = {"precision": precision, "sizes": list(sizes), "threads": threads or machine.threads}
        job = Job(f"peak of {precision}", "peak.products", options, 20 if precision == "bf16" else 5)
        for _, record in run_all([job], machine, results.console()):
            if not isinstance(record, str):
                known[precision, threads] = record.work / float(np.median(record.seconds))
    return known


def rows(account: Account, known: Peaks) -> list[dict[str, Any]]:
    """The account's rows with their share of the whole, their rate and share of the peak, and what is left to win.

    Returns:
        dicts of an `Account` row's columns and `share`, `rate` (units per second), `of_peak`, `left` (seconds above
        those of the operations at the peak).
    """
    frame = account.rows()
    whole = account.slots * account.wall
    machines = [(p, None if pd.isna(t) else int(t)) for p, t in zip(frame["precision"], frame["threads"], strict=True)]
    at_peak = frame["operations"].astype(float) / [known.get(machine, np.nan) for machine in machines]
    seconds = frame["seconds"].where(frame["seconds"] > 0)
    frame["share"] = frame["seconds"] / whole
    frame["rate"] = frame["amount"].astype(float) / seconds
    frame["of_peak"] = at_peak / seconds
    frame["left"] = frame["seconds"] - at_peak.fillna(0.0)
    frame = frame[frame["operations"].notna() | (frame["seconds"].abs() >= SMALL * whole)]
    known_or_none = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known_or_none.to_dict("records")]


def markdown(title: str, account: Account, lines: Sequence[Mapping[str, Any]]) -> str:
    """An account as Markdown."""
    beside = f", {account.slots} runs side by side; shares are of all slots" if account.slots > 1 else ""
    head = f"{len(account.runs)} runs in {duration(account.wall)}{beside}."
    best = sorted((line for line in lines if line["left"] > 0), key=lambda line: -line["left"])[:3]
    most = ", ".join(f"{line['stage']} {duration(line['left'])}" for line in best)
    body = [
        [
            line["stage"],
            str(line["count"]),
            duration(line["seconds"]),
            percent(line["share"]),
            number(line["rate"], f" {line['unit']}/s"),
            "" if line["operations"] is None else f"{line['operations'] / 1e12:,.3g} T ({line['precision']})",
            percent(line["of_peak"]),
            duration(line["left"]),
        ]
        for line in lines
    ]
    return f"## {title}\n\n{head} Most is left to win in: {most}.\n\n{results.table(HEAD, body)}"


def main(words: Sequence[str]) -> int:
    """Run, account, print, save; returns 0, or 1 if train.py failed."""
    parser = results.parser_of("stages", __doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for train.py; none is its default run")
    parser.add_argument("--sweep", nargs="?", const="frontier", metavar="NAME", help="run sweep=NAME too (frontier)")
    parser.add_argument("--peak-sizes", type=int, nargs="+", default=(), help="of the products whose peak is measured")
    options = parser.parse_args(words)
    wrong = next((word for word in options.overrides if "=" not in word), None)
    if wrong is not None:
        parser.error(f"{wrong!r} is not of the form key=value")
    result, accounts = results.Result(parser, options, ["stages", *words]), {}
    overrides = [*options.overrides] + ([] if options.device == "auto" else [f"trainer.device={options.device}"])
    commands = {"run": overrides}
    if options.sweep:
        commands["sweep"] = ["-m", f"sweep={options.sweep}", *overrides]
    for name, command in commands.items():
        folder = result.folder / name
        code = run(command, folder, results.console())
        if code:
            print(f"error: train.py ended with exit code {code}; {folder / CONSOLE} has its lines", file=sys.stderr)
            return 1
        accounts[f"python train.py {shlex.join(command)}".strip()] = read_account(folder)
    _save(result, accounts, options.peak_sizes)
    return 0


def _save(result: results.Result, accounts: Mapping[str, Account], sizes: Sequence[int]) -> None:
    known = peaks(list(accounts.values()), result.machine, sizes)
    listed = [{"command": title, "rows": rows(account, known), **vars(account)} for title, account in accounts.items()]
    peak = ", ".join(f"{number(v)}/s {p} on {t or 'all'} threads" for (p, t), v in known.items()) or "not measured"
    head = f"{result.facts['device']}, commit {result.facts['commit']}; matrix-product peak: {peak}"
    parts = [markdown(title, account, rows(account, known)) for title, account in accounts.items()]
    text = "\n\n".join(["# Stages", head, EXPLAINED, *parts])
    result.save(text, peaks=[[*machine, peak] for machine, peak in known.items()], accounts=listed)
    result.show(text)
