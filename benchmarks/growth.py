"""What grows faster than the work? `python -m benchmarks growth [--points few] [options]`.

The time of a DPO step, of sampling and of an evaluation, along one axis at a time around a base point: batch, tokens of
a completion, entries of the vocabulary, size of the model. Every point is a process of its own. Beside the times stand
the model operations that a point needs (`flops.py`), beside those what memory log-probs and the exact KL take over
tokens and vocabulary. Leaves `growth.md`, `growth.json`, `growth.svg` and `growth.png` in a folder under --out.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import growth_figure, growth_table, results
from benchmarks.harness import Machine, run_program
from benchmarks.programs.record import Record
from benchmarks.workload import GPT2_VOCABULARY
from imdb_rlhf.errors import ConfigError

TASKS = ("dpo", "generate", "evaluate")
# Layers, width, heads.
MODELS = {
    "toy": (1, 32, 2),
    "tiny": (2, 160, 4),
    "mini": (4, 256, 4),
    "small": (6, 384, 6),
    "gpt2": (12, 768, 12),
}


@dataclass(frozen=True)
class Point:
    """What is measured at once.

    Attributes:
        batch: pairs, prompts or samples.
        completion: tokens.
        vocabulary: entries.
        model: a name of MODELS.
    """

    batch: int
    completion: int
    vocabulary: int
    model: str

    @property
    def parameters(self) -> int:
        """Weights of the model's matrices."""
        layers, width, _ = MODELS[self.model]
        return 12 * layers * width**2 + self.vocabulary * width


AXES = ("batch", "completion", "vocabulary", "model")


@dataclass(frozen=True)
class Plan:
    """Which points are measured.

    Attributes:
        base: that every axis runs through.
        values: of each axis, rising.
        context: of all models.
        tokens, vocabularies: the grid over which memory is measured.
    """

    base: Point
    values: dict[str, tuple[Any, ...]]
    context: int
    tokens: tuple[int, ...]
    vocabularies: tuple[int, ...]

    def along(self, axis: str) -> list[Point]:
        """The points of an axis."""
        return [replace(self.base, **{axis: value}) for value in self.values[axis]]

    def points(self) -> list[Point]:
        """All points, the base first, none twice."""
        return list(dict.fromkeys([self.base, *(point for axis in AXES for point in self.along(axis))]))


