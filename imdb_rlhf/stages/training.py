"""How a stage trains a model: the loop with the run's settings, progress on the console, and `metrics.jsonl`."""

from collections.abc import Callable
from pathlib import Path

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.errors import Stopped
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, Flow
from imdb_rlhf.tracking import Trackers
from imdb_rlhf.tracking.jsonl import JsonlLog
from imdb_rlhf.training import checkpoint, loop

BYTES = 4  # of a weight, and of each number that an optimizer keeps of it


def training_disk(flow: Flow, optim: OptimConfig, models: int = 1, temporary: int = 0, networks: int = 1) -> Disk:
    """Return the disk that a training takes.

    A new checkpoint is written before the previous one is removed, and the last one stays until the model is written.

    Args:
        flow: the model that is trained, and whether checkpoints are written.
        optim: its optimizer.
        models: how many models stay.
        temporary: how many more there are on the way.
        networks: how many networks are in a checkpoint.
    """
    weights = BYTES * flow.get(Base).parameters()
    checkpoint_size = networks * weights * (1 + optim.moments) if flow.run.trainer.checkpoint_every else 0
    final = models * weights
    return Disk(final, temporary * weights + max(2 * checkpoint_size, checkpoint_size + final))


def settings(flow: Flow, seed: int, optim: OptimConfig, evaluate_every: int | None = None) -> loop.Settings:
    """The loop's settings for one training.

    Args:
        flow: micro-batch and intervals.
        seed: of the training.
        optim: optimizer and learning rate.
        evaluate_every: steps between evaluations; None for none.
    """
    trainer = flow.run.trainer
    intervals = (trainer.checkpoint_every, trainer.log_every, evaluate_every)
    return loop.Settings(seed, optim, trainer.micro_batch, *intervals)


def train(
    flow: Flow,
    algorithm: loop.Algorithm,
    settings: loop.Settings,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Train an artifact's model with progress and `metrics.jsonl`, from its checkpoint on if there is one."""
    resumed = checkpoint.load(folder)
    start = 0 if resumed is None else resumed.step
    trackers = _trackers(flow, folder, start)
    with flow.console.progress(algorithm.stage, algorithm.steps, start=start) as progress:
        hooks = loop.Hooks(
            log=trackers.log,
            advance=lambda values: progress.advance(1, **values),
            evaluate=evaluate,
        )
        try:
            loop.train(algorithm, settings, flow.runtime, folder, hooks)
        except BaseException as error:
            trackers.finish({}, exit_code=75 if isinstance(error, Stopped) else 1)
            raise
    trackers.finish({})
    flow.runtime.barrier()


def _trackers(flow: Flow, folder: Path, start: int) -> Trackers:
    """`metrics.jsonl`, and what the run adds to it; none but on rank 0."""
    if flow.runtime.rank != 0:
        return Trackers()
    trackers = Trackers([JsonlLog(folder / "metrics.jsonl", start or None)])
    more = flow.track_stage and flow.track_stage(folder.parent.name, folder.stem, folder / "metrics.jsonl", start)
    if more is not None:
        trackers.append(more)
    return trackers
