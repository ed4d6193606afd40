"""Runs that many tests read: they are made once per session."""

import shutil
from collections.abc import Iterator

import pytest

from tests.command import train
from tests.experiments import (
    METHODS,
    REWARD,
    STEPS,
    TINY,
    Done,
    First,
    reused_keys,
    runs,
    well,
)


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> First:
    base = tmp_path_factory.mktemp("first")
    (base / "own.py").write_text(REWARD)
    own = ["reward=own", f"reward.function={base}/own.py:score"]
    values = [*TINY, *own, f"paths.outputs={base}/outputs"]
    answer = well(train(*values, *STEPS))
    (folder,) = runs(base / "outputs")
    return First(base / "outputs", values, answer, folder)


@pytest.fixture
def beside(first) -> Iterator[First]:
    """The same, and what a test adds to it is removed: artifacts that are there already stay."""
    yield first
    for folder in [*runs(first.outputs), *(first.outputs / "artifacts").glob("*/*")]:
        if folder.name not in {first.folder.name, *reused_keys(first)}:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


@pytest.fixture(scope="session")
def methods(first, tmp_path_factory) -> dict[str, Done]:
    """A run of every method, one after the other, on what the first run made."""
    outputs = tmp_path_factory.mktemp("methods") / "outputs"
    shutil.copytree(first.outputs / "artifacts", outputs / "artifacts")
    done = {}
    for name, values in METHODS.items():
        command, before = [*first.values, *values, f"paths.outputs={outputs}"], set(runs(outputs))
        answer = well(train(*command))
        (folder,) = set(runs(outputs)) - before
        done[name] = Done(command, answer, folder, outputs)
    return done
