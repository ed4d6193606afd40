"""Which finished runs may share a pair of axes: those with the same reward, prompts, sampling and reference."""

import re
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.config.keys import PLACES
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.frontier.finished import FinishedRun, read

# Keys of a configuration that the axes depend on: runs that differ in one of them are of two worlds.
WORLD = re.compile(
    r"(data|model|reward|generation|sft)\.|evaluation\.(seed|samples)$|trainer\.(threads|device|precision|processes)$"
)
NO_WORLD = re.compile(r"data\.preferences(_eos|_revision|_split)?$|.*batch_size$")


def worlds(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Group run folders by world. Runs of one world share reward, prompts, sampling and reference.

    Returns:
        Name of a world -> its run folders; runs that are not finished are left out. A name lists the keys in which the
        worlds differ, and can be a folder's name; it is "" if there is one world only.
    """
    runs, _ = read(paths)
    groups: dict[str, list[FinishedRun]] = {}
    for run, world in zip(runs, _worlds(runs), strict=True):
        groups.setdefault(world, []).append(run)
    if len(groups) <= 1:
        return {"": [run.path for run in runs]}
    first_runs = [members[0] for members in groups.values()]
    names = [
        ",".join(f"{key.rpartition('.')[2]}={run.flat.get(key)}" for key in _differing(first_runs))
        for run in first_runs
    ]
    names = [re.sub(r"[^\w.,=-]+", "_", name)[:60] for name in names]
    if len(set(names)) < len(names):
        names = [f"{name}-{world[:8]}".removeprefix("-") for name, world in zip(names, groups, strict=True)]
    return {name: [run.path for run in members] for name, members in zip(names, groups.values(), strict=True)}


def _worlds(runs: Sequence[FinishedRun]) -> list[str]:
    """The world of each run; one whose artifacts were removed is in the world of others with the same reference."""
    known = {run.artifacts.get("reference"): run.world for run in runs if run.world is not None}
    return [known.get(run.artifacts.get("reference")) or str(run.artifacts.get("reference")) for run in runs]


def check_one_world(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that cannot share a pair of axes.

    Raises:
        ConfigError: naming two runs and the keys in which they differ.
    """
    worlds = _worlds(runs)
    other = next((run for run, world in zip(runs, worlds, strict=True) if world != worlds[0]), None)
    if other is None:
        return
    first, keys = runs[0], _differing([runs[0], other])
    difference = ", ".join(f"{key} ({first.flat.get(key)} and {other.flat.get(key)})" for key in keys[:3])
    if not difference:
        artifacts = [f"reference/{run.artifacts.get('reference')}" for run in (first, other)]
        difference = f"the reference, its prompts or the reward (artifacts {artifacts[0]} and {artifacts[1]}; their "
        difference += f"{INPUTS} say what made them)"
    raise ConfigError(
        f"{first.name} and {other.name} cannot be compared: they differ in {difference}; "
        "name the runs of one, or its sweep: python -m imdb_rlhf.frontier outputs/sweeps/NAME"
    )


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys of the configuration that the axes depend on and that differ among runs; places if there is no other."""
    keys = sorted({key for run in runs for key in run.flat if WORLD.match(key) and not NO_WORLD.match(key)})
    differing = [key for key in keys if len({repr(run.flat.get(key)) for run in runs}) > 1]
    return [key for key in differing if key not in PLACES] or differing
