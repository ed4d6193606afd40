"""When a sweep is pushed, and what its exit code says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imdb_rlhf.errors import RunError
from imdb_rlhf.sweep.pushing import push

DRAWN = [Path("sweep")]


class Results:
    """Takes what is pushed, or fails."""

    def __init__(self, error: str | None = None, report: object = "space") -> None:
        self.error, self.report = error, report
        self.pushed: list[tuple[dict[str, Path], dict[str, Path]]] = []

    def push(self, paths: dict[str, Path], frontiers: dict[str, Path], say: Any) -> None:
        if self.error:
            raise RunError(self.error)
        self.pushed.append((paths, frontiers))


def records(*states: str) -> Any:
    names = [f"run-{number}" for number in range(len(states))]
    return [
        SimpleNamespace(name=name, path=Path(name), label=name, state=state)
        for name, state in zip(names, states, strict=True)
    ]


@pytest.fixture
def console() -> Any:
    lines: list[str] = []
    return SimpleNamespace(lines=lines, warn=lines.append, note=lines.append)


def pushed(results: Results, all_records: Any, drawn: list[Path], console: Any) -> int:
    return push(cast(Any, results), all_records, drawn, console)


def test_all_that_is_done_is_pushed(console):
    results = Results()
    assert pushed(results, records("done", "done"), DRAWN, console) == 0
    assert results.pushed == [({"run-0": Path("run-0"), "run-1": Path("run-1")}, {"": Path("sweep")})]


def test_worlds_are_named_by_their_folders(console):
    results = Results()
    assert pushed(results, records("done"), [Path("sweep/k=1"), Path("sweep/k=2")], console) == 0
    assert results.pushed[0][1] == {"k=1": Path("sweep/k=1"), "k=2": Path("sweep/k=2")}


@pytest.mark.parametrize(
    ("states", "drawn", "line"),
    [
        (["done", "failed", "stopped"], DRAWN, "nothing was pushed to the Hub: 2 of 3 jobs are not done"),
        (["done"], [], "nothing was pushed to the Hub: the frontier was not drawn"),
    ],
)
def test_a_sweep_that_is_not_whole_is_not_pushed(console, states, drawn, line):
    results = Results()
    assert pushed(results, records(*states), drawn, console) == 1
    assert not results.pushed and console.lines[0].startswith(line)


def test_without_a_report_no_frontier_is_needed(console):
    results = Results(report=None)
    assert pushed(results, records("done"), [], console) == 0 and len(results.pushed) == 1


def test_a_push_that_fails_is_one_line_and_exit_code_1(console):
    assert pushed(Results("the model me/x was not pushed"), records("done"), DRAWN, console) == 1
    assert console.lines == ["not everything was pushed to the Hub: the model me/x was not pushed"]
