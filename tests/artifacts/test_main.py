"""`list` and `prune`: every artifact's state and users; nothing in use is removed; errors are one line."""

import json
from pathlib import Path

import pytest

from imdb_rlhf.artifacts.__main__ import Entry, contents, main, prune
from imdb_rlhf.artifacts.files import check_manifest, in_use
from imdb_rlhf.artifacts.store import Store
from tests.artifacts.folders import flip, names, write_model

INPUTS = {"seed": 0, "upstream": {"reviews": "0123456789abcdef"}, "lr": 1e-3}


@pytest.fixture
def outputs(tmp_path):
    """One artifact that a run uses, one that none does, one damaged, one unfinished."""
    store = Store(tmp_path / "artifacts")
    used = store.build("sft", INPUTS, write_model)
    store.build("sft", INPUTS | {"seed": 1}, write_model)
    flip(store.build("groups", {"seed": 2}, write_model).path)

    def fail(folder: Path) -> None:
        (folder / "checkpoint").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.build("policy", {"seed": 3}, fail, resumable=True)
    run = tmp_path / "runs" / "dpo-beta0.1-s0-00000000"
    run.mkdir(parents=True)
    (run / "artifacts.json").write_text(json.dumps({"sft": used.key}))
    return tmp_path


def shown(entries: list[Entry]) -> set[tuple[str, str, str]]:
    return {(entry.stage, entry.made_from, entry.state) for entry in entries}


def test_list_shows_what_is_there(outputs, capsys):
    before = names(outputs)
    entries = contents(outputs)
    assert shown(entries) == {
        ("sft", "seed=0 lr=0.001", "whole"),
        ("sft", "seed=1 lr=0.001", "whole"),
        ("groups", "seed=2", "damaged"),
        ("policy", "?", "unfinished"),
    }
    assert {entry.made_from: entry.used_by for entry in entries if entry.used_by} == {
        "seed=0 lr=0.001": ("dpo-beta0.1-s0-00000000",)
    }
    assert all(0 <= entry.age < 60 for entry in entries)
    assert main(["list", "--outputs", str(outputs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "key", "state", "size", "age", "made", "from", "used", "by"]
    assert lines[-1].startswith("4 artifacts, ")
    column = lines[0].index("made from")
    assert sorted(line[column - 2 : column + 6] for line in lines[1:-1]) == [
        "  ?     ",
        *(f"  seed={n}" for n in (0, 1, 2)),
    ]
    assert names(outputs) == before


def test_prune_removes_what_no_run_uses(outputs, capsys):
    before = names(outputs)
    unused = {("sft", "seed=1 lr=0.001", "whole"), ("policy", "?", "unfinished")}
    assert shown(prune(outputs)) == unused
    assert main(["prune", "--outputs", str(outputs)]) == 0
    assert "2 artifacts" in (printed := capsys.readouterr().out) and "would be removed; add --yes" in printed
    assert names(outputs) == before
    assert main(["prune", "--outputs", str(outputs), "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    assert shown(contents(outputs)) == {("sft", "seed=0 lr=0.001", "whole"), ("groups", "seed=2", "damaged")}
    assert shown(prune(outputs, damaged=True, remove=True)) == {("groups", "seed=2", "damaged")}
    assert shown(contents(outputs)) == {("sft", "seed=0 lr=0.001", "whole")}
    assert Store(outputs / "artifacts").find("sft", INPUTS) is not None


def test_prune_keeps_what_is_being_made(outputs):
    def make(folder: Path) -> None:
        assert {entry.state for entry in contents(outputs) if entry.stage == "policy"} == {"being made"}
        assert not [entry for entry in prune(outputs, remove=True) if entry.stage == "policy"]
        assert (folder / "checkpoint").exists()

    Store(outputs / "artifacts").build("policy", {"seed": 3}, make, resumable=True)
    assert Store(outputs / "artifacts").find("policy", {"seed": 3}) is not None


def test_prune_keeps_what_another_process_has_locked(outputs):
    locked = {entry.stage: entry.path for entry in prune(outputs)}["sft"]
    with in_use(locked):
        assert [entry.stage for entry in prune(outputs, remove=True)] == ["policy"]
    assert check_manifest(locked) is None
    assert [entry.path for entry in prune(outputs, remove=True)] == [locked]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: command"),
        (["polish"], 2, "invalid choice: 'polish'"),
        (["list", "--outputs", "nowhere"], 2, "there is no folder nowhere"),
        (["list", "--colour"], 2, "unrecognized arguments: --colour"),
        (["prune", "--yes"], 1, "is not a JSON object of stages and keys"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    (tmp_path / "outputs" / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "broken" / "artifacts.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("error: ") and message in printed.err
