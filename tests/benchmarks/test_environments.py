"""Environments: their names, and that one is whole or absent."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import READY, Environment, EnvironmentFailed, make, peers, python_of, versions


def test_a_folder_is_named_by_what_is_in_it_and_by_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Environment("trl", ("trl==1", "torch==2")).folder(tmp_path)
    assert one.parent == tmp_path and one.name.startswith("trl-")
    assert Environment("trl", ("torch==2", "trl==1")).folder(tmp_path) == one
    assert Environment("trl", ("trl==1", "torch==3")).folder(tmp_path) != one
    monkeypatch.setattr("sys.version_info", (3, 99, 0))
    assert Environment("trl", ("trl==1", "torch==2")).folder(tmp_path) != one


def test_peers_have_our_torch() -> None:
    torch = "torch==" + version("torch").split("+")[0]
    assert set(peers()) == {"trl", "trl_ppo"}
    assert all(torch in peer.requirements for peer in peers().values())
    assert "trl==0.11.4" in peers()["trl_ppo"].requirements


def test_one_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Environment("x", ("one==1",))
    folder = wanted.folder(tmp_path)
    folder.mkdir()
    (folder / READY).write_text(json.dumps({"installed": {"torch": "2.9.0", "other": "1"}}))
    monkeypatch.setattr(environments, "_pip", lambda *_: pytest.fail("pip was run"))
    assert make(wanted, tmp_path, pytest.fail) == python_of(folder)
    assert versions(python_of(folder)) == {"torch": "2.9.0"}


def test_half_a_one_is_made_again_and_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, said = Environment("x", ("one==1",)), list[str]()
    folder = wanted.folder(tmp_path)
    folder.mkdir()
    (folder / "half").write_text("")

    def pip(place: Path, *words: str) -> str:
        assert place == folder and not (folder / "half").exists()
        if words[0] == "list":
            return json.dumps([{"name": "Torch", "version": "2.9.0"}])
        assert words == ("install", "--quiet", "one==1")
        if not said[1:]:
            raise EnvironmentFailed("ERROR: no such version")
        return ""

    monkeypatch.setattr(environments, "_pip", pip)
    monkeypatch.setattr("venv.create", lambda place, with_pip: place.mkdir())
    with pytest.raises(EnvironmentFailed, match="x: ERROR: no such version"):
        make(wanted, tmp_path, said.append)
    assert not folder.exists()
    make(wanted, tmp_path, said.append)
    assert versions(python_of(folder)) == {"torch": "2.9.0"}
    assert len(said) == 2 and "one==1" in said[0]


@pytest.mark.slow
def test_what_pip_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="nowhere"):
        make(Environment("x", ("./nowhere",)), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
