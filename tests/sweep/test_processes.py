"""What a sweep's processes do, called in this one: the frontier is handed on to W&B, files are hashed once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imdb_rlhf.artifacts import files
from imdb_rlhf.config.machine import WandbLogger, WandbMode
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier import draw as frontier
from imdb_rlhf.sweep import processes
from imdb_rlhf.sweep.processes import Drawn, how


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`processes.draw` with a stand-in for the frontier; gives what it sent, and what was drawn where."""
    monkeypatch.setattr(processes, "_write_to", lambda log: None)
    calls: list[tuple[list[Path], Path]] = []

    def draw(runs: list[Path], folder: Path) -> dict[str, Any]:
        calls.append((runs, folder))
        if folder.name == "broken":
            raise RunError("they differ")
        return {"warnings": [f"of {len(runs)}"], "folder": folder}

    def run(worlds: dict[str, list[Path]], mirror: Any = None) -> tuple[Drawn, list[tuple[list[Path], Path]]]:
        monkeypatch.setattr(frontier, "draw", draw)
        monkeypatch.setattr(frontier, "worlds", lambda runs: worlds)
        sent: list[Drawn] = []
        processes.draw([Path("x")], tmp_path, mirror, cast(Any, SimpleNamespace(send=sent.append)))
        return sent[0], calls

    return run


def test_one_world_is_drawn_into_the_sweeps_folder(drawn, tmp_path):
    sent, calls = drawn({"": [Path("a"), Path("b")]})
    assert sent == Drawn([tmp_path], ["of 2"], None)
    assert calls == [([Path("a"), Path("b")], tmp_path)]


def test_each_world_has_a_folder_and_what_fails_is_told(drawn, tmp_path):
    sent, _ = drawn({"16": [Path("a")], "broken": [Path("b"), Path("c")]})
    assert sent == Drawn([tmp_path / "16"], ["of 1"], "they differ")


def test_wandb_is_shown_every_frontier(drawn, tmp_path, monkeypatch):
    mirror = pytest.importorskip("imdb_rlhf.frontier.wandb_run")
    shown: list[Any] = []

    def show(found: dict[str, Any], folder: Path, logger: WandbLogger, group: str, warn: Any) -> None:
        shown.append((found["folder"], folder, logger.project, group))
        warn("W&B is away")

    monkeypatch.setattr(mirror, "frontier", show)
    logger = WandbLogger("wandb", "mine", None, None, WandbMode.offline, [])
    sent, _ = drawn({"16": [Path("a")], "32": [Path("b")]}, (logger, "sweep-1"))
    assert shown == [(tmp_path / name, tmp_path / name, "mine", "sweep-1") for name in ("16", "32")]
    assert sent.warnings == ["of 1", "W&B is away"] * 2


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
    ("code", "said"),
    [(-15, "killed by SIGTERM"), (-9, "killed by SIGKILL, as the system does when memory runs out"), (3, "ended with")],
)
def test_an_exit_code_in_words(code, said):
    assert how(code).startswith(said)
