"""How a stage trains a model: the loop with the run's settings, progress on the console, and `metrics.jsonl`."""

from collections.abc import Callable
from pathlib import Path

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.tracking.jsonl import JsonlLog
from imdb_rlhf.training import checkpoint, loop

# Bytes of disk per parameter: float32 weights; and a checkpoint, with two moments of the optimizer.
WEIGHTS, CHECKPOINT = 4, 12


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
    log = JsonlLog(folder / "metrics.jsonl", start or None) if flow.runtime.rank == 0 else None
    with flow.console.progress(algorithm.stage, algorithm.steps, start=start) as progress:
        hooks = loop.Hooks(
            log=log.log if log else lambda row: None,
            advance=lambda values: progress.advance(1, **values),
            evaluate=evaluate,
        )
        loop.train(algorithm, settings, flow.runtime, folder, hooks)
    if log:
        log.finish({})
    flow.runtime.barrier()
