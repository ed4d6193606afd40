"""A Hub id or a folder to a folder: everything that is loaded from the Hub goes through here."""

import os
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, TypeVar, cast

from imdb_rlhf.artifacts.files import hash_folder
from imdb_rlhf.errors import RunError

TIMEOUT = 4.0  # seconds until a Hub that does not answer is given up: 10 with the start of the process

T = TypeVar("T")


def is_folder(path: str) -> bool:
    """Whether `path` means a folder here rather than an id on the Hub (`name` or `owner/name`)."""
    return Path(path).expanduser().is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1


def identity(path: str, revision: str | None, key: str) -> str:
    """What an artifact's key holds of `path`: a folder's content, or the Hub's id and commit.

    Raises:
        RunError: the folder is not there.
    """
    if not is_folder(path):
        return f"hub:{path}@{revision or 'main'}"
    return hash_folder(local_folder(path, key))


def local_folder(path: str, key: str) -> Path:
    """An existing folder.

    Raises:
        RunError: there is none.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{key}={path}: no such folder; give one that exists, or an id of the Hub")
    return folder


def fetch(path: str, revision: str | None, key: str, kind: Literal["model", "dataset"] = "model") -> Path:
    """The local folder of a Hub id at a commit, downloaded if it is not in the cache; a folder is returned as it is.

    Args:
        path: folder, or Hub id.
        revision: the Hub's commit, branch or tag.
        key: the config key that a message names as the way out, e.g. `model.path`.
        kind: what the id is of.

    Raises:
        RunError: no such folder; the Hub out of reach (told within 10 seconds); no such repository.
    """
    if is_folder(path):
        return local_folder(path, key)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    constants.HF_HUB_DISABLE_TELEMETRY = True  # or the Hub is asked one thing more first, for up to 3 seconds
    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"] if kind == "model" else ["plain_text/*.parquet"]
    here: Path | None = None
    try:
        cached = Path(snapshot_download(path, repo_type=kind, revision=revision, local_files_only=True))
        if any(cached.glob(wanted[-1])) or any(cached.glob("*.bin")):
            here = cached  # whole or not: the Hub knows, and what is there is not downloaded again
    except HFValidationError as error:
        raise RunError(f"{key}={path}: no such folder, and no id of the Hub; give one that exists") from error
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    try:
        info = _in_time(lambda: HfApi().repo_info(path, repo_type=kind, revision=revision, timeout=TIMEOUT))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise RunError(f"{key}={path} (revision {revision or 'main'}): the Hub has no such {kind}") from error
    except Exception as error:
        if here is not None:
            return here
        raise RunError(
            f"the Hub cannot be reached for {path} ({type(error).__name__}); "
            f"set {key}=DIR to a folder that holds it, or try again with a network"
        ) from error
    files = [sibling.rfilename for sibling in getattr(info, "siblings", None) or []]
    if kind == "model" and not any(name.endswith(".safetensors") and "/" not in name for name in files):
        wanted.append("pytorch_model*.bin")
    try:
        return Path(snapshot_download(path, repo_type=kind, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise RunError(f"downloading {path} failed ({error}); run again to go on, or set {key}=DIR") from error


def _in_time(ask: Callable[[], T]) -> T:
    """What `ask` returns or raises within TIMEOUT; a socket's own limit counts anew for every address of a name."""
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
