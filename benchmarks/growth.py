"""What grows faster than the work? `python -m benchmarks growth [--points few] [options]`.

Times a DPO step, sampling and an evaluation along one axis at a time through a base point, every point in a process of
its own, beside its model operations; counts the memory of log-probs and of the exact KL over tokens and vocabulary.
Leaves a picture beside the table. Exit code 1 if a program failed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import results, workload
from benchmarks.harness import STORE, Job, Machine, run_all
from benchmarks.programs import memory
from benchmarks.results import duration, number
from benchmarks.workload import GPT2_VOCABULARY

TASKS = {"dpo": "DPO step", "generate": "generation", "evaluation": "evaluation"}
AXES = {"batch": "batch", "completion": "completion tokens", "vocabulary": "vocabulary", "model": "model"}
MODELS = {"tiny": (2, 160, 4)} | {n: (s.layers, s.width, s.heads) for n, s in workload.SHAPES.items()}
PROMPT = 5  # tokens; all rows are of one length, so that a point is a size and no mixture of sizes
FASTER = 1.1  # slope of log time over log work from which a time grows faster than the work; timings are noisy
PRODUCT = 0.4  # bytes per token and entry from which memory grows with their product: a tenth of float32 logits


@dataclass(frozen=True)
class Point:
    """The sizes that are measured at once: pairs (prompts, samples), tokens, entries, a name in MODELS."""

    batch: int
    completion: int
    vocabulary: int
    model: str


@dataclass(frozen=True)
class Plan:
    """The points that are measured: on every axis its values (in the order of AXES, rising) around the base.

    All models have one context length; memory is counted over the grid of tokens and vocabularies.
    """

    base: Point
    values: tuple[tuple[Any, ...], ...]
    context: int
    tokens: tuple[int, ...]
    vocabularies: tuple[int, ...]

    def points(self) -> list[Point]:
        """All points, the base first, none twice."""
        along = zip(AXES, self.values, strict=True)
        return list(dict.fromkeys([self.base, *(replace(self.base, **{a: v}) for a, values in along for v in values)]))


BASE, VOCABULARIES = Point(64, 48, GPT2_VOCABULARY, "mini"), (1024, 4096, 16_384, GPT2_VOCABULARY)
SIZES = (16, 32, 64, 128, 256, 512), (16, 48, 128, 256), VOCABULARIES, ("tiny", "mini", "small", "gpt2")
FEW = (16, 64, 256), (16, 48, 128), (1024, 8192, GPT2_VOCABULARY), ("tiny", "mini", "small")
TOY = (6, 12), (4, 8), (300, 600), ("toy", "tiny")
PLANS = {
    "all": Plan(BASE, SIZES, 512, (512, 2048, 8192), VOCABULARIES),
    "few": Plan(BASE, FEW, 512, (512, 4096), (1024, GPT2_VOCABULARY)),
    # memory: more numbers than a block of logits holds, or one block would be all of them
    "toy": Plan(Point(12, 8, 300, "toy"), TOY, 64, (1024, 8192), (4096, 16_384)),
}


def measure(plan: Plan, tasks: Sequence[str], repetitions: int, machine: Machine) -> dict[str, Any]:
    """Run every point and the memory's grids.

    Returns:
        "times": dicts of `task`, the point's sizes, `parameters` (weights of its matrices), `seconds` (of each
        repetition) and `operations`; "memory": of `task`, `tokens`, `vocabulary`, `above` (bytes); "failures": lines.
    """
    jobs, known = list[Job](), dict[str, dict[str, Any]]()
    for point in plan.points():
        layers, width, heads = MODELS[point.model]
        shape = workload.Shape(layers, width, heads, point.vocabulary, plan.context)
        data = workload.Data(point.batch, point.completion, PROMPT, PROMPT)
        folder = workload.make(shape, data, STORE / "workloads")
        row = asdict(point) | {"parameters": 12 * layers * width**2 + point.vocabulary * width}
        for task in tasks:
            options: dict[str, Any] = {} if task == "dpo" else {"batch": point.batch, "new": point.completion}
            jobs.append(Job(f"{task} {point}", f"package.{task}", options, repetitions, folder))
            known[jobs[-1].label] = {"task": task} | row
    for task in memory.TASKS:
        options = {"task": task, "tokens": plan.tokens, "vocabularies": plan.vocabularies}
        jobs.append(Job(f"memory of {task}", "memory.grid", options))
    measured: dict[str, Any] = {"times": [], "memory": [], "failures": []}
    for job, outcome in run_all(jobs, machine, results.console()):
        if isinstance(outcome, str):
            measured["failures"].append(f"{job.label}: {outcome}")
        elif job.label in known:
            times = {"seconds": outcome.seconds, "operations": outcome.operations}
            measured["times"].append(known[job.label] | times)
        else:
            measured["memory"] += [{"task": job.options["task"], **values} for values in outcome.facts["points"]]
    return measured


def along_axes(times: Sequence[dict[str, Any]], base: Point) -> pd.DataFrame:
    """A row per task, axis and value: the points that differ from the base in that axis alone, rising.

    Columns beyond those of `times`: axis, value, x (a number), base (whether it is the base point), median, low, high
    (seconds), relative (time over work, 1 at the base point).
    """
    frame, parts = pd.DataFrame(times, columns=["task", *AXES, "parameters", "seconds", "operations"]), []
    for name, function in (("median", np.median), ("low", min), ("high", max)):
        frame[name] = frame["seconds"].map(function)
    for task, axis in ((task, axis) for task in TASKS for axis in AXES):
        fixed = [name for name in AXES if name != axis]
        part = frame[(frame["task"] == task) & (frame[fixed] == pd.Series(asdict(base))[fixed]).all(axis=1)]
        at_base = part[part[axis] == getattr(base, axis)]
        if len(at_base):
            cost, x = part["median"] / part["operations"], part["parameters" if axis == "model" else axis]
            columns: dict[str, Any] = {
                "axis": axis,
                "value": part[axis],
                "x": x,
                "base": part.index.isin(at_base.index),
            }
            parts.append(part.assign(**columns, relative=cost / cost[at_base.index[0]]).sort_values("x"))
    return pd.concat(parts or [frame.reindex(columns=[*frame, "axis", "value", "x", "base", "relative"])])


def slope(operations: Sequence[float], seconds: Sequence[float]) -> float:
    """The least-squares slope of log time over log work; nan for fewer than two different works."""
    if len(set(operations)) < 2:
        return math.nan
    return float(np.polyfit(np.log(operations), np.log(seconds), 1)[0])


def slopes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Per task and axis the slope over all points and over the last three (`end`), and whether either is `faster`."""
    fits = []
    for (task, axis), own in frame.groupby(["task", "axis"], sort=False):
        operations, seconds = own["operations"].tolist(), own["median"].tolist()
        values = {"slope": slope(operations, seconds), "end": slope(operations[-3:], seconds[-3:])}
        fits.append({"task": task, "axis": axis, **values, "faster": any(v > FASTER for v in values.values())})
    return fits


