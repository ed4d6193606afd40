"""The store under crashes, rivals and damage: an artifact is whole or absent, and made once."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.artifacts.store import Processes, Store
from imdb_rlhf.errors import RunError
from tests.artifacts.folders import flip, names, run_python, write_model

INPUTS = {"seed": 0, "upstream": {"reviews": "0123456789abcdef"}, "lr": 1e-3}


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} did not appear")


# --- build and find


def test_an_artifact_is_made_once_and_found_again(tmp_path):
    artifact = Store(tmp_path).build("sft", INPUTS, write_model)
    again = Store(tmp_path).build("sft", INPUTS, lambda folder: pytest.fail("made twice"))
    assert (artifact.stage, artifact.path) == ("sft", tmp_path / "sft" / artifact.key)
    assert not artifact.reused and again.reused
    assert (again.key, again.path, again.seconds) == (artifact.key, artifact.path, artifact.seconds)
    assert Store(tmp_path).find("sft", INPUTS) == again
    assert Store(tmp_path).find("sft", INPUTS | {"seed": 1}) is None
    assert names(artifact.path) == {"model", "model/weights", "config.json", "inputs.json", "DONE"}
    record = json.loads((artifact.path / "inputs.json").read_text())
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
    checkpoints: list[bool] = []

    def fail_once(folder: Path) -> None:
        checkpoints.append((folder / "checkpoint").exists())
        (folder / "checkpoint").touch()
        if len(checkpoints) % 2:
            raise RuntimeError

    for resumable in (True, False):
        with pytest.raises(RuntimeError):
            Store(tmp_path).build("sft", {"resumable": resumable}, fail_once, resumable=resumable)
        Store(tmp_path).build("sft", {"resumable": resumable}, fail_once, resumable=resumable)
    assert checkpoints == [False, True, False, False]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_kill_leaves_no_artifact(tmp_path, resumable):
    child = run_python(
        """
        import sys, time
        from pathlib import Path
        from imdb_rlhf.artifacts.store import Store
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
    checkpoints: list[bool] = []

    def make(folder: Path) -> None:
        checkpoints.append((folder / "checkpoint").exists())

    store = Store(tmp_path, on_wait=lambda message: pytest.fail("the dead process still holds the lock"))
    assert store.find("sft", {"seed": 0}) is None
    assert not store.build("sft", {"seed": 0}, make, resumable=resumable).reused
    assert checkpoints == [resumable]


def test_of_two_processes_that_want_the_same_one_makes_it(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from imdb_rlhf.artifacts.store import Store
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

    (artifact, again), other = Ranks().run(work)
    assert (artifact, again) == other
    assert not artifact.reused and again.reused
    assert names(artifact.path) == {"rank-0", "rank-1", "inputs.json", "DONE"}


def test_what_rank_0_cannot_do_raises_on_every_rank(tmp_path):
    (tmp_path / "sft").touch()  # a file where the stage's folder would be
    first, second = Ranks().run(lambda processes: Store(tmp_path, processes).build("sft", INPUTS, write_model))
    assert isinstance(first, OSError)
    assert isinstance(second, RunError) and str(first) in str(second)


# --- damage


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
    messages: list[str] = []
    store = Store(tmp_path, on_damage=messages.append)
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
        assert messages[-1] == f"{path} is damaged ({problem}): moved to {aside.name} and made again"
    assert len(messages) == 2


# --- keys


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
