"""The store: what a stage made, in a folder named by the hash of what it was made from; whole or absent.

    outputs/artifacts/<stage>/<key>/            finished: inputs.json says what made it, DONE holds every file's sha256
    outputs/artifacts/<stage>/<key>.work/       being made, or left by a crash with the checkpoint to go on from
    outputs/artifacts/<stage>/<key>.damaged-1/  no longer what DONE says; never used, never deleted by a run
    outputs/artifacts/<stage>/<key>.lock        held while the artifact is made; empty, and stays

An upstream artifact's key is one of a stage's inputs, so a key stands for everything that led to it (a Merkle tree).
`python -m imdb_rlhf.artifacts list|prune` shows what is there and removes what no run uses.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, NoReturn, Protocol, TypeVar

from filelock import FileLock, Timeout

from imdb_rlhf.errors import ConfigError, RunError

MANIFEST = "DONE"
INPUTS = "inputs.json"
UNFINISHED_WRITE = ".part"  # the ending of what atomic_write has not yet moved into place

T = TypeVar("T")


# --- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """What a stage made: `path` is a whole folder, to be read and never written to."""

    stage: str
    key: str
    path: Path
    reused: bool
    seconds: float  # what making it took, then; of a stage that was resumed, the last leg
    source_changed: bool  # it was made by another version of the package's source


class Processes(Protocol):
    """The processes that run a stage together."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    def broadcast(self, obj: Any) -> Any:
        """The `obj` of rank 0, on every rank."""

    def barrier(self) -> None:
        """Return once every rank has called this."""


class Solo:
    """One process."""

    rank = 0

    def broadcast(self, obj: Any) -> Any:
        """Return `obj`."""
        return obj

    def barrier(self) -> None:
        """Return at once."""


