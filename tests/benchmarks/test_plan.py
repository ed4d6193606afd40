"""The plan: every program is there and takes its options, every ratio is to something."""

from importlib import import_module

import pytest

from benchmarks.environments import peers
from benchmarks.plan import MEASUREMENTS, Case, cases
from benchmarks.workload import SHAPES

EVERY = cases(MEASUREMENTS, SHAPES, ["prefix", "shuffled"])


@pytest.mark.parametrize("case", EVERY, ids=lambda case: f"{case.measurement}-{case.shape.name}")
def test_programs_of_a_case(case: Case) -> None:
    labels = [program.label for program in case.programs]
    assert len(set(labels)) == len(labels)
    for program in case.programs:
        assert program.against is None or program.against in labels
        assert program.against is None or not next(p for p in case.programs if p.label == program.against).ours
        assert program.environment is None or program.environment in peers()
        if program.environment is None:  # a peer's environment has what its program imports, this one need not
            module = import_module(f"benchmarks.programs.{program.module}")
            module.arguments().parse_args(["folder", *program.options])


def test_the_peak_comes_first_and_sft_is_of_small() -> None:
    named = [(case.measurement, case.shape.name) for case in cases(MEASUREMENTS, ["mini", "gpt2"], ["prefix"])]
    assert named == [
        ("peak", "mini"),
        *[(name, shape) for shape in ("mini", "gpt2") for name in ("dpo", "generate", "ppo")],
        ("sft", "small"),
    ]
    assert [case.measurement for case in cases(["sft", "ppo"], ["toy"], ["prefix"])] == ["ppo", "sft"]
