"""A stage, and the flow of stages that it belongs to.

A stage makes one artifact, named by the hash of its inputs. It asks the flow for the keys of the artifacts that it
depends on, and, once they are built, for their folders.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

from imdb_rlhf.artifacts.store import Artifact, Store
from imdb_rlhf.config.machine import PolicyPrecision
from imdb_rlhf.config.run import Run
from imdb_rlhf.tracking import Tracker
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime

T = TypeVar("T")


class Disk(NamedTuple):
    """About how much disk a folder takes, in bytes.

    Attributes:
        final: when it is finished.
        peak: the most while it is being made.
    """

    final: int
    peak: int

    def then(self, other: "Disk") -> "Disk":
        """Return what this one and another that is made after it take."""
        return Disk(self.final + other.final, max(self.peak, self.final + other.peak))


def unchanging(size: int) -> Disk:
    """Return the disk of a folder that takes no more while it is being made."""
    return Disk(size, size)


class Stage(ABC):
    """One artifact of the data flow.

    Attributes:
        name: its folder in the store.
        resumable: whether `make` continues from a checkpoint in its folder.
    """

    name: ClassVar[str]
    resumable: ClassVar[bool] = False

    def __init__(self, flow: "Flow") -> None:
        self.flow, self.runtime, self.console = flow, flow.runtime, flow.console

    @classmethod
    def of(cls, flow: "Flow") -> Self | None:
        """This stage of a flow, or None where the flow's run does not need it."""
        return cls(flow)

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Return everything that its artifact depends on: the key is the hash of this."""

    @abstractmethod
    def make(self, folder: Path) -> None:
        """Write the artifact into a folder, on every rank; the stages that it depends on are built."""

    def check(self) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse what can be known to fail before any work.

        Raises:
            RunError: naming the key and the way out.
        """

    def fetch(self) -> None:  # noqa: B027 (most have nothing to do)
        """Download what it needs before the first stage is made, and refuse what cannot be used.

        Raises:
            RunError: the Hub is out of reach, or the download cannot be used.
        """

    def check_after(self, built: "Stage") -> None:  # noqa: B027 (most have nothing to do)
        """Refuse what can be known to fail now that another stage is built.

        Raises:
            RunError: naming the key and the way out.
        """

    def check_reused(self) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse an artifact that was found in the store, and that what this process computes does not fit.

        Raises:
            RunError: naming the artifact and the way out.
        """

    def summary_line(self, folder: Path) -> str:
        """Return the one or two numbers of its artifact that a reader of the console wants to see."""
        return ""

    @abstractmethod
    def size(self) -> Disk:
        """Return the disk that its artifact takes."""

    @property
    def path(self) -> Path:
        """The folder of its built artifact."""
        return self.flow.artifacts[self.name].path


S = TypeVar("S", bound=Stage)


class Flow:
    """The stages of one run, in order, and what they share: configuration, machine, console and store.

    Attributes:
        run: the configuration.
        runtime: device, precision and processes.
        console: where progress is shown.
        store: where artifacts are kept.
        artifacts: those that are built, by the name of their stage.
        track_stage: a tracker beside the `metrics.jsonl` of a stage that is trained, for its name, its key, that file
            and the step that it resumes at; None where there is none.
    """

    track_stage: Callable[[str, str, Path, int], Tracker | None] | None = None

    def __init__(self, run: Run, runtime: Runtime, console: Console, kinds: Iterable[type[Stage]]) -> None:
        self.run, self.runtime, self.console = run, runtime, console
        self.store = Store(Path(run.paths.outputs) / "artifacts", runtime, on_wait=console.note, on_damage=console.warn)
        self.artifacts: dict[str, Artifact] = {}
        self._objects: dict[type, Any] = {}
        self._inputs: dict[str, dict[str, Any]] = {}
        for kind in kinds:
            stage = kind.of(self)
            if stage is not None:
                self._objects[kind] = stage

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of this run, in the order in which they are made."""
        return [stage for stage in self._objects.values() if isinstance(stage, Stage)]

    def has(self, kind: type[Stage]) -> bool:
        """Whether this run needs a stage."""
        return kind in self._objects

    def get(self, kind: type[T]) -> T:
        """Return the stage of a kind, or any other object that is made from the flow alone; one per flow."""
        if kind not in self._objects:
            if issubclass(kind, Stage):
                raise KeyError(f"algo={self.run.algo} has no stage {kind.name}")
            self._objects[kind] = cast(Any, kind)(self)
        return cast(T, self._objects[kind])

    def inputs(self, stage: Stage) -> dict[str, Any]:
        """What a stage's key is the hash of; read once."""
        if stage.name not in self._inputs:
            self._inputs[stage.name] = stage.inputs()
        return self._inputs[stage.name]

    def key(self, kind: type[Stage]) -> str:
        """The key of a stage's artifact, whether it is built or not."""
        return self.store.key(kind.name, self.inputs(self.get(kind)))

    def find(self, kind: type[Stage]) -> Path | None:
        """The folder of a stage's artifact if it is in the store; None if it is still to be made."""
        artifact = self.store.find(kind.name, self.inputs(self.get(kind)))
        return None if artifact is None else artifact.path

    # --- inputs that several stages have ---------------------------------------------------------------------------

    @property
    def training_facts(self) -> dict[str, Any]:
        """The facts of the machine that a training depends on: sums in another order round differently."""
        return self.runtime.facts() | {"micro_batch": self.run.trainer.micro_batch}

    @property
    def float32_facts(self) -> dict[str, Any]:
        """The facts of the machine that an evaluation depends on: it is float32 whatever the training's precision."""
        return self.runtime.at(PolicyPrecision.float32).facts()

    @property
    def generation(self) -> dict[str, Any]:
        """How completions are sampled; a key that is null is left out, as if it did not exist."""
        return {key: value for key, value in asdict(self.run.generation).items() if value is not None}
