"""What our programs have in common: a run composed from conf/, a model of the workload, a loop that is timed."""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir

from benchmarks.programs.record import now
from imdb_rlhf import cli
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.run import Run
from imdb_rlhf.models.policy import Policy, load
from imdb_rlhf.training import loop
from imdb_rlhf.training.runtime import Runtime

R = TypeVar("R", bound=Run)


def composed(options: argparse.Namespace, kind: type[R], *overrides: str) -> R:
    """A run of the package's own configuration, on this machine.

    Raises:
        TypeError: the overrides choose another algorithm than `kind` is of.
    """
    cli.register()
    machine = [f"trainer.{key}={getattr(options, key)}" for key in ("device", "precision", "threads")]
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        run = cli.to_run(compose("config", ["logger=none", *machine, *overrides]))
    if not isinstance(run, kind):
        raise TypeError(f"{' '.join(overrides)} makes a {type(run).__name__}, no {kind.__name__}")
    return run


def policy(folder: Path, name: str, run: Run) -> Policy:
    """`policy` or `reference` of a workload, loaded as the package loads it."""
    attention = "sdpa" if run.trainer.device == "cuda" else "eager"  # as conf/model says
    return load(folder / name, attention, f"the workload's {name}")


@dataclass
class Laps:
    """When each step was done, and what the loop said of it."""

    device: str
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def advance(self, values: dict[str, float]) -> None:
        """A step is done."""
        self.times.append(now(self.device))
        self.losses.append(values.get("loss", float("nan")))

    def seconds(self, period: int = 1) -> list[float]:
        """From the end of one period of steps to the end of the next; the first period is the warm-up."""
        ends = self.times[period - 1 :: period]
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def train(algorithm: loop.Algorithm, optim: OptimConfig, runtime: Runtime) -> Laps:
    """Train with the package's only loop: no checkpoints, no evaluations, a row of metrics at the end."""
    laps = Laps(runtime.device.type)
    settings = loop.Settings(seed=0, optim=optim, micro_batch=None, checkpoint_every=0, log_every=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(algorithm, settings, runtime, Path(folder), loop.Hooks(advance=laps.advance))
    return laps
