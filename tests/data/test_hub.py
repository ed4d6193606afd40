"""Folders are returned as they are; a Hub that does not answer is refused in time, with the key that is the way out."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils._validators import validate_repo_id

from imdb_rlhf.data import hub
from imdb_rlhf.errors import RunError

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch) -> Path:
    """Put the Hub out of reach and empty the cache, so that nothing leaves this machine; returns the cache."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    cache = tmp_path / "cache"
    for name, value in {"ENDPOINT": NOWHERE, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(hub, "_ANSWERS", {})
    return cache


def refused(path: str, revision: str | None = None, key: str = "model.path", kind: Any = "model") -> tuple[str, float]:
    """The message of `hub.fetch`'s refusal, and the seconds until it came."""
    began = time.monotonic()
    with pytest.raises(RunError) as caught:
        hub.fetch(path, revision, key, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - began


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes every connection and never answers."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    connections.append(server.accept()[0])
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("path", "revision", "key", "kind"),
    [
        ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", "model.path", "model"),
        ("gpt2", None, "sft.path", "model"),
        ("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31", "data.path", "dataset"),
    ],
)
def test_no_hub(path, revision, key, kind):
    message, seconds = refused(path, revision, key, kind)
    assert message.startswith(f"the Hub cannot be reached for {path} (")
    assert f"set {key}=DIR to a folder that holds it" in message
    assert seconds < 10


def test_a_hub_that_never_answers(silent, monkeypatch):
    assert hub.TIMEOUT <= 4  # so that a person waits less than 10 seconds; this test has less patience
    monkeypatch.setattr(hub, "TIMEOUT", 1.0)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent)
    message, seconds = refused("stanfordnlp/imdb", "main", "data.path", "dataset")
    assert message.startswith("the Hub cannot be reached for stanfordnlp/imdb (") and "set data.path=DIR" in message
    assert 0.5 < seconds < 7


def test_a_hub_whose_every_address_is_tried(monkeypatch):
    """A name that resolves slowly, or to many addresses, each with a time limit of its own."""
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *arguments, **named: time.sleep(20))
    message, seconds = refused("owner/name")
    assert message.startswith("the Hub cannot be reached for owner/name (TimeoutError); set model.path=DIR")
    assert seconds < 10


def test_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message, seconds = refused("gpt2")
    assert "set model.path=DIR" in message and seconds < 10


def test_a_branch_is_known_by_its_commit(monkeypatch, no_hub):
    sha = "a" * 40
    assert hub.identity("owner/pinned", sha, "model.path") == f"hub:owner/pinned@{sha}"
    assert hub.identity("owner/absent", None, "model.path") == "hub:owner/absent@main"
    reference = no_hub / "datasets--owner--cached" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(sha)
    assert hub.identity("owner/cached", None, "data.path", "dataset") == f"hub:owner/cached@{sha}"
    commits = iter("bc")
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *a, **n: SimpleNamespace(sha=next(commits) * 40))
    for _ in range(2):  # as it was when the process began
        assert hub.identity("owner/asked", None, "model.path") == f"hub:owner/asked@{'b' * 40}"


def test_a_hub_that_is_out_of_reach_is_waited_for_once(monkeypatch):
    """The key of a branch asks it, and so does the download: together they take no more than the promised time."""
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    asked = []

    def repo_info(*arguments: Any, **named: Any) -> None:
        asked.append(arguments)
        time.sleep(20)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    assert hub.identity("owner/name", None, "model.path") == "hub:owner/name@main"
    refused("owner/name")
    assert len(asked) == 1


@pytest.mark.parametrize("path", ["my model", "owner/", "a--b", "a..b", "x" * 120, "-a", "a.", "a.git", "é", "a/b c"])
def test_what_is_no_id_of_the_hub(path):
    assert refused(path)[0].startswith(f"model.path={path}: no such folder, and not a Hub id")
    for kind in ("model", "dataset"):
        with pytest.raises(RunError, match="no such folder, and not a Hub id"):
            hub.identity(path, None, "sft.path", kind)