def product(points: Sequence[dict[str, Any]], task: str) -> float:
    """Bytes per token and entry that neither tokens nor vocabulary explain: the mixed difference over the corners."""
    frame = pd.DataFrame([point for point in points if point["task"] == task])
    grid = frame.pivot(index="tokens", columns="vocabulary", values="above")
    corners = grid.iloc[[0, -1], [0, -1]].to_numpy(dtype=float)
    area = np.prod([np.ptp(axis.to_numpy(dtype=float)) for axis in (grid.index, grid.columns)])
    return float((corners[1, 1] - corners[0, 1] - corners[1, 0] + corners[0, 0]) / area)


def verdict(steep: Sequence[dict[str, Any]], measured: dict[str, Any]) -> list[str]:
    """The findings, a line each."""
    lines = [
        f"GROWS FASTER THAN THE WORK: {TASKS[s['task']]} over {AXES[s['axis']]}, {s['slope']:.2f}, {s['end']:.2f}"
        for s in steep
        if s["faster"]
    ]
    if steep and not lines:
        lines.append(f"Nothing grows faster than the work: no slope of log time over log work is above {FASTER}.")
    for task in dict.fromkeys(m["task"] for m in measured["memory"]):
        each = product(measured["memory"], task)
        grows = "GROWS WITH" if each > PRODUCT else "does not grow with"
        lines.append(f"Memory of {task} {grows} tokens x vocabulary: {each:.3f} bytes per token and entry (logits: 4).")
    return lines + [f"FAILED: {line}" for line in measured["failures"]]