PLANS = {
    "all": Plan(
        Point(64, 48, GPT2_VOCABULARY, "mini"),
        {
            "batch": (16, 32, 64, 128, 256, 512),
            "completion": (16, 48, 128, 256),
            "vocabulary": (1024, 4096, 16_384, GPT2_VOCABULARY),
            "model": ("tiny", "mini", "small", "gpt2"),
        },
        context=512,
        tokens=(512, 2048, 8192),
        vocabularies=(1024, 4096, 16_384, GPT2_VOCABULARY),
    ),
    "few": Plan(
        Point(64, 48, GPT2_VOCABULARY, "mini"),
        {
            "batch": (16, 64, 256),
            "completion": (16, 48, 128),
            "vocabulary": (1024, 8192, GPT2_VOCABULARY),
            "model": ("tiny", "mini", "small"),
        },
        context=512,
        tokens=(512, 4096),
        vocabularies=(1024, GPT2_VOCABULARY),
    ),
    "toy": Plan(
        Point(12, 8, 300, "toy"),
        {"batch": (6, 12), "completion": (4, 8), "vocabulary": (300, 600), "model": ("toy", "tiny")},
        context=64,
        tokens=(1024, 8192),  # more numbers than a block of logits holds, or one block would be all of them
        vocabularies=(4096, 16_384),
    ),
}


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A process: a program, its options, and what it measures."""

    module: str
    options: tuple[str, ...]
    task: str
    point: Point | None = None


def jobs(plan: Plan, tasks: Sequence[str]) -> Iterator[Job]:
    """All processes, point after point, the tasks in turn: what is compared ran minutes apart."""
    for point in plan.points():
        sizes = dict(zip(("layers", "width", "heads"), MODELS[point.model], strict=True))
        sizes |= {"vocabulary": point.vocabulary, "context": plan.context}
        sizes |= {"batch": point.batch, "new": point.completion}
        words = tuple(word for name, value in sizes.items() for word in (f"--{name}", str(value)))
        for task in tasks:
            yield Job("growth_time", ("--task", task, *words), task, point)
    for task in ("token_logprobs", "compare"):
        yield _memory(task, plan.tokens, plan.vocabularies)
        for vocabulary in (plan.vocabularies[0], plan.vocabularies[-1]):
            for tokens in (plan.tokens[0], plan.tokens[-1]):
                yield _memory(task, (tokens,), (vocabulary,))


def _memory(task: str, tokens: Sequence[int], vocabularies: Sequence[int]) -> Job:
    words = ("--tokens", *map(str, tokens), "--vocabulary", *map(str, vocabularies))
    return Job("growth_memory", ("--task", task, "--precision", "float32", *words), task)


def measure(plan: Plan, tasks: Sequence[str], machine: Machine, repetitions: int, console: Console) -> dict[str, Any]:
    """Run everything under a line that says what runs now.

    Returns:
        "times": dicts with task, point, seconds (a repetition each), operations, above (bytes), precision, failure;
        "memory": dicts with task, tokens, vocabulary, logits, above, largest, and process where it was measured;
        "failures": what failed of the memory's programs, in a line each.
    """
    found: dict[str, Any] = {"times": [], "memory": [], "failures": []}
    every = list(jobs(plan, tasks))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("", total=None)
        for number, job in enumerate(every, 1):
            name = f"{job.task} {' '.join(job.options[2:])}"
            progress.update(line, description=f"{number} of {len(every)}: {name}")
            # no workload: models and inputs are random numbers of the program's own
            result = run_program(job.module, Path(), machine, job.options, repetitions)
            if job.point is None:
                _take_memory(found, job, result)
            else:
                found["times"].append(_time(job, result))
            if isinstance(result, str):
                progress.console.print(f"{name}: FAILED: {result}", highlight=False)
    return found


def _time(job: Job, result: Record | str) -> dict[str, Any]:
    assert job.point is not None
    common = {"task": job.task, "point": asdict(job.point) | {"parameters": job.point.parameters}}
    if isinstance(result, str):
        return common | {"failure": result}
    facts = result.facts
    known = {name: facts[name] for name in ("operations", "above", "precision")}
    return common | {"failure": None, "seconds": result.seconds, "threads": result.threads} | known


def _take_memory(found: dict[str, Any], job: Job, result: Record | str) -> None:
    """A grid's points as they are; a single point's process beside the one of the grid."""
    if isinstance(result, str):
        found["failures"].append(f"{job.task} {' '.join(job.options[2:])}: {result}")
        return
    for point in result.facts["points"]:
        same = [
            row
            for row in found["memory"]
            if (row["task"], row["tokens"], row["vocabulary"]) == (job.task, point["tokens"], point["vocabulary"])
        ]
        if same:
            same[0]["process"] = point.get("process")
        else:
            found["memory"].append({"task": job.task} | point)


# --- the command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks growth", description=(__doc__ or "").partition("\n")[0].partition("`")[0]
    )
    made.add_argument("--points", choices=list(PLANS), default="all", help="few is quicker; toy tries the command")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    made.add_argument("--repetitions", type=int, default=3, help="of each point, after one that is not counted")
    results.add_machine(made)
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the tables, save them with the picture.

    Returns:
        0, or 1 where a program failed.
    """
    given = list(sys.argv[1:] if words is None else words)
    parser = arguments()
    options = parser.parse_args(given)
    if options.repetitions < 1:
        parser.error(f"--repetitions={options.repetitions} measures nothing; give at least 1")
    try:
        machine = results.machine_of(options, results.STORE)
        folder = results.new_folder(options)
    except ConfigError as error:
        parser.error(str(error))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    plan = PLANS[options.points]
    facts = results.facts_of(["growth", *given], machine)
    measured = measure(plan, options.tasks, machine, options.repetitions, console)
    summary = growth_table.summary(measured, asdict(plan.base), AXES)
    text = growth_table.markdown(summary, facts)
    results.write(
        folder,
        {
            "growth.json": json.dumps(facts | {"summary": summary, **measured}, indent=1) + "\n",
            "growth.md": text,
        },
    )
    names = ["growth.md", "growth.json"]
    if summary["rows"]:
        growth_figure.draw(summary, folder / "growth.svg", folder / "growth.png")
        names += ["growth.svg", "growth.png"]
    console.print(Markdown(text))
    console.print(f"saved: {', '.join(str(folder / name) for name in names)}", soft_wrap=True)
    return int(bool(summary["failures"]))
