"""A union of grids: `sweep=NAME`, or what the command line multiplies; every job is checked before anything is written.

The jobs then go to `imdb_rlhf.sweep`, which runs each in a process of its own; Hydra's launcher is not used.
"""

import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf import cli
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.sweep import jobs as sweep
from imdb_rlhf.sweep import run as running


class GridsSweeper(Sweeper):
    """Jobs that are all valid, or none of which starts."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes a job."""
        self.loader, self.master = hydra_context.config_loader, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of the command line, and leave with the sweep's exit code.

        Raises:
            ConfigError: a job is refused; nothing was written.
            RunError: something that a job needs is not there.
        """
        sweep.refuse_torchrun()
        title, grids = grids_of([*cli.SWEEP_COMMAND.overrides, *arguments], self._lines)
        overrides = [job for grid in grids for job in product_of(grid)]
        runs = [self._run(job, alone=len(overrides) == 1) for job in overrides]
        first = sweep.distinct(runs)
        if len(first) < len(runs):
            sys.stdout.write(f"{len(runs)} jobs, {len(first)} of them different: each is run once\n")
        name = sweep.folder_name(title, [runs[position] for position in first])
        jobs = []
        for position in first:
            run = sweep.in_group(runs[position], name)
            text = OmegaConf.to_yaml(OmegaConf.structured(run))
            jobs.append(sweep.Job(run, text, overrides[position], cli.SWEEP_COMMAND.options))
        arguments = cli.SWEEP_COMMAND.arguments
        command = shlex.join(["python", "train.py", *arguments]) if arguments else ""
        if code := running.run_sweep(name, jobs, command):
            sys.exit(code)

    def _lines(self, name: str) -> tuple[list[str], dict[str, str]]:
        """The grids of a sweep by its name, from `sweeps/` or a folder of the user's, and what experiments add."""
        found = self.loader.repository.load_config(f"sweep/{name}")  # type: ignore[attr-defined]
        if found is None:
            there = ", ".join(sorted(self.loader.get_group_options("sweep")))
            raise ConfigError(f"sweep={name}: no such choice; there are {there}")
        file: Any = OmegaConf.to_container(found.config)
        lines, added = file.get("grids"), file.get("experiments") or {}
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise ConfigError(f"sweep={name}: its file needs `grids:`, a list of lines such as `algo=dpo beta=0.1,1`")
        if not isinstance(added, dict) or not all(isinstance(line, str) for line in added.values()):
            raise ConfigError(f"sweep={name}: `experiments:` is a line a name, such as `default: trainer.threads=1`")
        return lines, added

    def _run(self, job: list[str], alone: bool) -> Run:
        try:
            composed = self.loader.load_sweep_config(self.master, job)
            OmegaConf.set_readonly(composed, None)
            return cli.checked(composed, job)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            said = str(error) if isinstance(error, ConfigError) else cli.explain(error)
            raise ConfigError(said if alone else f"job {' '.join(job)}: {said}") from error


def grids_of(
    arguments: Sequence[str], lines: Callable[[str], tuple[list[str], dict[str, str]]]
) -> tuple[str, list[list[Override]]]:
    """The sweep's title, and its grids: lists of overrides whose values multiply.

    `sweep=NAME` brings the grids of `sweeps/NAME.yaml`, several names those of all; a key of the command line replaces
    that key in each. What the file says of a grid's experiment is added to it where neither has the key. Without
    `sweep=NAME` the command line is the only grid.

    Args:
        arguments: of the command line.
        lines: the grids of a sweep by its name, and what each experiment adds to them.
    """
    given = OverridesParser.create().parse_overrides(list(arguments))
    names = [name for override in given if override.key_or_group == "sweep" for name in _values(override)]
    given = [override for override in given if override.key_or_group != "sweep"]
    if not names:
        swept = [override.key_or_group for override in given if override.is_sweep_override()]
        return "-".join(swept) or "single", [given]
    grids = []
    mine = {_key(override) for override in given}
    for name in names:
        grid_lines, experiments = lines(name)
        for line in grid_lines:
            theirs = _parsed(line)
            chosen = [value for o in (*given, *theirs) if o.key_or_group == "experiment" for value in _values(o)]
            added = [] if len(chosen) > 1 else _parsed(experiments.get((chosen or ["default"])[0], ""))
            known = mine | {_key(override) for override in theirs}
            theirs += [override for override in added if _key(override) not in known]
            grids.append([*(override for override in theirs if _key(override) not in mine), *given])
    return "-".join(names), grids


def _parsed(line: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(shlex.split(line))


def product_of(grid: Sequence[Override]) -> list[list[str]]:
    """The jobs of a grid: one override a key, each with one of its values; of a key that stands twice the last counts.

    Raises:
        ConfigError: an override has no values one after the other, as `interval(0, 1)`.
    """
    choices: dict[str, list[str]] = {}
    for override in grid:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line}: a grid needs single values, as {override.key_or_group}=1,2,5")
        key, words = override.get_key_element(), [str(override.input_line)]
        if override.is_sweep_override():
            words = [f"{key}={value}" for value in override.sweep_string_iterator()]
        choices[key] = words
    return [list(job) for job in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]


def _key(override: Override) -> str:
    return f"{override.key_or_group}@{override.package or ''}"


@dataclass
class GridsSweeperConfig:
    """What Hydra makes the sweeper of."""

    _target_: str = "hydra_plugins.imdb_rlhf_sweeper.GridsSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsSweeperConfig, provider="imdb_rlhf")
