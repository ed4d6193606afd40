"""Hours that the paper's runs would take on a machine: `python -m benchmarks hours RESULT [RESULT ...]`.

Each RESULT is what `python -m benchmarks stages` left on that machine: its folder, or the `stages.json` in it. Their
rates meet the work of `experiment=paper sweep=frontier`, which is composed and not run: hours are the model operations
of the work over the operations a second of the same kind of stage. `hours_work.py` says what the work is taken to be,
`hours_rates.py` which rate is taken. Leaves `table.md` and `results.json` in a folder under --out. Exit code 1 where a
stage that is needed was not measured.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import hours_rates, hours_work, results
from benchmarks.hours_rates import MEASURING, Results
from benchmarks.hours_table import REWARD, Line, assumptions, markdown, terminal, total, unmeasured
from benchmarks.hours_work import Work
from benchmarks.stages_work import Sizes
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError

EXPERIMENT, SWEEP = "paper", "frontier"
# Stages in which no model runs: their seconds are taken as they were measured.
PLAIN = ("data", "labelled")


# --- lines ------------------------------------------------------------------------------------------------------------


def lines(runs: Sequence[Run], shared: Sequence[tuple[str, Run]], found: Results, sizes: Sizes) -> list[Line]:
    """Every stage of every artifact and of every method's runs, in the order of the data flow.

    Args:
        runs: all of them.
        shared: `hours_work.artifacts` of them.
        found: the rates.
        sizes: of the model that the work is for.
    """
    made = []
    for stage in dict.fromkeys(stage for stage, _ in shared):
        users = [run for name, run in shared if name == stage]
        if stage in PLAIN:
            made.append(Line(stage, len(users), None, None, len(users) * found.each(stage)))
        else:
            works = [hours_work.of_artifact(stage, run, sizes) for run in users]
            made.append(_line(stage, works, found, users[0]))
    methods: dict[tuple[str, str], tuple[list[Work], Run]] = {}
    for run in runs:
        for work in hours_work.of_policy(run, sizes):
            key = (f"{run.algo}{f' ({run.variant})' if run.variant else ''}", work.stage)
            methods.setdefault(key, ([], run))[0].append(work)
    trained = [
        _line(f"{name}: {stage.rpartition(': ')[2]}", works, found, run)
        for (name, stage), (works, run) in methods.items()
    ]
    return [*made, *trained, *_reward(runs, [*made, *trained], found, sizes), *_around(runs, found)]


def _line(label: str, works: Sequence[Work], found: Results, run: Run) -> Line:
    """Works of one stage as a line."""
    known = [work.operations for work in works if work.operations is not None]
    operations = sum(known) if len(known) == len(works) else None
    amount, texts = sum(work.amount for work in works), sum(work.texts for work in works)
    whole = Work(works[0].stage, amount, works[0].unit, operations, texts)
    value = str(run.ppo.value) if isinstance(run, PPORun) and whole.stage == "ppo: training" else None
    rate = found.rate(whole.stage, hours_work.batch_of(whole.stage, asdict(run)), value)
    seconds = None if rate is None or operations is None else operations / rate.operations
    return Line(label, len(works), whole, rate, seconds, value)


def _reward(runs: Sequence[Run], others: Sequence[Line], found: Results, sizes: Sizes) -> Iterator[Line]:
    """The true reward, where it is a model here and was none where the stages were measured."""
    texts = sum(line.work.texts for line in others if line.work is not None)
    work = hours_work.of_true_reward(runs[0], sizes, texts)
    if work is not None and not found.reward_included:
        rate = found.rate(work.stage, None)
        seconds = None if rate is None or work.operations is None else work.operations / rate.operations
        yield Line(f"{REWARD} ({runs[0].reward.name})", 1, work, rate, seconds)


def _around(runs: Sequence[Run], found: Results) -> Iterator[Line]:
    """What a run takes beside its stages."""
    ends = "loading and results"
    known = [row.stage for row in found.stages if row.stage.endswith(f": {ends}")]
    seconds = 0.0
    for run in runs:
        mine = f"{run.algo}: {ends}"
        seconds += found.each(mine if mine in known or not known else known[0])
    yield Line(f"{ends} of a run", len(runs), None, None, seconds)
    start = found.each("start-up") + found.each("end of the process")
    yield Line("start and end of a process", len(runs), None, None, len(runs) * start)


# --- the command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks hours", description=(__doc__ or "").partition(":")[0] + "."
    )
    made.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="what `stages` left: a folder or file")
    results.add_folder(made)
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Work it out, print it, save it.

    Returns:
        0, or 1 where a stage that is needed was not measured.
    """
    given = list(sys.argv[1:] if words is None else words)
    parser = arguments()
    options = parser.parse_args(given)
    try:
        if not options.results:
            raise ConfigError(
                f"no result to read rates from: first run `{hours_rates.command('gpt2-large-random')}` with each of "
                f"{', '.join(f'`{words}`' for words in MEASURING.values())}; then give the folders that they save to"
            )
        measured = hours_rates.read(options.results)
        runs = hours_work.composed(hours_work.jobs_of([f"sweep={SWEEP}", f"experiment={EXPERIMENT}"]))
        sizes = hours_work.sizes_of(vars(runs[0].model))
        found = lines(runs, hours_work.artifacts(runs), measured, sizes)
        folder = results.new_folder(options)
    except (ConfigError, RunError) as error:
        parser.error(str(error))
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks", "hours", *given]),
        "commit": results.commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": measured.device,
    }
    rehearsed = measured.model if measured.model.endswith("-random") else f"{runs[0].model.name}-random"
    missing, below = unmeasured(found, rehearsed), assumptions(runs, measured, sizes, found)
    head = (
        f"{len(runs)} runs of experiment={EXPERIMENT}, sweep={SWEEP}, on {measured.device}: {total(found)} one after "
        "the other."
    )
    below += [f"Rates of `{command}`." for command in measured.commands]
    _save(folder, facts, measured, found, markdown(head, found, [*missing, *below]), missing, below)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(head, highlight=False, markup=False)
    console.print(terminal(found))
    for sentence in (*missing, *below):
        console.print(
            f"- {sentence}", soft_wrap=True, highlight=False, markup=False, style="red" if sentence in missing else None
        )
    console.print(f"saved: {folder / 'table.md'}, {folder / 'results.json'}", soft_wrap=True)
    return int(bool(missing))


def _save(
    folder: Path,
    facts: Mapping[str, Any],
    measured: Results,
    found: Sequence[Line],
    text: str,
    missing: Sequence[str],
    below: Sequence[str],
) -> None:
    known = [line.seconds for line in found if line.seconds is not None]
    whole = {
        **facts,
        "measured": {
            "model": measured.model,
            **asdict(measured.sizes),
            "commits": measured.commits,
            "commands": measured.commands,
        },
        "rows": [asdict(line) for line in found],
        "hours": sum(known) / 3600,
        "not_measured": list(missing),
        "assumed": list(below),
    }
    results.write(folder, {"results.json": json.dumps(whole, indent=1) + "\n", "table.md": text})
