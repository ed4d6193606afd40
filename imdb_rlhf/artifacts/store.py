"""The store: each stage's result is a folder named by the hash of the stage's inputs; it is whole or absent.

    outputs/artifacts/<stage>/<key>/            finished: inputs.json names its inputs, DONE holds every file's sha256
    outputs/artifacts/<stage>/<key>.work/       being made, or left by a crash with the checkpoint to resume from
    outputs/artifacts/<stage>/<key>.damaged-1/  differs from its DONE; a run neither uses nor deletes it
    outputs/artifacts/<stage>/<key>.lock        held while the artifact is made; an empty file that stays

An upstream artifact's key is one of a stage's inputs, so a key identifies everything that led to it (a Merkle tree).
`python -m imdb_rlhf.artifacts list|prune` shows the artifacts and removes those that no run uses.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from imdb_rlhf.artifacts.files import atomic_write, check_manifest, fsync, hash_folder, hash_of, plain, write_manifest
from imdb_rlhf.errors import RunError

INPUTS = "inputs.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Artifact:
    """The result of a stage.

    Attributes:
        stage: the stage's name.
        key: hash of the stage and its inputs.
        path: a whole folder, to be read and never written to.
        reused: whether it existed before.
        seconds: the time that making it took; if the stage was resumed, since the last resumption.
        source_changed: whether another version of the package's source made it.
    """

    stage: str
    key: str
    path: Path
    reused: bool
    seconds: float
    source_changed: bool


class Processes(Protocol):
    """The processes that run a stage together."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    def broadcast(self, obj: Any) -> Any:
        """Return rank 0's `obj` on every rank."""

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
    """Artifacts under `root`; `on_wait` and `on_damage` are called (on rank 0) with one line for the console."""

    def __init__(
        self,
        root: Path,
        processes: Processes | None = None,
        *,
        on_wait: Callable[[str], None] = lambda message: None,
        on_damage: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Open the store; `root` need not exist, and nothing is written yet."""
        self.root = Path(root)
        self.processes = processes or Solo()
        self.on_wait = on_wait
        self.on_damage = on_damage
        self._source = source_hash()  # now, since someone may edit the files while a stage runs

    def key(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Return the key of the artifact that `stage` makes from `inputs` (JSON, dataclasses, enums and paths)."""
        return hash_of({"stage": stage, "inputs": inputs})

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact if it exists and is whole. Writes nothing, locks nothing."""
        key = self.key(stage, inputs)
        folder = self.root / stage / key
        if check_manifest(folder) is not None:
            return None
        record = json.loads((folder / INPUTS).read_text())
        return Artifact(stage, key, folder, True, record["seconds"], record["source"] != self._source)

    def build(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        *,
        resumable: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Artifact:
        """Return the artifact; if it does not exist yet, `make(folder)` makes it on every rank.

        If several runs want the same artifact, one makes it and the others wait. If `make` raises, there is no
        artifact. A `resumable` stage gets the folder that its interrupted predecessor left; any other gets an empty
        one. `check` is called on rank 0 before the artifact is sealed; if it raises, what was made is removed, for a
        resumable stage too. If rank 0 cannot prepare or finish the folder, every rank raises; if `make` raises on one
        rank, the launcher must end all of them (as torchrun does).
        """
        work = self.root / stage / f"{self.key(stage, inputs)}.work"
        with ExitStack() as locks:
            artifact = self._on_rank_0(lambda: self._find_or_lock(locks, stage, inputs, work, resumable))
            if artifact is not None:
                return artifact
            began = time.monotonic()
            try:
                make(work)
                self.processes.barrier()
                seconds = time.monotonic() - began
                return self._on_rank_0(lambda: self._seal(stage, inputs, work, seconds, check))
            except BaseException:
                if self.processes.rank == 0 and not resumable:
                    shutil.rmtree(work, ignore_errors=True)
                raise

    def _on_rank_0(self, step: Callable[[], T]) -> T:
        """Run `step` on rank 0 alone; every rank returns its result or raises its failure."""
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
        self, locks: ExitStack, stage: str, inputs: Mapping[str, Any], work: Path, resumable: bool
    ) -> Artifact | None:
        """Return the artifact if it exists; else hold its lock, prepare its work folder and return None."""
        artifact = self.find(stage, inputs)
        if artifact is not None:
            return artifact
        work.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self.on_wait(f"{stage} {work.stem} is being made by another process: waiting for it")
            lock.acquire()
        locks.callback(lock.release)
        artifact = self.find(stage, inputs)  # another process may have made it while this one waited
        if artifact is not None:
            return artifact
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

    def _seal(
        self, stage: str, inputs: Mapping[str, Any], work: Path, seconds: float, check: Callable[[], None]
    ) -> Artifact:
        try:
            check()
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        folder = work.with_suffix("")
        record = {
            "stage": stage,
            "key": folder.name,
            "inputs": plain(inputs),
            "source": self._source,
            "seconds": seconds,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": _package_version(),
        }
        atomic_write(work / INPUTS, json.dumps(record, indent=2, allow_nan=False) + "\n")
        write_manifest(work)
        work.rename(folder)
        fsync(folder.parent)
        return Artifact(stage, folder.name, folder, False, seconds, False)


def source_hash() -> str:
    """Return a hash of the package's own source files."""
    return hash_folder(Path(__file__).parents[1], "**/*.py")[:16]


def _package_version() -> str:
    try:
        return metadata.version("imdb_rlhf")
    except metadata.PackageNotFoundError:
        return "not installed"