@pytest.mark.parametrize("path", ["gpt2", "owner/name", "a_b/c.d-e", "_x/y", "1/2"])
def test_what_may_be_an_id_of_the_hub(path):
    validate_repo_id(path)
    hub._check_id(path, "model.path")


@pytest.mark.parametrize("revision", [None, "some-branch"])
def test_no_such_repository_or_revision(monkeypatch, revision):
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFoundError(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def repo_info(*arguments, **named):
        raise NotFoundError

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    message, _ = refused("owner/name", revision, "sft.path")
    assert message == f"sft.path=owner/name (revision {revision or 'main'}): the Hub has no such model"


# --- the cache


def cached(cache: Path, repository: str, commit: str, files: dict[str, bytes]) -> Path:
    """A repository in the layout of the Hub's cache."""
    folder = cache / repository
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", "a" * 40])
@pytest.mark.parametrize(
    ("repository", "path", "kind", "files"),
    [
        ("models--owner--name", "owner/name", "model", {"config.json": b"{}", "model.safetensors": b"x"}),
        ("models--owner--name", "owner/name", "model", {"config.json": b"{}", "pytorch_model.bin": b"x"}),
        ("datasets--owner--name", "owner/name", "dataset", {"plain_text/train-00000-of-00001.parquet": b"x"}),
    ],
)
def test_what_is_in_the_cache_needs_no_hub(no_hub, revision, repository, path, kind, files):
    snapshot = cached(no_hub, repository, "a" * 40, files)
    assert hub.fetch(path, revision, "model.path", kind) == snapshot


def test_half_a_model_in_the_cache_is_not_taken(no_hub):
    cached(no_hub, "models--owner--name", "a" * 40, {"config.json": b"{}"})
    assert refused("owner/name")[0].startswith("the Hub cannot be reached for owner/name")


# --- folders


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("gpt2", False),
        ("openai-community/gpt2", False),
        ("./gpt2", True),
        ("../models/gpt2", True),
        ("/models/gpt2", True),
        ("~/gpt2", True),
        ("a/b/c", True),
    ],
)
def test_what_means_a_folder(path, folder):
    assert hub.is_folder(path) is folder


def test_a_folder_that_exists_is_meant_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub.is_folder("owner/name") and hub.is_folder("owner")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_folder_is_used_as_it_is(tmp_path, monkeypatch, kind):
    (tmp_path / "own").mkdir()
    assert hub.fetch(str(tmp_path / "own"), "main", "model.path", kind) == tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.fetch("~/own", None, "model.path", kind) == tmp_path / "own"


@pytest.mark.parametrize("call", [hub.identity, hub.fetch])
def test_a_folder_that_is_not_there(tmp_path, call):
    with pytest.raises(RunError) as caught:
        call(f"{tmp_path}/none", None, "sft.path")
    assert str(caught.value).startswith(f"sft.path={tmp_path}/none: no such folder; give one")


# --- identities


def test_the_identity_of_a_folder_is_its_content(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "inner").mkdir(parents=True)
    (first / "weights").write_bytes(b"abc")
    (first / "inner" / "vocabulary").write_bytes(b"a b")
    shutil.copytree(first, second)
    before = hub.identity(str(first), None, "model.path")
    assert hub.identity(str(second), "main", "reward.path") == before
    (second / "weights").write_bytes(b"abd")
    assert hub.identity(str(second), None, "model.path") != before
    shutil.copy(first / "weights", second / "weights")
    assert hub.identity(str(second), None, "model.path") == before
    (second / "inner" / "vocabulary").rename(second / "inner" / "vocab")
    assert hub.identity(str(second), None, "model.path") != before


def test_the_identity_of_an_id_is_the_id_and_its_commit():
    first = hub.identity("owner/name", "abc", "model.path")
    assert first == hub.identity("owner/name", "abc", "sft.path") == "hub:owner/name@abc"
    assert hub.identity("owner/name", None, "model.path") == "hub:owner/name@main"
