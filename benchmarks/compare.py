"""Ours and the peers in one run: `python -m benchmarks [peak dpo generate ppo value guided sft] [options]`.

In each case every program runs once per round, a fresh process each, in turn: what is compared ran minutes apart. The
table has medians over all steps of all rounds. Exit code 1 if a program failed, or if two that should compute the same
do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results, workload
from benchmarks.harness import STORE, Job, run_all
from benchmarks.programs.program import Record
from benchmarks.results import number, percent

MEASUREMENTS = ("peak", "dpo", "generate", "ppo", "value", "guided", "sft")
NETWORKS = ("own", "shared")  # that a value is on
# How far first losses may be apart: a sequence's log-prob moves by some tenths of a nat in bf16, and a loss is a mean
# over 64 pairs of a tenth of such differences; float32 leaves far less.
LOSS_TOLERANCE = {"bf16": 5e-3, "float32": 1e-4}
SAMPLING_TOLERANCE = 4.0  # standard errors by which two samplers' mean log-probs may be apart
HEAD = ("", "shape", "program", "median", "min - max", "ours is", "memory", "of the peer's", "of peak", "note")


@dataclass
class Program:
    """A program of a case (measurement and shape), and its outcome: a record per round, or why there is none.

    Attributes:
        name, options, repetitions: as in `Job`.
        peer: the environment of a peer, a folder of `.bench`; None for this one.
        against: label of the program that it is compared with.
        check: the fact in which both have to agree: `loss` (the first step's) or `logprob` (of samples).
    """

    case: tuple[str, str]
    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    repetitions: int = 5
    peer: str | None = None
    against: str | None = None
    check: str | None = None
    records: list[Record] = field(default_factory=list)
    failure: str | None = None

    @property
    def rate(self) -> float:
        """Units per second, the median."""
        return float(np.median(self.rates))

    @property
    def rates(self) -> list[float]:
        """Units per second of every repetition of every round."""
        return [record.work / seconds for record in self.records for seconds in record.seconds]

    @property
    def memory(self) -> int:
        """The largest peak of any round, bytes."""
        return max(record.peak_bytes for record in self.records)

    def job(self) -> Job:
        """One round."""
        environment = {"python": STORE / self.peer / "bin" / "python"} if self.peer else {}
        folder = Path()
        if self.case[0] != "peak":
            folder = workload.make(workload.SHAPES[self.case[1]], workload.Data(), STORE / "workloads")
        label = f"{' '.join(self.case)}, {self.label}"
        return Job(label, self.name, self.options, self.repetitions, folder, **environment)


def cases(measurements: Sequence[str], shapes: Sequence[str]) -> list[list[Program]]:
    """Programs that do the same work, case by case; the peak comes first, since shares are of it.

    Args:
        measurements: some of MEASUREMENTS.
        shapes: names of SHAPES; SFT is of `small`, the shape that is trained from scratch, and PPO of GPT-2s.
    """
    small = list(dict.fromkeys("toy" if shape == "toy" else "small" for shape in shapes))
    chosen = [("peak", shapes[0]), *((m, s) for s in shapes for m in ("dpo", "generate", "ppo", "value", "guided"))]
    # the transformers of PPO's peer is of 2024 and reads today's Llama configurations otherwise
    chosen = [case for case in chosen if case != ("ppo", "llama")]
    return [_programs(*case) for case in (*chosen, *(("sft", s) for s in small)) if case[0] in measurements]


def _programs(measurement: str, shape: str) -> list[Program]:
    case = (measurement, shape)
    if measurement == "peak":
        few = {"sizes": [64, 128]} if shape == "toy" else {}
        return [
            Program(case, name, "peak.products", {"precision": name, **few}, count)
            for name, count in (("bf16", 20), ("float32", 5))
        ]
    if measurement == "dpo":
        count = 2 if workload.SHAPES[shape].width >= 768 else 3  # the peer's step takes half a minute there
        stored, step = "TRL, reference precomputed", "TRL, reference in the step"
        return [
            Program(case, "ours", "package.dpo", against=stored, check="loss"),
            Program(case, stored, "trl_dpo.train", {"precompute": True}, count, "trl"),
            Program(case, "ours, reference in the step", "package.dpo", {"in_step": True}, against=step, check="loss"),
            Program(case, step, "trl_dpo.train", {}, count, "trl"),
            Program(case, "ours, RMSprop", "package.dpo", {"optimizer": "rmsprop"}, against=stored, check="loss"),
            Program(case, "ours, shuffled pairs", "package.dpo", {"pairs": "shuffled"}, against=stored),
        ]
    if measurement == "generate":
        batch = {"batch": {"toy": 16, "mini": 128}.get(shape, 64)}
        return [
            Program(case, "ours", "package.generate", batch, against="generate", check="logprob"),
            Program(case, "generate", "hf.generate", batch, 3),
        ]
    if measurement == "ppo":
        return [
            Program(case, "ours", "package.ppo", {}, 3, against="TRL 0.11.4", check="logprob"),
            Program(case, "TRL 0.11.4", "trl_ppo.train", {}, 2, "trl_ppo"),
        ]
    if measurement == "value":  # without a peer: beside DPO, whose data it can learn from
        return [
            Program(case, "DPO", "guided.dpo"),
            *(Program(case, f"value, {n} network", "guided.value", {"network": n}, against="DPO") for n in NETWORKS),
        ]
    if measurement == "guided":  # beside the reference alone
        batch = {"batch": {"toy": 16, "mini": 128}.get(shape, 64)}
        guided = [
            Program(case, f"guided, {n} network", "guided.generate", batch | {"network": n}, 3, against="reference")
            for n in NETWORKS
        ]
        return [Program(case, "reference", "package.generate", batch), *guided]
    return [
        Program(case, "ours", "package.sft", against="transformers' own loss", check="loss"),
        Program(case, "transformers' own loss", "hf.sft", {}, 3),
    ]


def rows(programs: Sequence[Program], precision: str) -> list[dict[str, Any]]:
    """The table's rows, one per program, of programs that all (but the peaks) ran in one precision.

    Returns:
        dicts of measurement, shape, program, rate (median), low, high (units per second), unit, memory (bytes),
        against, ratio, memory_ratio (ours over theirs), share (of the matrix-product peak), agrees (None where nothing
        has to be equal), note.
    """
    peaks = {p.label: p.rate for p in programs if p.case[0] == "peak" and p.records}
    return [_row(p, [q for q in programs if q.case == p.case], precision, peaks.get(precision)) for p in programs]


def _row(program: Program, beside: Sequence[Program], precision: str, peak: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"measurement": program.case[0], "shape": program.case[1], "program": program.label}
    if program.failure is not None or not program.records:
        return row | {"rate": None, "agrees": None, "note": f"FAILED: {program.failure or 'never run'}"}
    first, notes = program.records[0], []
    row |= {"unit": first.unit, "rate": program.rate, "low": min(program.rates), "high": max(program.rates)}
    row |= {"memory": program.memory, "agrees": None}
    other = next((p for p in beside if p.label == program.against and p.records and p.failure is None), None)
    if other is not None:
        row |= {"against": other.label, "ratio": program.rate / other.rate}
        row["memory_ratio"] = program.memory / other.memory
        if program.check is not None:
            row["agrees"], note = agreement(program.check, first.facts, other.records[0].facts, precision)
            notes.append(note)
    if "distinct" in first.facts:
        notes.append(f"{first.facts['distinct']} distinct completions")
    # useful work is the same whoever does it: a peer's operations are those of ours
    known = [r.operations for p in (program, *beside) for r in p.records[:1] if r.operations is not None]
    if peak is not None and known:
        seconds = np.median([s for record in program.records for s in record.seconds])
        row["share"] = float(known[0] / seconds / peak)
    return row | {"note": "; ".join(notes)}


def agreement(check: str, own: Mapping[str, Any], peer: Mapping[str, Any], precision: str) -> tuple[bool, str]:
    """Whether two programs computed the same by their facts, and the note that says so."""
    if check == "loss":
        difference, tolerance = abs(own["loss"] - peer["loss"]), LOSS_TOLERANCE[precision]
        note = f"first loss {own['loss']:.4f}, the peer's {peer['loss']:.4f}"
    else:
        (mean, error), (peer_mean, peer_error) = own["logprob"], peer["logprob"]
        difference, tolerance = abs(mean - peer_mean), SAMPLING_TOLERANCE * (error**2 + peer_error**2) ** 0.5
        note = f"mean log-prob of samples {mean:.1f} +- {error:.1f}, the peer's {peer_mean:.1f} +- {peer_error:.1f}"
    return difference <= tolerance, note if difference <= tolerance else f"DISAGREES: {note}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row's texts under HEAD."""
    known = row["rate"] is not None
    return [
        row["measurement"],
        "" if row["measurement"] == "peak" else row["shape"],
        row["program"],
        number(row["rate"], f" {row['unit']}/s") if known else "",
        f"{number(row['low'])} - {number(row['high'])}" if known else "",
        f"{row['ratio']:.1f} x {row['against']}" if "ratio" in row else "",
        f"{row['memory'] / 1e9:.2f} GB" if known else "",
        f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
        percent(row.get("share")),
        row["note"],
    ]


def main(words: Sequence[str]) -> int:
    """Measure, print the table, save it; returns the exit code."""
    parser = results.parser_of("", __doc__)
    parser.add_argument("measurements", nargs="*", help=f"some of {', '.join(MEASUREMENTS)}; none means all")
    parser.add_argument("--shapes", nargs="+", default=["mini", "gpt2", "llama"], choices=list(workload.SHAPES))
    parser.add_argument("--rounds", type=results.positive, default=3, help="fresh processes of each program")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    results.add_machine(parser)
    options = parser.parse_args(words)
    unknown = [name for name in options.measurements if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}")
    result, console, text = results.Result(parser, options, words), results.console(), ""
    selected = cases(options.measurements or MEASUREMENTS, list(dict.fromkeys(options.shapes)))
    if options.no_peers:
        selected = [[p for p in case if p.name.startswith(("package.", "peak.", "guided."))] for case in selected]
    programs = [program for case in selected for program in case]
    owners = {program.job().label: program for program in programs}
    jobs = [program.job() for case in selected for program in case * options.rounds]
    for job, outcome in run_all(jobs, result.machine, console):
        program = owners[job.label]
        if isinstance(outcome, str):
            program.failure = outcome
        else:
            program.records.append(outcome)
            console.print(f"{job.label}: {number(program.rate, f' {outcome.unit}/s')}")
        table = rows(programs, result.machine.precision)
        text = f"{result.head}\n\n{results.table(HEAD, [cells(row) for row in table])}"
        result.save(text, rows=table, programs=[asdict(p) for p in programs])
    result.show(text)
    return int(any(row["rate"] is None or row["agrees"] is False for row in table))
