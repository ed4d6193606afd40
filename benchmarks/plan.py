"""What is measured: the cases, and in each of them our programs and the peers'."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import flops
from benchmarks.workload import SHAPES, Shape

MEASUREMENTS = ("peak", "dpo", "generate", "ppo", "sft")
# Model operations of one repetition, by a program's facts.
Work = Callable[[Shape, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Program:
    """A program of a case.

    Attributes:
        label: what a table calls it.
        module: under `benchmarks.programs`.
        options: its command line, beyond what all take.
        environment: of a peer; None is our own.
        ours: whether it is the package.
        repetitions: timed in a round.
        against: the label that a ratio is to; None has no ratio.
        work: model operations of a repetition, by the facts of the program, or of the first of its case that has any:
            useful work is the same whoever does it. None has no share of the peak.
        check: the fact in which it has to agree with `against`, "loss" (the first step's) or "logprob" (of samples).
        note: what a table says of it.
    """

    label: str
    module: str
    options: tuple[str, ...] = ()
    environment: str | None = None
    ours: bool = True
    repetitions: int = 5
    against: str | None = None
    work: Work | None = None
    check: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """Programs that do the same work.

    Attributes:
        measurement: one of MEASUREMENTS.
        shape: of the model.
        programs: in the order of a round; each round runs all of them once.
    """

    measurement: str
    shape: Shape
    programs: tuple[Program, ...]


def _training(shape: Shape, facts: Mapping[str, Any]) -> float:
    return flops.training(shape, facts["rows"])


def _forward(shape: Shape, facts: Mapping[str, Any]) -> float:
    return flops.forward(shape, facts["rows"])


def _iteration(shape: Shape, facts: Mapping[str, Any]) -> float:
    """Sampling, scoring under policy and reference, and the epochs of training."""
    new = facts["new"]
    sampled = [(query + new - 1, new) for query in facts["queries"]]
    scored = [(query + new, new) for query in facts["queries"]]
    once = flops.forward(shape, sampled) + 2 * flops.forward(shape, scored)
    return once + facts["epochs"] * flops.training(shape, scored)


def _dpo(shape: Shape, pairs: Sequence[str]) -> Case:
    few = 2 if shape.layers * shape.width >= 12 * 768 else 3  # the peer's step takes half a minute there

    def us(label: str, *options: str, against: str | None = None, check: str | None = "loss") -> Program:
        return Program(label, "dpo", options, against=against, work=_training, check=check)

    def trl(label: str, *options: str) -> Program:
        return Program(label, "trl_dpo", options, "trl", ours=False, repetitions=few, work=_training)

    def once(label: str, *options: str) -> Program:
        return Program(label, "dpo", ("--reference", "once", *options), work=_forward, note="scored once for all steps")

    stored, scored = "TRL, reference precomputed", "TRL, reference in the step"
    programs = [
        once("reference once"),
        us("ours", against=stored),
        trl(stored, "--precompute"),
        us("ours, reference in the step", "--reference", "step", against=scored),
        trl(scored),
        us("ours, RMSprop", "--optimizer", "rmsprop", against=stored),
    ]
    if "shuffled" in pairs:
        words = ("--pairs", "shuffled")
        programs += [
            once("reference once, shuffled", *words),
            us("ours, shuffled pairs", *words, against=stored, check=None),
        ]
    return Case("dpo", shape, tuple(programs))


def _generate(shape: Shape) -> Case:
    batch = ("--batch", str(shape.generate_batch))
    programs = (
        Program("ours", "generate", batch, against="generate", work=_forward, check="logprob"),
        Program("generate", "hf_generate", batch, ours=False, repetitions=3, work=_forward),
    )
    return Case("generate", shape, programs)


def _ppo(shape: Shape) -> Case:
    programs = (
        Program("ours", "ppo", repetitions=3, against="TRL 0.11.4", work=_iteration, check="logprob"),
        Program("TRL 0.11.4", "trl_ppo", (), "trl_ppo", ours=False, repetitions=2, work=_iteration),
    )
    return Case("ppo", shape, programs)


def _sft(shape: Shape) -> Case:
    programs = (
        Program("ours", "sft", against="transformers' own loss", work=_training, check="loss"),
        Program("transformers' own loss", "hf_sft", ours=False, repetitions=3, work=_training),
    )
    return Case("sft", shape, programs)


def _peak(shape: Shape) -> Case:
    """Products of matrices; small ones where only the program itself is tried."""
    sizes = ("--sizes", "64", "128") if shape.name == "toy" else ()
    programs = (
        Program("bf16", "peak", ("--precision", "bf16", *sizes), repetitions=20),
        Program("float32", "peak", ("--precision", "float32", *sizes)),
    )
    return Case("peak", shape, programs)


def cases(measurements: Iterable[str], shapes: Iterable[str], pairs: Sequence[str]) -> list[Case]:
    """The cases of a command, the peak first: shares are of it.

    Args:
        measurements: some of MEASUREMENTS.
        shapes: names of SHAPES; SFT is of `small`, the shape that it trains from scratch.
        pairs: "prefix" always; with "shuffled" ours is measured on those too.
    """
    wanted, chosen = set(measurements), [SHAPES[name] for name in shapes]
    found = [_peak(chosen[0])] if "peak" in wanted else []
    for shape in chosen:
        for name, case in (("dpo", lambda s: _dpo(s, pairs)), ("generate", _generate), ("ppo", _ppo)):
            if name in wanted:
                found.append(case(shape))
    if "sft" in wanted:
        names = dict.fromkeys("toy" if shape.name == "toy" else "small" for shape in chosen)
        found += [_sft(SHAPES[name]) for name in names]
    return found