def markdown(frame: pd.DataFrame, measured: dict[str, Any], head: str) -> str:
    """Verdict, times, slopes and memory."""
    steep = slopes(frame)
    times = [
        [
            *(TASKS[row["task"]], AXES[row["axis"]], f"**{row['value']}**" if row["base"] else str(row["value"])),
            *(duration(row["median"]), f"{duration(row['low'])} - {duration(row['high'])}"),
            *(number(row["operations"]), f"{row['relative']:.2f}"),
        ]
        for row in frame.to_dict("records")
    ]
    ends = [[TASKS[s["task"]], AXES[s["axis"]], f"{s['slope']:.2f}", f"{s['end']:.2f}"] for s in steep]
    parts = [f"# Growth\n\n{head}", "\n".join(f"- {line}" for line in verdict(steep, measured))]
    parts += ["Work is model operations. Time/work is 1 at the base point (bold); above 1 it is not the work alone."]
    parts += [results.table(["", "axis", "value", "time", "min - max", "work", "time/work"], times)]
    parts += [results.table(["", "axis", "slope of log time over log work", "of the last three points"], ends)]
    if measured["memory"]:
        grid = pd.DataFrame(measured["memory"]).pivot(index=["task", "tokens"], columns="vocabulary", values="above")
        body = [[*map(str, name), *(f"{v / 1e6:,.1f} MB" for v in row)] for name, row in grid.iterrows()]  # type: ignore
        parts += ["Memory: the most bytes of tensors held at a time, above inputs and returned gradients."]
        parts += [results.table(["", "tokens", *(f"vocabulary {size:,}" for size in grid.columns)], body)]
    return "\n\n".join(parts)


def draw(frame: pd.DataFrame, folder: Path) -> None:
    """Write growth.svg and growth.png: time over each axis, with the work beside it."""
    with rc_context({"svg.fonttype": "none", "font.size": 7.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.0, 5.2), dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 2, sharey=True).flatten()
        for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
            axes.set(xscale="log", yscale="log", xlabel=label)
            for place, (task, own) in enumerate(frame[frame["axis"] == axis].groupby("task", sort=False)):
                spread = [own["median"] - own["low"], own["high"] - own["median"]]
                style = {"color": f"C{place}", "marker": "os^"[place], "ms": 3.5, "lw": 1.4}
                axes.errorbar(own["x"], own["median"], spread, label=TASKS[str(task)], **style)
                axes.plot(own["x"], own["median"] / own["relative"], "--", color=f"C{place}", lw=0.9)
            ticks = frame[frame["axis"] == axis].drop_duplicates("x")
            axes.set_xticks(ticks["x"].tolist(), [str(value) for value in ticks["value"]], minor=False)
            axes.minorticks_off()
        for axes in panels[::2]:
            axes.set_ylabel("seconds (dashed: work)")
        panels[0].legend(frameon=False)
        for suffix in ("svg", "png"):
            figure.savefig(folder / f"growth.{suffix}")


def main(words: Sequence[str]) -> int:
    """Measure, print the tables, save them with the picture; returns the exit code."""
    parser = results.parser_of("growth", __doc__)
    parser.add_argument("--points", choices=list(PLANS), default="all", help="few is quicker; toy tries the command")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--repetitions", type=results.positive, default=3, help="of each point, after a warm-up")
    results.add_machine(parser)
    options = parser.parse_args(words)
    result, plan = results.Result(parser, options, ["growth", *words]), PLANS[options.points]
    measured = measure(plan, options.tasks, options.repetitions, result.machine)
    frame = along_axes(measured["times"], plan.base)
    text = markdown(frame, measured, result.head)
    result.save(text, **measured, rows=frame.to_dict("records"), slopes=slopes(frame))
    if len(frame):
        draw(frame, result.folder)
    result.show(text)
    return int(bool(measured["failures"]))
