"""A run's folder: its name, who may write in it, and when it is finished."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from imdb_rlhf.artifacts.files import MANIFEST, check_manifest, hash_of, in_use, write_json, write_manifest
from imdb_rlhf.config.machine import check_trackers
from imdb_rlhf.config.places import hashed
from imdb_rlhf.config.run import NOT_IN_HASH
from imdb_rlhf.errors import RunError
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.runs import files
from imdb_rlhf.runs.points import PARTS
from imdb_rlhf.runs.summary import reward_range
from imdb_rlhf.tracking.console import STAGE_WIDTH

# Not part of a run's results: the trackers' copies, which may be added later.
OUTSIDE = ("wandb/*", "wandb_id", "wandb_url", "tensorboard/*", "*_run")
# What an unfinished run continues from.
SCAFFOLD = (f"{PARTS}/*", "checkpoint*/*", "best/*")


class RunFolder:
    """`<outputs>/runs/<algo>-<knob>-s<seed>-<hash8>` of one configuration.

    Attributes:
        pipeline: the stages that the run depends on.
        name, path: of the folder.
        leader: whether this process writes.
    """

    def __init__(self, pipeline: Pipeline, config_yaml: str, overrides: list[str]) -> None:
        """Lay out the folder; nothing is written.

        Raises:
            ConfigError: a tracker that is not installed.
        """
        check_trackers(pipeline.run.logger)
        self.pipeline, self.run, self.runtime = pipeline, pipeline.run, pipeline.runtime
        self.console, self.config_yaml, self.overrides = pipeline.console, config_yaml, overrides
        knob = "" if self.run.knob is None else f"-{self.run.knob[0]}{self.run.knob[1]:g}"
        self.name = f"{self.run.algo}{knob}-s{self.run.seed}-{self.config_hash[:8]}"
        self.path = Path(self.run.paths.outputs) / "runs" / self.name
        self.leader = self.runtime.rank == 0

    @cached_property
    def config_hash(self) -> str:
        """The hash of everything that the run's numbers depend on."""
        # what is stored in a place is hashed in the artifacts' keys
        config = {key: value for key, value in hashed(self.run).items() if key not in NOT_IN_HASH}
        config |= self.run.hashed_instead
        config["trainer"].pop("checkpoint_every")
        config["data"].pop("bos")  # what rows begin with is in the artifacts' keys
        parts = {"config": config, "artifacts": self.pipeline.keys(), "machine": self.runtime.facts()}
        return hash_of(parts | {"reward_range": reward_range(self.run)}, 32)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            RunError: another one is in it.
        """
        if not self.leader:
            yield
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"paths.outputs={self.run.paths.outputs} cannot be made: {error}; give another") from error
        with in_use(self.path):
            yield

    def finished(self) -> bool:
        """Whether the run is done and its files are unchanged.

        Raises:
            RunError: a file was changed since.
        """
        problem = check_manifest(self.path) if self.leader and (self.path / MANIFEST).exists() else None
        done, problem = self.runtime.broadcast(((self.path / MANIFEST).exists(), problem))
        if problem is not None:
            raise RunError(f"{self.path} was changed after it was finished: {problem}; move it away to run again")
        return done

    def plan(self) -> bool:
        """Say, and return, whether the run is finished."""
        done = (self.path / MANIFEST).exists()
        state = "finished, would not be run again" if done else "to be made"
        self.console.note(f"{self.run.algo:<{STAGE_WIDTH}} {state}   {self.path}")
        return done

    def begin(self) -> None:
        """Make the folder, with the configuration and the keys of the artifacts that it will use."""
        if self.leader:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / files.CONFIG).write_text(self.config_yaml)
            write_json(self.path / files.ARTIFACTS, self.pipeline.keys())
            write_json(self.path / files.OVERRIDES, self.overrides)

    def seal(self) -> None:
        """Write the manifest: from now on the run is finished.

        Raises:
            RunError: something that it depends on changed on the way.
        """
        self.pipeline.check_unchanged()
        write_manifest(self.path, (*OUTSIDE, *SCAFFOLD))
