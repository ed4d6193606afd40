"""A union of grids: `sweep=NAME`, or the product of the command line's values. All jobs are checked before one starts.

The jobs then go to `imdb_rlhf.sweep`, which runs each in a process of its own, or hands them to the launcher of Hydra's
that `hydra/launcher=` names.
"""

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.imdb_rlhf_launcher import composed, handing, job_of, launcher_of
from imdb_rlhf import cli
from imdb_rlhf.config.algos import BestOfNRun
from imdb_rlhf.config.families import ReservoirRun
from imdb_rlhf.config.keys import unknown_choice
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.sweep import run as sweep_run
from imdb_rlhf.sweep.jobs import distinct, folder_name, identity, in_group, refuse_torchrun
from imdb_rlhf.sweep.run import sweep_folder

# Sections and keys of best-of-N that other runs may differ in without having other axes.
NO_PART_OF_A_WORLD = {"algo", "seed", "n", "best_of_n", "keep_model", "groups", "pairs", "reward_model"}


class GridsSweeper(Sweeper):
    """Starts all jobs, or none where one of them is refused."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's loader and the configuration that jobs are composed from."""
        self.context, self.task_function, self.master = hydra_context, task_function, config
        self.loader = hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of the command line, and leave with the sweep's exit code.

        Raises:
            ConfigError: a job is refused; nothing was written.
            RunError: something that a job needs is not there.
        """
        refuse_torchrun()
        title, grids = grids_of([*cli.SWEEP_COMMAND.overrides, *arguments], self._lines, self.loader)
        overrides = [job for grid in grids for job in product_of(grid)]
        made = [composed(self.loader, self.master, job, alone=len(overrides) == 1) for job in overrides]
        runs, launcher = [run for run, _ in made], launcher_of([config for _, config in made])
        first = distinct(runs)
        if len(first) < len(runs):
            sys.stdout.write(f"{len(runs)} jobs, {len(first)} of them different: each is run once\n")
        name = folder_name(title, [runs[position] for position in first])
        for run, words in self._baselines(runs, overrides):
            first.append(len(runs))
            runs.append(run)
            overrides.append(words)
        jobs = [job_of(in_group(runs[position], name), overrides[position]) for position in first]
        launch = None
        if launcher is not None:
            folder = sweep_folder(runs[0], name)
            launch = handing(launcher, folder, self.context, self.task_function)
        if code := sweep_run.run_sweep(name, jobs, cli.SWEEP_COMMAND.text, launch):
            sys.exit(code)

    def _baselines(self, runs: Sequence[Run], overrides: Sequence[list[str]]) -> list[tuple[Run, list[str]]]:
        """A run of best-of-N for every world in which several of the runs have a policy and none has a reservoir."""
        worlds: dict[str, list[Run]] = {}
        added: dict[str, tuple[Run, list[str]]] = {}
        for run, job in zip(runs, overrides, strict=True):
            if not run.baselines or not (run.has_policy or isinstance(run, ReservoirRun)):
                continue
            words = baseline_of(job)
            try:
                baseline, _ = composed(self.loader, self.master, words, alone=True)
            except ConfigError as error:
                sys.stdout.write(f"no best-of-N is added, and the figure has no optimum: {error}\n")
                return []
            worlds.setdefault(identity(baseline), []).append(run)
            added[identity(baseline)] = baseline, words
        return [
            added[world]
            for world, members in worlds.items()
            if len(members) > 1 and not any(isinstance(run, ReservoirRun) and run.uses_reservoir for run in members)
        ]

    def _lines(self, name: str) -> tuple[list[str], dict[str, str]]:
        """The grids of a sweep by its name, from `sweeps/` or `--config-dir`, and what experiments add to them."""
        loaded = self.loader.repository.load_config(f"sweep/{name}")  # type: ignore[attr-defined]
        if loaded is None:
            raise ConfigError(unknown_choice("sweep", name, sorted(self.loader.get_group_options("sweep"))))
        file: Any = OmegaConf.to_container(loaded.config)
        lines, added = file.get("grids"), file.get("experiments") or {}
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise ConfigError(f"sweep={name}: its file needs `grids:`, a list of lines such as `algo=dpo beta=0.1,1`")
        if not isinstance(added, dict) or not all(isinstance(line, str) for line in added.values()):
            raise ConfigError(f"sweep={name}: `experiments:` is a line per name, such as `default: trainer.threads=1`")
        return lines, added


def grids_of(
    arguments: Sequence[str],
    lines: Callable[[str], tuple[list[str], dict[str, str]]],
    loader: ConfigLoader | None = None,
) -> tuple[str, list[list[Override]]]:
    """The sweep's title, and its grids: lists of overrides whose values multiply.

    `sweep=NAME` brings the grids of `sweeps/NAME.yaml`, several names bring those of all; a key of the command line
    replaces that key in each. The file's overrides for a grid's experiment are added where neither has the key.
    Without `sweep=NAME` the command line is the only grid.

    Args:
        arguments: of the command line.
        lines: the grids of a sweep by its name, and the overrides that each experiment adds to them.
        loader: knows the choices that `algo=glob(p*)` means; without it, such an override is refused.
    """
    parse = OverridesParser.create(config_loader=loader).parse_overrides
    typed = parse(list(arguments))
    names = [name for override in typed if override.key_or_group == "sweep" for name in _values(override)]
    typed = [override for override in typed if override.key_or_group != "sweep"]
    if not names:
        swept = [override.key_or_group for override in typed if override.is_sweep_override()]
        return "-".join(swept) or "single", [typed]
    grids = []
    typed_keys = {_key(override) for override in typed}
    for name in names:
        grid_lines, experiments = lines(name)
        for line in grid_lines:
            grid = parse(shlex.split(line))
            chosen = [value for o in (*typed, *grid) if o.key_or_group == "experiment" for value in _values(o)]
            added = [] if len(chosen) > 1 else parse(shlex.split(experiments.get((chosen or ["default"])[0], "")))
            known = typed_keys | {_key(override) for override in grid}
            grid += [override for override in added if _key(override) not in known]
            grids.append([*(override for override in grid if _key(override) not in typed_keys), *typed])
    return "-".join(names), grids


def baseline_of(job: Sequence[str]) -> list[str]:
    """The overrides of best-of-N, by the true reward, in the world of another job: those that both have."""
    names = {field.name for field in fields(BestOfNRun)} - NO_PART_OF_A_WORLD | {"experiment"}
    words = []
    for word in job:
        key = word.partition("=")[0].lstrip("+~")
        place = key.rpartition("@")[2]  # `optim@sft.optim` is of sft
        if re.split(r"[./]", place)[0] in names:
            words.append(word)
    return [*words, "algo=best_of_n", "best_of_n.selector=ground_truth", "keep_model=none"]


def product_of(grid: Sequence[Override]) -> list[list[str]]:
    """The jobs of a grid: every key with one of its values. Where a key has one value twice, the last one counts.

    Raises:
        ConfigError: an override has no single values, such as `interval(0, 1)`, or a key with several is given again.
    """
    choices: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for override in grid:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: a grid needs single values, such as {override.key_or_group}=1,2,5"
            )
        key, words = override.get_key_element(), [str(override.input_line)]
        if override.is_sweep_override():
            words = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not words:
                raise ConfigError(f"{override.input_line}: no choice of {override.key_or_group} is called so")
        if key in choices and max(len(words), len(choices[key])) > 1:
            raise ConfigError(f"{lines[key]} and {override.input_line}: give all values of {key} in one list")
        choices[key], lines[key] = words, str(override.input_line)
    return [list(job) for job in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]


def _key(override: Override) -> str:
    return f"{override.key_or_group}@{override.package or ''}"


@dataclass
class GridsSweeperConfig:
    """The configuration that Hydra makes the sweeper from."""

    _target_: str = "hydra_plugins.imdb_rlhf_sweeper.GridsSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsSweeperConfig, provider="imdb_rlhf")
