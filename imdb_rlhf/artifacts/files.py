"""Hashes, atomic writes, manifests and locks."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock, Timeout

from imdb_rlhf.errors import RunError

MANIFEST = "DONE"
RUN_ARTIFACTS = "artifacts.json"  # in a run's folder: the keys of the artifacts that the run uses
RUN_REPORT = "report.html"  # in a run's folder: drawn from its sealed files, at any time; no part of the seal

PART = ".part"  # suffix of a file that atomic_write has not yet moved into place

# --- hashes


def hash_of(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the sha256 of `value` as canonical JSON.

    The order of a mapping's keys does not matter; 1, 1.0 and True differ.

    Raises:
        TypeError: a value has no canonical JSON (JSON's own types, dataclasses, enums and paths have one).
        ValueError: a number is NaN or infinite.
    """
    canonical = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def plain(value: Any) -> Any:
    """Convert a value to JSON's own types.

    Raises:
        TypeError: as `hash_of`.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"the keys of {value!r} must be strings")
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of a key: it has no canonical JSON")


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes (64 hex digits), computed once for a large file that nobody touches."""
    stat = Path(path).stat()
    if _cached_hash is not None:
        return _cached_hash(str(path), stat.st_size, stat.st_mtime_ns)
    if stat.st_size < LARGE:
        return _hash_bytes(path)
    state = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if state not in _HASHES:
        _HASHES[state] = _hash_bytes(path)
    return _HASHES[state]


# Bytes of a file that takes so long to write that its times tell whether it was written again.
LARGE = 1 << 25
_HASHES: dict[tuple[str, int, int, int, int], str] = {}
_cached_hash: Callable[[str, int, int], str] | None = None


def remember_hashes() -> None:
    """From now on, hash a file again only if its size or time has changed; for a process that ends soon."""
    global _cached_hash

    @cache
    def cached_hash(path: str, size: int, changed: int) -> str:
        return _hash_bytes(path)

    _cached_hash = cached_hash


def _hash_bytes(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path, pattern: str = "**/*") -> str:
    """Return a hash (64 hex digits) of the names and bytes of the files that match `pattern`; links are followed.

    Raises:
        RunError: no file matches.
    """
    files = {file.relative_to(path).as_posix(): hash_file(file) for file in Path(path).glob(pattern) if file.is_file()}
    if not files:
        raise RunError(f"no file in {path} matches {pattern}")
    return hash_of(files, length=64)


# --- atomic writes


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file to the disk under another name and then rename it: a reader sees the old bytes or the new."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON by `atomic_write`.

    Raises:
        RunError: a number is nan or infinite; nothing is written.
    """
    for name, number in _not_finite(value, ""):
        raise RunError(f"{path}: {name} is {number}, so it is not written; no result of this can be used")
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The dotted name and the value of every number that is nan or infinite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{name}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, value


def fsync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- manifests


def write_manifest(folder: Path, exclude: Sequence[str] = ()) -> None:
    """Write the size and sha256 of a folder's files to DONE, once all of them are on the disk.

    Files whose path in the folder matches a pattern of `exclude` ("wandb/*" includes deeper ones), and a run's report,
    are left out, both here and by `check_manifest`. Leftovers of an interrupted `atomic_write` are removed.
    """
    folder = Path(folder)
    for leftover in folder.rglob(f".*{PART}"):
        leftover.unlink()
    files = {}
    for name, path in sorted(_files(folder, exclude).items()):
        fsync(path)
        files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        fsync(inner)
    atomic_write(folder / MANIFEST, json.dumps({"exclude": list(exclude), "files": files}, indent=1) + "\n")


def check_manifest(folder: Path, contents: Sequence[str] | None = None) -> str | None:
    """Return None if the folder is as its DONE says, else one line about the first difference.

    Compares names, sizes and bytes; given `contents`, the bytes of the files named there alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        present = _files(folder, manifest["exclude"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is not readable"
    # The cheap comparisons first: names, then sizes, then every byte.
    if missing := sorted(expected.keys() - present.keys()):
        return f"{missing[0]} is missing"
    if extra := sorted(present.keys() - expected.keys()):
        return f"{extra[0]} was added"
    for name, (size, _) in expected.items():
        if present[name].stat().st_size != size:
            return f"{name} has {present[name].stat().st_size} bytes, not {size}"
    for name, (_, sha256) in expected.items():
        if (contents is None or name in contents) and hash_file(present[name]) != sha256:
            return f"{name} has other bytes than were written"
    return None


def _files(folder: Path, exclude: Sequence[str] = ()) -> dict[str, Path]:
    """A folder's files by their path in it, without DONE, a run's report and what is left of one half-written."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    left_out = (MANIFEST, RUN_REPORT, f".{RUN_REPORT}.*{PART}", *exclude)
    return {name: path for name, path in files.items() if not any(fnmatch(name, pattern) for pattern in left_out)}


# --- locks


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold `<folder>.lock`, so that no second process writes into the folder.

    Raises:
        RunError: another process holds it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with try_lock(folder.with_name(f"{folder.name}.lock")) as free:
        if not free:
            raise RunError(f"{folder} is in use by another process: wait until it ends, or stop it")
        yield


def wait_until_free(folder: Path, seconds: float | None, note: Callable[[str], object]) -> None:
    """Wait until no process holds `<folder>.lock`.

    Args:
        folder: that another process may write into.
        seconds: to wait at most; None is as long as it takes.
        note: called with a line where there is something to wait for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    with try_lock(path) as free:
        if free:
            return
    note(f"waits until another process has left {folder}")
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=-1 if seconds is None else seconds)
        lock.release()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock if no process holds it; yields whether it is held now by this one."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