class Store:
    """Artifacts under `root`; `on_wait` and `on_damage` are told in one line (on rank 0) what is worth a line."""

    def __init__(
        self,
        root: Path,
        processes: Processes | None = None,
        *,
        on_wait: Callable[[str], None] = lambda message: None,
        on_damage: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Write nothing yet: `root` need not exist."""
        self.root = Path(root)
        self.processes = processes or Solo()
        self.on_wait = on_wait
        self.on_damage = on_damage
        self._source = source_hash()  # now: somebody may edit the files while a stage runs

    def key(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Name the artifact that `stage` makes from `inputs` (JSON, dataclasses, enums and paths)."""
        return hash_of({"stage": stage, "inputs": inputs})

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact if it is there and whole. Writes nothing, locks nothing."""
        key = self.key(stage, inputs)
        folder = self.root / stage / key
        if check_manifest(folder) is not None:
            return None
        made = json.loads((folder / INPUTS).read_text())
        return Artifact(stage, key, folder, True, made["seconds"], made["source"] != self._source)

    def build(
        self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], None], *, resumable: bool = False
    ) -> Artifact:
        """Return the artifact, made by `make(folder)` on every rank unless it is there already.

        Of several processes, or runs, that want the same artifact one makes it and the others wait. If `make` raises,
        there is no artifact. A `resumable` stage finds in `folder` what its interrupted predecessor left there; any
        other finds it empty. What rank 0 alone cannot do raises on every rank; a `make` that raises on one rank must
        end them all (as torchrun does).
        """
        work = self.root / stage / f"{self.key(stage, inputs)}.work"
        with ExitStack() as held:
            found = self._on_rank_0(lambda: self._find_or_lock(held, stage, inputs, work, resumable))
            if found is not None:
                return found
            began = time.monotonic()
            try:
                make(work)
                self.processes.barrier()
                return self._on_rank_0(lambda: self._seal(stage, inputs, work, time.monotonic() - began))
            except BaseException:
                if self.processes.rank == 0 and not resumable:
                    shutil.rmtree(work, ignore_errors=True)
                raise

    def _on_rank_0(self, step: Callable[[], T]) -> T:
        """Run `step` on rank 0 alone; its result, or its failure, is every rank's."""
        result: T | None = None
        error: Exception | None = None
        if self.processes.rank == 0:
            try:
                result = step()
            except Exception as caught:
                error = caught
        result, failure = self.processes.broadcast((result, None if error is None else f"process 0: {error}"))
        if error is not None:
            raise error
        if failure is not None:
            raise RunError(failure)
        return result

    def _find_or_lock(
        self, held: ExitStack, stage: str, inputs: Mapping[str, Any], work: Path, resumable: bool
    ) -> Artifact | None:
        found = self.find(stage, inputs)
        if found is not None:
            return found
        work.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self.on_wait(f"{stage} {work.stem} is being made by another process: waiting for it")
            lock.acquire()
        held.callback(lock.release)
        found = self.find(stage, inputs)  # made while this process waited
        if found is not None:
            return found
        folder = work.with_suffix("")
        if folder.exists():
            self._set_aside(folder)
        if not resumable and work.exists():
            shutil.rmtree(work)
        work.mkdir(exist_ok=True)
        return None

    def _set_aside(self, folder: Path) -> None:
        problem = check_manifest(folder)
        number = 1
        while (aside := folder.with_suffix(f".damaged-{number}")).exists():
            number += 1
        folder.rename(aside)
        self.on_damage(f"{folder} is damaged ({problem}): moved to {aside.name} and made again")

    def _seal(self, stage: str, inputs: Mapping[str, Any], work: Path, seconds: float) -> Artifact:
        folder = work.with_suffix("")
        made = {
            "stage": stage,
            "key": folder.name,
            "inputs": _plain(inputs),
            "source": self._source,
            "seconds": seconds,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": _package_version(),
        }
        atomic_write(work / INPUTS, json.dumps(made, indent=2) + "\n")
        write_manifest(work)
        work.rename(folder)
        _fsync(folder.parent)
        return Artifact(stage, folder.name, folder, False, seconds, False)


# --- hashes -----------------------------------------------------------------------------------------------------------


def hash_of(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the sha256 of `value` as canonical JSON.

    The order of a mapping's keys does not count; 1 and 1.0 and True differ.

    Raises:
        TypeError: a value has no canonical JSON (only JSON's own types, dataclasses, enums and paths have one).
        ValueError: a number is NaN or infinite.
    """
    canonical = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes (64 hex digits)."""
    if _remembered is not None:
        found = Path(path).stat()
        return _remembered(str(path), found.st_size, found.st_mtime_ns)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_remembered: Callable[[str, int, int], str] | None = None


def remember_hashes() -> None:
    """Read each file once in the rest of this process, unless its size or time changes; for one that ends soon."""
    global _remembered

    @cache
    def remembered(path: str, size: int, changed: int) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    _remembered = remembered


def hash_folder(path: Path, pattern: str = "**/*") -> str:
    """Return a hash (64 hex digits) of the names and bytes of a folder's files; links count as what they point to.

    Raises:
        RunError: no file matches.
    """
    files = {file.relative_to(path).as_posix(): hash_file(file) for file in Path(path).glob(pattern) if file.is_file()}
    if not files:
        raise RunError(f"no file in {path} matches {pattern}")
    return hash_of(files, length=64)


def source_hash() -> str:
    """Return a hash of the package's own source files."""
    return hash_folder(Path(__file__).parent, "**/*.py")[:16]


def _plain(value: Any) -> Any:
    """The value as JSON's own types."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"the keys of {value!r} must be strings")
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of a key: it has no canonical JSON")


# --- files that are whole or absent -----------------------------------------------------------------------------------


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file beside its place, to the disk, and then move it there: a reader sees the old bytes or the new."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED_WRITE}")
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_manifest(folder: Path, exclude: Sequence[str] = ()) -> None:
    """Bring a folder to the disk and write the size and sha256 of its files to DONE.

    Files whose path in the folder matches a pattern of `exclude` ("wandb/*" takes in what lies deeper) are left out,
    now and by `check_manifest`. What an interrupted `atomic_write` left is removed.
    """
    folder = Path(folder)
    for leftover in folder.rglob(f".*{UNFINISHED_WRITE}"):
        leftover.unlink()
    files = {}
    for name, path in sorted(_files(folder, exclude).items()):
        _fsync(path)
        files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _fsync(inner)
    atomic_write(folder / MANIFEST, json.dumps({"exclude": list(exclude), "files": files}, indent=1) + "\n")


def check_manifest(folder: Path, contents: Sequence[str] | None = None) -> str | None:
    """Return None if the folder holds what its DONE says, else one line about what differs.

    Every file is compared byte for byte, or those alone that `contents` names (the others by their sizes).
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
    # What is cheap first: names, then sizes, then every byte.
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


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold `<folder>.lock`, so that no second process writes into the folder.

    Raises:
        RunError: another process holds it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _try_lock(folder.with_name(f"{folder.name}.lock")) as free:
        if not free:
            raise RunError(f"{folder} is in use by another process: wait until it ends, or stop it")
        yield


def wait_until_free(folder: Path, seconds: float) -> None:
    """Return when nobody holds `<folder>.lock`, or after so many seconds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with suppress(Timeout):
        lock.acquire(timeout=seconds)
        lock.release()


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody does; says whether."""
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


def _files(folder: Path, exclude: Sequence[str] = ()) -> dict[str, Path]:
    """A folder's files by their path in it; DONE itself is none of them."""
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in named.items()
        if name != MANIFEST and not any(fnmatch(name, pattern) for pattern in exclude)
    }


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _package_version() -> str:
    try:
        return metadata.version("imdb_rlhf")
    except metadata.PackageNotFoundError:
        return "not installed"


# --- python -m imdb_rlhf.artifacts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A folder of the store, as `list` shows it."""

    stage: str
    key: str
    path: Path
    state: str  # whole, damaged, unfinished, or being made
    size: int  # bytes
    age: float  # seconds
    made_from: str
    used_by: tuple[str, ...]  # names of runs


def contents(outputs: Path) -> list[Entry]:
    """Return what lies in `outputs/artifacts`, oldest first within a stage; reads every byte, writes nothing."""
    users = _users(outputs)
    entries = []
    for path in sorted((outputs / "artifacts").glob("*/*")):
        if not path.is_dir():
            continue
        stage, (key, _, suffix) = path.parent.name, path.name.partition(".")
        state = {"work": "unfinished", "removing": "unfinished"}.get(suffix, "damaged")
        if not suffix and check_manifest(path) is None:
            state = "whole"
        lock = path.with_name(f"{key}.lock")
        if suffix == "work" and lock.exists():
            with _try_lock(lock) as free:
                state = state if free else "being made"
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        age = max(0.0, time.time() - path.stat().st_mtime)
        entries.append(Entry(stage, key, path, state, size, age, _made_from(path), users.get((stage, key), ())))
    return sorted(entries, key=lambda entry: (entry.stage, -entry.age))


def prune(outputs: Path, *, damaged: bool = False, remove: bool = False) -> list[Entry]:
    """Return what no run uses and nobody is making, removed if `remove`; with `damaged`, what is damaged too.

    A damaged folder is never read by a run, so it goes whether a run names its key or not.
    """
    going = [
        entry
        for entry in contents(outputs)
        if (entry.state in ("whole", "unfinished") and not entry.used_by) or (damaged and entry.state == "damaged")
    ]
    return [entry for entry in going if not remove or _remove(entry)]


def _remove(entry: Entry) -> bool:
    with _try_lock(entry.path.with_name(f"{entry.key}.lock")) as free:
        if not free or not entry.path.exists():  # somebody is making it, or has just finished it
            return False
        away = entry.path.with_name(f"{entry.key}.removing")
        if away != entry.path:
            shutil.rmtree(away, ignore_errors=True)
            entry.path.rename(away)  # at once: a reader finds all of it or nothing
        shutil.rmtree(away)
        return True


def _users(outputs: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The runs that name an artifact in their artifacts.json, by (stage, key)."""
    users: dict[tuple[str, str], tuple[str, ...]] = {}
    for path in sorted((outputs / "runs").glob("*/artifacts.json")):
        try:
            named = [(str(stage), str(key)) for stage, key in json.loads(path.read_text()).items()]
        except (ValueError, AttributeError) as error:
            # Taken for empty, it would cost the run its artifacts.
            raise RunError(f"{path} is not a JSON object of stages and keys: mend it or remove that run") from error
        for artifact in named:
            users[artifact] = (*users.get(artifact, ()), path.parent.name)
    return users


def _made_from(path: Path, width: int = 60) -> str:
    """The inputs in a few words; what is only a hash says nothing to a reader and is left out."""
    try:
        inputs = json.loads((path / INPUTS).read_text())["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return "?"
    words = " ".join(f"{name}={value}" for name, value in _leaves(inputs))
    return words if len(words) <= width else words[: width - 1] + "…"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _leaves(item, f"{name}.{inner}" if name else inner)
    elif not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,64}", value)):
        yield name, value


def _table(entries: Sequence[Entry]) -> str:
    rows = [("stage", "key", "state", "size", "age", "made from", "used by")]
    for entry in entries:
        users = ", ".join(entry.used_by[:2]) + (f" and {len(entry.used_by) - 2} more" if entry.used_by[2:] else "")
        size, age = _human_size(entry.size), _human_age(entry.age)
        rows.append((entry.stage, entry.path.name, entry.state, size, age, entry.made_from, users or "no run"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (3, 4)  # size and age are numbers
    lines = (
        [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _human_size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _human_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is an error to be shown in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for a failure, 2 for arguments that are refused."""
    shared = OneLineParser(add_help=False)
    shared.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder that runs write to")
    parser = OneLineParser(prog="python -m imdb_rlhf.artifacts", description="What the stages made, and who uses it.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    commands.add_parser("list", parents=[shared], help="show every artifact and check every byte of it")
    pruning = commands.add_parser("prune", parents=[shared], help="remove what no run uses")
    pruning.add_argument("--yes", action="store_true", help="remove it; otherwise only show it")
    pruning.add_argument("--damaged", action="store_true", help="what is damaged, too")
    try:
        options = parser.parse_args(arguments)
        if not options.outputs.is_dir():
            raise ConfigError(f"there is no folder {options.outputs}: name the one that runs write to with --outputs")
        if options.command == "list":
            entries, verb = contents(options.outputs), "in all"
        else:
            entries = prune(options.outputs, damaged=options.damaged, remove=options.yes)
            verb = "removed" if options.yes else "would be removed; add --yes to remove them"
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if entries:
        print(_table(entries))
    noun = "artifact" if len(entries) == 1 else "artifacts"
    print(f"{len(entries)} {noun}, {_human_size(sum(entry.size for entry in entries))} {verb}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
