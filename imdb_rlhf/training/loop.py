"""The only training loop: steps, optimizer, evaluation points, checkpoints, tracking.

An algorithm supplies global batches and a loss. A batch knows its parts: what each process computes, in pieces that fit
into memory. Losses and metrics come back as sums over a part's examples and are divided by the size of the global
batch, so neither the number of processes nor the size of the parts changes them.
"""

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.seeds import derive
from imdb_rlhf.signals import stopping
from imdb_rlhf.training import checkpoint, optim
from imdb_rlhf.training.runtime import Runtime


class Batch(Protocol):
    """A global batch.

    Attributes:
        notes: numbers about the whole batch, which are logged as they are (averaged over steps).
    """

    @property
    def notes(self) -> Mapping[str, float]:
        """Metrics by key; most algorithms have none."""
        ...

    @property
    def size(self) -> float:
        """The number of examples or tokens that the summed loss is divided by."""
        ...

    def parts(self, rank: int, world: int, limit: int | None) -> Sequence[Any]:
        """One process's share, in parts of at most `limit` examples.

        Empty on every process for a step that is counted but must change nothing.
        """
        ...


class Algorithm(Protocol):
    """A method that the loop trains.

    Attributes:
        stage: its name, part of every random stream and of every row of metrics.
        module: the module to train; its forward returns the loss's inputs (log-probs, not logits).
        steps: number of optimizer steps.
    """

    stage: str
    module: nn.Module
    steps: int

    def batches(self, first: int) -> Iterator[Batch]:
        """Global batches from step `first` on, each a function of (seed, step) alone; lazy."""
        ...

    def loss(self, module: nn.Module, part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of a part's examples, and sums of metrics by key (`train/...`)."""
        ...

    def after(self, values: dict[str, float]) -> None:
        """Take note of a step's metrics, which are means over the global batch."""
        ...

    def state(self) -> dict[str, Any]:
        """The state, beyond the weights, that later batches depend on: tensors and plain values, for checkpoints."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        ...

    def report(self) -> dict[str, Any]:
        """Additional entries of `summary.json` about the training."""
        ...


class Plain:
    """An algorithm whose batches are a function of the step alone.

    Attributes:
        period: steps on the same data; evaluations come between such periods.
    """

    period = 1

    def after(self, values: dict[str, float]) -> None:
        """Do nothing: no batch depends on metrics."""

    def state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

    def report(self) -> dict[str, Any]:
        """No additional entries."""
        return {}


@dataclass
class Settings:
    """The part of a stage's configuration that the loop reads.

    Attributes:
        checkpoint_every, log_every, evaluate_every: intervals in steps.
        period: evaluations come after a multiple of so many steps.
    """

    seed: int
    optim: OptimConfig
    micro_batch: int | None
    checkpoint_every: int
    log_every: int
    evaluate_every: int | None = None
    period: int = 1


@dataclass
class Hooks:
    """Functions that the loop calls.

    Attributes:
        log: with each row of metrics.
        advance: after each step, with values to show.
        evaluate: at evaluation points, with the number of steps done; the metrics it returns are logged.
    """

    log: Callable[[dict[str, Any]], None] = lambda row: None
    advance: Callable[[dict[str, float]], None] = lambda values: None
    evaluate: Callable[[int], dict[str, float]] | None = None


@dataclass
class _Signals:
    """Turns a signal to stop into a request for a checkpoint after the step in progress."""

    caught: list[int] = field(default_factory=list)
    before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in stopping():
                self.before[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught.append(number)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(algorithm: Algorithm, settings: Settings, runtime: Runtime, folder: Path, hooks: Hooks) -> None:
    """Train `algorithm.module` in place.

    Args:
        algorithm: batches, loss, module and number of steps.
        settings: optimizer and intervals.
        runtime: device, precision, processes.
        folder: for checkpoints; training resumes from a whole one.
        hooks: tracking and evaluation.

    Raises:
        RunError: a loss or a gradient is nan or infinite; the step has not changed a weight.
        Stopped: a signal came and a checkpoint was written.
    """
    algorithm.module.to(runtime.device)
    optimizer = optim.make(settings.optim, algorithm.module.parameters())
    start, sums = _restore(algorithm, optimizer, runtime, folder)
    module, prepared = runtime.prepare(algorithm.module, optimizer)
    began = time.perf_counter()
    with _Signals() as signals:
        for step, batch in zip(range(start, algorithm.steps), algorithm.batches(start), strict=False):
            torch.manual_seed(derive(settings.seed, algorithm.stage, step, runtime.rank))
            values = _step(algorithm, module, prepared, batch, step, settings, runtime)
            done = step + 1
            algorithm.after(values)
            for key, value in values.items():
                sums[key] += value
            # a step that changed nothing has no metrics and does not count in the means
            sums["steps"] += bool(values)
            evaluated: dict[str, float] = {}
            every = settings.evaluate_every
            if hooks.evaluate and every and evaluation_due(done, every, algorithm.steps, settings.period):
                evaluated = hooks.evaluate(done)
            if (sums["steps"] and _due(done, settings.log_every, algorithm.steps)) or evaluated:
                count = max(sums.pop("steps"), 1.0)
                row = {key: total / count for key, total in sums.items()} | evaluated
                sums.clear()
                hooks.log(
                    {"stage": algorithm.stage, "step": done} | row | {"time/elapsed": time.perf_counter() - began}
                )
            hooks.advance(({"loss": values["train/loss"], **batch.notes} if values else {}) | evaluated)
            stop = runtime.any(bool(signals.caught))
            at_interval = settings.checkpoint_every and done % settings.checkpoint_every == 0
            if at_interval or stop or (settings.checkpoint_every and done == algorithm.steps):
                _save(algorithm, module, prepared, done, dict(sums), runtime, folder)
            if stop and done < algorithm.steps:
                raise Stopped(f"{algorithm.stage} at step {done} of {algorithm.steps}; run the same command to go on")
    for name, parameter in algorithm.module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise RunError(
                f"{algorithm.stage}: {name} is nan or infinite after the last step, so the model cannot be used; "
                "lower the learning rate"
            )
    runtime.accelerator.free_memory()


def evaluation_due(done: int, every: int, total: int, period: int = 1) -> bool:
    """Whether an evaluation follows a step: the first to end a period at or after a multiple of `every`, or the last.

    Args:
        done: steps done.
        every: steps between evaluations; if a period is longer, each is followed by one evaluation.
        total: all steps.
        period: steps on the same data, between which no evaluation comes.
    """
    return done == total or (done % period == 0 and done // every > (done - period) // every)


def _due(done: int, every: int, total: int) -> bool:
    return done % every == 0 or done == total


def _step(
    algorithm: Algorithm,
    module: nn.Module,
    optimizer: Any,
    batch: Batch,
    step: int,
    settings: Settings,
    runtime: Runtime,
) -> dict[str, float]:
    """Do one optimizer step; returns the metrics of the global batch."""
    parts = batch.parts(runtime.rank, runtime.world, settings.micro_batch)
    if not parts:
        return {}
    totals: dict[str, Tensor] = {}
    optimizer.zero_grad()
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else runtime.accelerator.no_sync(module):
            loss, metrics = algorithm.loss(module, part)
            # DDP averages gradients over processes, but the batch's gradient is the sum over all examples
            runtime.accelerator.backward(loss * (runtime.world / batch.size))
        for key, value in ({"train/loss": loss} | metrics).items():
            totals[key] = totals.get(key, torch.zeros((), device=runtime.device)) + value.detach().float()
    table = torch.stack([totals[key] for key in totals])
    table = runtime.accelerator.reduce(table, reduction="sum") if runtime.world > 1 else table
    values = dict(zip(totals, (table / batch.size).tolist(), strict=True))
    norm = optim.clip(module.parameters(), settings.optim.max_grad_norm)
    values |= {"train/grad_norm": norm, **batch.notes}
    for key, value in values.items():
        if not math.isfinite(value):
            raise RunError(
                f"{algorithm.stage}: {key} is {value} at step {step}, before that step changed a weight; "
                "lower the learning rate, or set trainer.precision=float32"
            )
    values["train/lr"] = optim.learning_rate(settings.optim, step, algorithm.steps)
    for group in optimizer.param_groups:
        group["lr"] = values["train/lr"]
    optimizer.step()
    return values


def _restore(
    algorithm: Algorithm, optimizer: torch.optim.Optimizer, runtime: Runtime, folder: Path
) -> tuple[int, defaultdict[str, float]]:
    saved = checkpoint.load(folder)
    if saved is None:
        return 0, defaultdict(float)
    algorithm.module.load_state_dict(saved.weights)
    algorithm.restore(saved.state)
    optimizer.load_state_dict(saved.optimizer)
    return saved.step, defaultdict(float, saved.sums)


def _save(
    algorithm: Algorithm,
    module: nn.Module,
    optimizer: Any,
    done: int,
    sums: dict[str, float],
    runtime: Runtime,
    folder: Path,
) -> None:
    if runtime.rank == 0:
        weights = runtime.accelerator.unwrap_model(module).state_dict()
        state = optimizer.optimizer.state_dict()
        checkpoint.save(folder, checkpoint.Checkpoint(done, weights, state, sums, algorithm.state()))
    runtime.barrier()
