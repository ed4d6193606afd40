"""The store under crashes, rivals and damage: an artifact is whole or absent, and made once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path

import pytest

import imdb_rlhf
from imdb_rlhf.artifacts.__main__ import Entry, contents, main, prune
from imdb_rlhf.artifacts.files import (
    atomic_write,
    check_manifest,
    hash_file,
    hash_folder,
    hash_of,
    in_use,
    write_manifest,
)
from imdb_rlhf.artifacts.store import Processes, Store
from imdb_rlhf.errors import RunError

INPUTS = {"seed": 0, "upstream": {"reviews": "0123456789abcdef"}, "lr": 1e-3}


def write_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")} if root.exists() else set()


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code` with the package importable."""
    environment = os.environ | {"PYTHONPATH": str(Path(imdb_rlhf.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} did not appear")


# --- build and find


def test_an_artifact_is_made_once_and_found_again(tmp_path):
    made = Store(tmp_path).build("sft", INPUTS, write_model)
    again = Store(tmp_path).build("sft", INPUTS, lambda folder: pytest.fail("made twice"))
    assert (made.stage, made.path) == ("sft", tmp_path / "sft" / made.key)
    assert not made.reused and again.reused
    assert (again.key, again.path, again.seconds) == (made.key, made.path, made.seconds)
    assert Store(tmp_path).find("sft", INPUTS) == again
    assert Store(tmp_path).find("sft", INPUTS | {"seed": 1}) is None
    assert names(made.path) == {"model", "model/weights", "config.json", "inputs.json", "DONE"}
    record = json.loads((made.path / "inputs.json").read_text())
    assert record["inputs"] == INPUTS
    assert record.keys() == {"stage", "key", "inputs", "source", "seconds", "created", "version"}


def test_find_writes_nothing(tmp_path):
    assert Store(tmp_path / "nowhere").find("sft", INPUTS) is None
    assert names(tmp_path) == set()


def test_reuse_across_other_source_is_reported(tmp_path, monkeypatch):
    assert not Store(tmp_path).build("sft", INPUTS, write_model).source_changed
    assert not Store(tmp_path).build("sft", INPUTS, write_model).source_changed
    monkeypatch.setattr("imdb_rlhf.artifacts.store.source_hash", lambda: "other")
    assert Store(tmp_path).build("sft", INPUTS, write_model).source_changed


def test_an_exception_leaves_no_artifact_and_no_work(tmp_path):
    def fail(folder: Path) -> None:
        write_model(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Store(tmp_path).build("sft", INPUTS, fail)
    assert Store(tmp_path).find("sft", INPUTS) is None
    assert not [name for name in names(tmp_path) if not name.endswith(".lock") and name != "sft"]
    assert not Store(tmp_path).build("sft", INPUTS, write_model).reused


def test_only_a_resumable_stage_finds_its_work_again(tmp_path):
    found: list[bool] = []

    def fail_once(folder: Path) -> None:
        found.append((folder / "checkpoint").exists())
        (folder / "checkpoint").touch()
        if len(found) % 2:
            raise RuntimeError

    for resumable in (True, False):
        with pytest.raises(RuntimeError):
            Store(tmp_path).build("sft", {"resumable": resumable}, fail_once, resumable=resumable)
        Store(tmp_path).build("sft", {"resumable": resumable}, fail_once, resumable=resumable)
    assert found == [False, True, False, False]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_kill_leaves_no_artifact(tmp_path, resumable):
    child = run_python(
        """
        import sys, time
        from pathlib import Path
        from imdb_rlhf.artifacts import Store
        def make(folder):
            (folder / "checkpoint").write_text("half")
            (Path(sys.argv[1]) / "started").touch()
            time.sleep(60)
        Store(Path(sys.argv[1])).build("sft", {"seed": 0}, make, resumable=sys.argv[2] == "True")
        """,
        tmp_path,
        resumable,
    )
    wait_for(tmp_path / "started")
    child.send_signal(signal.SIGKILL)
    child.wait()
    found: list[bool] = []

    def make(folder: Path) -> None:
        found.append((folder / "checkpoint").exists())

    store = Store(tmp_path, on_wait=lambda message: pytest.fail("the dead process still holds the lock"))
    assert store.find("sft", {"seed": 0}) is None
    assert not store.build("sft", {"seed": 0}, make, resumable=resumable).reused
    assert found == [resumable]


def test_of_two_processes_that_want_the_same_one_makes_it(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from imdb_rlhf.artifacts import Store
        root = Path(sys.argv[1])
        def make(folder):
            print("made")
            (root / "started").touch()
            deadline = time.monotonic() + 30
            while not (root / "waiting").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        store = Store(root, on_wait=lambda message: (print("waited:", message), (root / "waiting").touch()))
        print("reused" if store.build("sft", {"seed": 0}, make).reused else "fresh")
        """
    first = run_python(code, tmp_path)
    wait_for(tmp_path / "started")
    second = run_python(code, tmp_path)
    outputs = [child.communicate(timeout=60) for child in (first, second)]
    assert outputs[0] == ("made\nfresh\n", "")
    assert outputs[1][0].startswith("waited: sft ") and outputs[1][0].endswith(
        "another process: waiting for it\nreused\n"
    )


class Ranks:
    """Two threads that stand for two processes."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)
        self.shared: object = None

    def rank(self, number: int) -> Processes:
        class Rank:
            rank = number

            def broadcast(_, obj):
                if number == 0:
                    self.shared = obj
                self.barrier.wait()
                shared = self.shared
                self.barrier.wait()
                return shared

            def barrier(_):
                self.barrier.wait()

        return Rank()

    def run(self, work) -> list:
        results: list = [None, None]

        def target(number: int) -> None:
            try:
                results[number] = work(self.rank(number))
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=target, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_all_ranks_make_and_get_one_artifact(tmp_path):
    def work(processes):
        def make(folder: Path) -> None:
            time.sleep(0.2 * processes.rank)  # rank 0 may not close the folder before rank 1 is done
            (folder / f"rank-{processes.rank}").touch()

        store = Store(tmp_path, processes)
        return store.build("sft", INPUTS, make), store.build("sft", INPUTS, make)

    (made, again), other = Ranks().run(work)
    assert (made, again) == other
    assert not made.reused and again.reused
    assert names(made.path) == {"rank-0", "rank-1", "inputs.json", "DONE"}


def test_what_rank_0_cannot_do_raises_on_every_rank(tmp_path):
    (tmp_path / "sft").touch()  # a file where the stage's folder would be
    first, second = Ranks().run(lambda processes: Store(tmp_path, processes).build("sft", INPUTS, write_model))
    assert isinstance(first, OSError)
    assert isinstance(second, RunError) and str(first) in str(second)


# --- damage


def flip(folder: Path) -> str:
    path = folder / "model" / "weights"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return "model/weights has other bytes than were written"


def shorten(folder: Path) -> str:
    os.truncate(folder / "model" / "weights", 255)
    return "model/weights has 255 bytes, not 256"


def remove(folder: Path) -> str:
    (folder / "model" / "weights").unlink()
    return "model/weights is missing"


def add(folder: Path) -> str:
    (folder / "model" / "more").touch()
    return "model/more was added"


def remove_manifest(folder: Path) -> str:
    (folder / "DONE").unlink()
    return "DONE is missing"


def cut_manifest(folder: Path) -> str:
    os.truncate(folder / "DONE", 20)
    return "DONE is not readable"


def replace_manifest(folder: Path) -> str:
    (folder / "DONE").write_text("[]")
    return "DONE is not readable"


@pytest.mark.parametrize("damage", [flip, shorten, remove, add, remove_manifest, cut_manifest, replace_manifest])
def test_a_damaged_artifact_is_set_aside_and_made_again(tmp_path, damage):
    told: list[str] = []
    store = Store(tmp_path, on_damage=told.append)
    for number in (1, 2):
        path = store.build("sft", INPUTS, write_model).path
        assert check_manifest(path) is None
        problem = damage(path)
        assert check_manifest(path) == problem
        assert store.find("sft", INPUTS) is None
        left = names(path)
        assert not store.build("sft", INPUTS, write_model).reused
        aside = path.with_name(f"{path.name}.damaged-{number}")
        assert names(aside) == left
        assert told[-1] == f"{path} is damaged ({problem}): moved to {aside.name} and made again"
    assert len(told) == 2


def test_a_manifest_leaves_out_what_it_is_told_to(tmp_path):
    write_model(tmp_path)
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "run-1" / "log").write_text("a")
    write_manifest(tmp_path, exclude=("wandb/*", "wandb_id"))
    (tmp_path / "wandb" / "run-1" / "log").write_text("ab")
    (tmp_path / "wandb" / "run-1" / "more").touch()
    (tmp_path / "wandb_id").touch()
    assert check_manifest(tmp_path) is None
    assert flip(tmp_path) == check_manifest(tmp_path)
    listed = json.loads((tmp_path / "DONE").read_text())["files"]
    assert listed["config.json"] == {"size": 2, "sha256": sha256(b"{}").hexdigest()}
    assert listed.keys() == {"config.json", "model/weights"}


def test_a_manifest_removes_what_an_interrupted_write_left(tmp_path):
    (tmp_path / ".metrics.jsonl.123.part").touch()
    write_manifest(tmp_path)
    assert names(tmp_path) == {"DONE"}


# --- keys


class Kind(Enum):
    PAIRS = "pairs"
    BEST = "best"


@dataclass
class Config:
    lr: float
    kind: Kind
    folder: Path


def test_a_key_is_the_sha256_of_canonical_json():
    canonical = b'{"a":[1,2.5,null,true],"b":{"folder":"x/y","kind":"pairs","lr":1e-06},"c":"\\u00e9"}'
    value = {"c": "é", "b": Config(1e-6, Kind.PAIRS, Path("x/y")), "a": (1, 2.5, None, True)}
    assert hash_of(value) == sha256(canonical).hexdigest()[:16]
    assert hash_of(value, length=64) == sha256(canonical).hexdigest()


def test_a_key_depends_on_every_input_and_not_on_their_order(tmp_path):
    store = Store(tmp_path)
    base = {"seed": 0, "config": {"lr": 1e-3, "steps": 10, "kind": "pairs"}, "sft": "aa", "precision": "fp32"}
    changed = [
        base | {"seed": 1},
        base | {"seed": "0"},
        base | {"config": {"lr": 2e-3, "steps": 10, "kind": "pairs"}},
        base | {"config": {"lr": 1e-3, "steps": 11, "kind": "pairs"}},
        base | {"sft": "ab"},
        base | {"precision": "bf16"},
        base | {"processes": 2},
        {name: value for name, value in base.items() if name != "seed"},
    ]
    keys = [store.key("sft", inputs) for inputs in [base, *changed]] + [store.key("dpo", base)]
    assert len(set(keys)) == len(changed) + 2
    assert store.key("sft", dict(reversed(base.items()))) == keys[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_a_key_has_no_nan(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_of(value)


@pytest.mark.parametrize("value", [object(), {1: "a"}, {1, 2}, b"bytes", Config])
def test_a_key_has_only_what_json_can_say(value):
    with pytest.raises(TypeError):
        hash_of(value)


def test_a_folder_is_hashed_by_names_and_bytes(tmp_path):
    write_model(tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    assert hash_file(tmp_path / "a" / "config.json") == sha256(b"{}").hexdigest()
    json_only = hash_folder(tmp_path / "b", "**/*.json")
    (tmp_path / "b" / "model" / "weights").rename(tmp_path / "b" / "model" / "weight")
    assert hash_folder(tmp_path / "a") != hash_folder(tmp_path / "b")
    assert hash_folder(tmp_path / "b", "**/*.json") == json_only
    with pytest.raises(RunError, match="no file in .* matches"):
        hash_folder(tmp_path / "a", "*.parquet")


# --- writing and locking


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_text() == "new"

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "newer")
    assert path.read_text() == "new"
    assert names(tmp_path) == {"summary.json"}


def test_a_reader_never_sees_half_a_write(tmp_path):
    path = tmp_path / "state"
    versions = [letter * 100_000 for letter in "ab"]
    atomic_write(path, versions[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(20):
            atomic_write(path, versions[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_text() in versions
    writer.join()


def test_a_folder_in_use_is_refused_to_a_second_process(tmp_path):
    folder = tmp_path / "runs" / "dpo-beta0.1-s0-00000000"
    code = """
        import sys
        from pathlib import Path
        from imdb_rlhf.artifacts import in_use
        from imdb_rlhf.errors import RunError
        try:
            with in_use(Path(sys.argv[1])):
                print("free")
        except RunError as error:
            print(error)
        """
    with in_use(folder):
        assert run_python(code, folder).communicate(timeout=60)[0].startswith(f"{folder} is in use by another process")
        with pytest.raises(RunError, match="in use"), in_use(folder):
            pass
    assert run_python(code, folder).communicate(timeout=60)[0] == "free\n"


# --- list and prune


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
