"""Ids, pages, and the one command that uploads a sweep."""

import glob
import subprocess
import sys
from pathlib import Path

import pytest

from imdb_rlhf.tracking.wandb_files import keep_url, place, place_of_sweep, run_id


def offline(folder: Path, name: str) -> Path:
    part = folder / "wandb" / f"offline-run-20260101_000000-{name}"
    part.mkdir(parents=True)
    (part / f"run-{name}.wandb").write_bytes(b"")
    return part


def uploaded(shown: str | None) -> set[Path]:
    """The parts that a shell would give to `wandb sync`."""
    assert shown is not None and shown.startswith("offline; wandb sync ")
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {shown.removeprefix('offline; wandb sync ')}"], capture_output=True
    )
    return {Path(line).resolve() for line in shell.stdout.decode().splitlines()}


def test_run_id_is_kept_and_unique(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a", "ab12cd34")
    assert first.startswith("ab12cd34-") and run_id(tmp_path / "a", "ab12cd34") == first
    assert run_id(tmp_path / "b", "ab12cd34") != first
    (tmp_path / "a" / "wandb_id").write_text("")  # a crash while it was written
    assert run_id(tmp_path / "a", "ab12cd34") != first


def test_an_agents_run_has_the_agents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert run_id(tmp_path, "ab12cd34") != "given"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert run_id(tmp_path, "ab12cd34") == "given"


def test_a_runs_place(tmp_path: Path) -> None:
    assert place(tmp_path) is None
    keep_url(tmp_path, "https://wandb.ai/e/p/runs/x")
    assert place(tmp_path) == "online: https://wandb.ai/e/p/runs/x"
    folder = tmp_path / "it's mine"
    part = offline(folder, "x")
    assert uploaded(place(folder)) == {part}


def test_a_sweep_is_uploaded_with_one_command(tmp_path: Path) -> None:
    sweep, runs = tmp_path / "my sweeps" / "beta-1", [tmp_path / "runs" / name for name in "abc"]
    parts = {offline(run, run.name) for run in runs[:2]} | {offline(runs[0], "sft")}
    offline(tmp_path / "runs" / "other", "other")  # of no job
    world = sweep / "imdb"
    parts |= {offline(sweep, "frontier"), offline(world, "world")}
    (world / "wandb_id").write_text("world")
    assert uploaded(place_of_sweep(sweep, runs, "g")) == parts
    gone = offline(runs[2], "c")
    assert uploaded(place_of_sweep(sweep, runs, "g")) == parts | {gone}
    (gone / "run-c.wandb").unlink()
    gone.rmdir()  # a run that went on
    assert uploaded(place_of_sweep(sweep, runs, "g")) == parts
    (tmp_path / "my sweeps").rename(tmp_path / "moved")
    assert len(glob.glob(str(tmp_path / "moved" / "beta-1" / "wandb" / "*"))) == 5


def test_a_sweep_online_has_the_page_of_its_group(tmp_path: Path) -> None:
    assert place_of_sweep(tmp_path, [tmp_path / "a"], "g") is None
    (tmp_path / "a").mkdir()
    keep_url(tmp_path / "a", "https://wandb.ai/team/imdb/runs/ab12")
    shown = place_of_sweep(tmp_path, [tmp_path / "a"], "my group/1")
    assert shown == "online: https://wandb.ai/team/imdb/groups/my%20group%2F1"


def test_it_imports_no_wandb() -> None:
    code = "import sys, imdb_rlhf.tracking.wandb_files; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
