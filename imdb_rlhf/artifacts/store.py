"""The store: what a stage made, in a folder named by the hash of what it was made from; whole or absent.

    outputs/artifacts/<stage>/<key>/            finished: inputs.json says what made it, DONE holds every file's sha256
    outputs/artifacts/<stage>/<key>.work/       being made, or left by a crash with the checkpoint to go on from
    outputs/artifacts/<stage>/<key>.damaged-1/  no longer what DONE says; never used, never deleted by a run
    outputs/artifacts/<stage>/<key>.lock        held while the artifact is made; empty, and stays

An upstream artifact's key is one of a stage's inputs, so a key stands for everything that led to it (a Merkle tree).
`python -m imdb_rlhf.artifacts list|prune` shows what is there and removes what no run uses.
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
            "inputs": plain(inputs),
            "source": self._source,
            "seconds": seconds,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": _package_version(),
        }
        atomic_write(work / INPUTS, json.dumps(made, indent=2) + "\n")
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
