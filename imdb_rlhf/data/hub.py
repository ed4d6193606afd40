"""From a Hub id or a folder to a folder: everything that is loaded from the Hub passes through this module."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal, TypeVar, cast

from imdb_rlhf.artifacts.files import hash_folder
from imdb_rlhf.data.split_files import COMPRESSIONS, FORMATS
from imdb_rlhf.errors import RunError

TIMEOUT = 4.0  # seconds to wait for the Hub's answer; with the start of the process that makes at most 10
# The files of a dataset that are downloaded.
DATA = tuple(f"*{suffix}" for suffix in (*FORMATS, *COMPRESSIONS))

T = TypeVar("T")
Kind = Literal["model", "dataset"]


def is_folder(path: str) -> bool:
    """Whether `path` means a local folder rather than an id on the Hub (`name` or `owner/name`)."""
    return Path(path).expanduser().is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1


def identity(path: str, revision: str | None, key: str, kind: Kind = "model") -> str:
    """How an artifact's key names `path`: the hash of a folder's content, or the Hub's id and commit.

    Raises:
        RunError: the folder does not exist, or `path` can be neither a folder's name nor an id.
    """
    if not is_folder(path):
        _check_id(path, key)
        return f"hub:{path}@{commit(path, revision, kind)}"
    return hash_folder(local_folder(path, key))


def _check_id(path: str, key: str) -> None:
    """Refuse what is no id by the Hub's rules."""
    known = re.fullmatch(r"([A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_.][\w.-]*", path, re.ASCII)
    if not known or len(path) > 96 or path[-1] in ".-" or "--" in path or ".." in path or path.endswith(".git"):
        raise RunError(f"{key}={path}: no such folder, and not a Hub id; give one that exists")


def commit(path: str, revision: str | None, kind: Kind) -> str:
    """The commit that a branch or tag of the Hub is at, the same throughout a process.

    Where the Hub is out of reach it is the one in the cache; where that has none, the branch's or tag's own name.
    """
    name = revision or "main"
    if re.fullmatch("[0-9a-f]{40}", name):
        return name
    answer = _ask(path, name, kind)
    sha = None if isinstance(answer, Exception) else getattr(answer, "sha", None)
    return sha or _cached_commit(path, name, kind) or name


# What the Hub said of (path, revision, kind), or why it did not: it is asked once in a process.
_ANSWERS: dict[tuple[str, str, str], Any] = {}


def _ask(path: str, revision: str, kind: Kind) -> Any:
    """The Hub's description of a repository, or the exception that came instead."""
    from huggingface_hub import HfApi, constants

    constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise a telemetry request comes first and takes up to 3 seconds
    asked = path, revision, kind
    if asked not in _ANSWERS:
        try:
            _ANSWERS[asked] = in_time(
                lambda: HfApi().repo_info(path, repo_type=kind, revision=revision, timeout=TIMEOUT)
            )
        except Exception as error:
            _ANSWERS[asked] = error
    return _ANSWERS[asked]


def _cached_commit(path: str, revision: str, kind: Kind) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    reference = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type=kind) / "refs" / revision
    return reference.read_text().strip() or None if reference.is_file() else None


def local_folder(path: str, key: str) -> Path:
    """The folder that `path` names, `~` expanded.

    Raises:
        RunError: it does not exist; the message names `key`.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{key}={path}: no such folder; give one that exists, or a Hub id")
    return folder


def fetch(path: str, revision: str | None, key: str, kind: Kind = "model") -> Path:
    """The local folder of a Hub id at a commit, downloaded if it is not in the cache; a folder is returned as it is.

    Args:
        path: a folder or a Hub id.
        revision: the Hub's commit, branch or tag.
        key: the config key that a message names as the way out, e.g. `model.path`.
        kind: what the id names.

    Raises:
        RunError: no such folder; no valid id; no such repository; or the Hub is out of reach (told within 10 seconds).
    """
    if is_folder(path):
        return local_folder(path, key)
    _check_id(path, key)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"] if kind == "model" else list(DATA)
    cached = _cached(path, revision, kind)
    info = _ask(path, revision or "main", kind)
    if isinstance(info, RepositoryNotFoundError | RevisionNotFoundError):
        raise RunError(f"{key}={path} (revision {revision or 'main'}): the Hub has no such {kind}") from info
    if isinstance(info, Exception):
        if cached is not None:
            return cached
        raise RunError(
            f"the Hub cannot be reached for {path} ({type(info).__name__}); "
            f"set {key}=DIR to a folder that holds it, or try again with a network"
        ) from info
    files = [sibling.rfilename for sibling in getattr(info, "siblings", None) or []]
    if kind == "model" and not any(name.endswith(".safetensors") and "/" not in name for name in files):
        patterns.append("pytorch_model*.bin")
    try:  # at the commit of the keys, if the branch has moved since
        at = commit(path, revision, kind)
        return Path(snapshot_download(path, repo_type=kind, revision=at, allow_patterns=patterns))
    except Exception as error:
        raise RunError(f"downloading {path} failed ({error}); run again to go on, or set {key}=DIR") from error


def _cached(path: str, revision: str | None, kind: Kind) -> Path | None:
    """The cache's snapshot of a Hub id if it holds weights, or rows; None if not.

    It may be incomplete: only the Hub knows. Files that it holds are not downloaded again.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(path, repo_type=kind, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None
    wanted = ("*.safetensors", "*.bin") if kind == "model" else tuple(f"**/{pattern}" for pattern in DATA)
    return snapshot if any(True for pattern in wanted for _ in snapshot.glob(pattern)) else None


def in_time(ask: Callable[[], T]) -> T:
    """Return or raise what `ask` does, or raise TimeoutError after TIMEOUT seconds.

    A socket's own limit is not enough: it starts again for each address that a host name resolves to.
    """
    answers: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def put() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    Thread(target=put, daemon=True).start()
    try:
        answer, error = answers.get(timeout=TIMEOUT)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(T, answer)
