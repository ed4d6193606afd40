"""Which runs may share a pair of axes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imdb_rlhf.errors import ConfigError
from imdb_rlhf.frontier import finished as points
from imdb_rlhf.frontier.comparable import by_reference, worlds

Write = Callable[..., Path]
FLAT = {5: (np.full((3, 2), 0.7), np.full((3, 2), 1.0))}


def read(paths: list[Path]) -> list[points.FinishedRun]:
    runs, skipped = points.read(paths)
    assert not skipped
    return runs


# --- worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("reward.name", "siebert"), ("generation.temperature", 0.7), ("generation.max_new_tokens", 16)],
)
def test_runs_of_two_worlds_are_refused(key: str, value: object, write_run: Write) -> None:
    first = write_run("dpo", ("beta", 0.1), FLAT)
    second = write_run("dpo", ("beta", 0.1), FLAT, more={key: value}, world="two")
    with pytest.raises(ConfigError, match=f"{first.name} and {second.name} cannot be compared: they differ in {key}"):
        by_reference(read([first, second]))


def test_a_reference_that_differs_unseen_is_refused(write_run: Write) -> None:
    runs = read([write_run("dpo", ("beta", 0.1), FLAT, world=world) for world in ("one", "two")])
    with pytest.raises(ConfigError, match="differ in the reference, its prompts or the reward"):
        by_reference(runs)


def test_batch_sizes_make_no_world(write_run: Write) -> None:
    runs = read([write_run("dpo", ("beta", beta), FLAT) for beta in (0.1, 1)])
    by_reference(runs)
    assert worlds([run.path for run in runs]) == {"": [run.path for run in runs]}


def test_a_copy_without_artifacts_is_of_the_same_world(write_run: Write, tmp_path: Path) -> None:
    first, second = (write_run("dpo", ("beta", beta), FLAT) for beta in (0.1, 1))
    copy = tmp_path / "elsewhere" / "runs" / first.name
    shutil.copytree(first, copy)
    by_reference(read([copy, second]))
    assert worlds([copy, second]) == {"": [copy, second]}


def test_worlds_are_named_by_what_differs(write_run: Write) -> None:
    runs = [
        write_run("dpo", ("beta", beta), FLAT, more={"generation.max_new_tokens": length}, world=str(length))
        for length in (16, 32)
        for beta in (0.1, 1)
    ]
    assert worlds(runs) == {"max_new_tokens=16": runs[:2], "max_new_tokens=32": runs[2:]}


def test_worlds_that_differ_in_a_place_alone_are_named_by_it(write_run: Write) -> None:
    runs = [write_run("dpo", ("beta", 0.1), FLAT, more={"sft.path": place}, world=place) for place in ("one", "two")]
    assert worlds(runs) == {"path=one": runs[:1], "path=two": runs[1:]}
    with pytest.raises(ConfigError, match=r"they differ in sft.path \(one and two\)"):
        by_reference(read(runs))


def test_a_place_is_not_named_where_something_else_differs(write_run: Write) -> None:
    runs = [
        write_run("dpo", ("beta", 0.1), FLAT, more={"sft.path": place, "data.seed": seed}, world=place)
        for seed, place in enumerate(("one", "two"))
    ]
    assert list(worlds(runs)) == ["seed=0", "seed=1"]
