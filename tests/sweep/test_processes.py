"""What the processes of a sweep do, called in this one: frontiers are drawn, W&B gets them, files are hashed once."""

from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.artifacts import files
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier import comparable, draw
from imdb_rlhf.signals import describe_exit
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.processes import FrontierResult
from tests.loggers import wandb_logger

WandbGroup = tuple[WandbLogger, str] | None
Draw = Callable[..., FrontierResult]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Path], Path]]:
    """The runs and the folder of each frontier that would be drawn."""
    calls: list[tuple[list[Path], Path]] = []

    def stand_in(runs: Sequence[Path], folder: Path) -> dict[str, Any]:
        calls.append((list(runs), folder))
        if folder.name == "broken":
            raise RunError("they differ")
        return {"warnings": [f"of {len(runs)}"], "folder": folder}

    monkeypatch.setattr(draw, "draw", stand_in)
    return calls


@pytest.fixture
def draw_worlds(drawn: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Draw:
    """`processes.draw` of given worlds; returns the result that it sends."""
    monkeypatch.setattr(processes, "_write_to", lambda log: None)

    def run(worlds: dict[str, list[Path]], wandb_group: WandbGroup = None) -> FrontierResult:
        monkeypatch.setattr(comparable, "worlds", lambda runs: worlds)
        receiver, sender = Pipe(duplex=False)
        processes.draw([Path("x")], tmp_path, wandb_group, sender)
        result: FrontierResult = receiver.recv()
        return result

    return run


def test_one_world_is_drawn_into_the_sweeps_folder(draw_worlds, drawn, tmp_path):
    assert draw_worlds({"": [Path("a"), Path("b")]}) == FrontierResult([tmp_path], ["of 2"], None)
    assert drawn == [([Path("a"), Path("b")], tmp_path)]


def test_each_world_has_a_folder_and_a_failure_is_reported(draw_worlds, tmp_path):
    result = draw_worlds({"16": [Path("a")], "broken": [Path("b"), Path("c")]})
    assert result == FrontierResult([tmp_path / "16"], ["of 1"], "they differ")


def test_wandb_is_shown_every_frontier(draw_worlds, tmp_path, monkeypatch):
    wandb_run = pytest.importorskip("imdb_rlhf.frontier.wandb_run")
    shown: list[Any] = []

    def show(frontier: dict[str, Any], folder: Path, logger: WandbLogger, group: str, warn: Any) -> None:
        shown.append((frontier["folder"], folder, logger.project, group))
        warn("W&B is away")

    monkeypatch.setattr(wandb_run, "frontier", show)
    logger = wandb_logger(project="mine")
    result = draw_worlds({"16": [Path("a")], "32": [Path("b")]}, (logger, "sweep-1"))
    assert shown == [(tmp_path / name, tmp_path / name, "mine", "sweep-1") for name in ("16", "32")]
    assert result.warnings == ["of 1", "W&B is away"] * 2


def test_a_file_is_hashed_once_unless_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_cached_hash", None)  # and None again after the test
    file = tmp_path / "file"
    file.write_text("one")
    plain = files.hash_file(file)
    files.remember_hashes()
    opened: list[Any] = []
    real = open

    def noting(path: Any, *more: Any) -> Any:
        opened.append(path)
        return real(path, *more)

    monkeypatch.setattr("builtins.open", noting)
    assert files.hash_file(file) == plain == files.hash_file(file)
    assert len(opened) == 1
    file.write_text("other")
    assert files.hash_file(file) != plain


@pytest.mark.parametrize(
    ("code", "words"),
    [(-15, "killed by SIGTERM"), (-9, "killed by SIGKILL, as the system does when memory runs out"), (3, "ended with")],
)
def test_an_exit_code_in_words(code, words):
    assert describe_exit(code).startswith(words)
