"""Hashes of values, files and folders; writes, manifests and locks under failures, damage and a second process."""

import json
import math
import os
import shutil
import threading
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path

import pytest

from imdb_rlhf.artifacts.files import (
    atomic_write,
    check_manifest,
    hash_file,
    hash_folder,
    hash_of,
    in_use,
    write_json,
    write_manifest,
)
from imdb_rlhf.errors import RunError
from tests.artifacts.folders import flip, names, run_python, write_model

# --- hashes


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


# --- manifests


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
        from imdb_rlhf.artifacts.files import in_use
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


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": math.nan}, "a is nan"),
        ({"a": {"b": [1, {"c": math.inf}]}}, "a.b[1].c is inf"),
        ([0.5, -math.inf], "[1] is -inf"),
    ],
)
def test_json_with_a_number_that_is_not_finite_is_not_written(tmp_path, value, name):
    with pytest.raises(RunError) as caught:
        write_json(tmp_path / "summary.json", value)
    assert str(caught.value).startswith(f"{tmp_path}/summary.json: {name}, so it is not written")
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "summary.json", {"a": None, "b": 0.5})
    assert (tmp_path / "summary.json").exists()
