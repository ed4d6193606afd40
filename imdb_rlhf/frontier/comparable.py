"""Which finished runs may share a pair of axes: those with the same reward, prompts, sampling and reference.

References that differ in the seed of their training alone may share them too, as a pool (see `frontier.world`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.config.keys import PLACES
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.frontier.finished import FinishedRun, read
from imdb_rlhf.frontier.methods import has_policy

# Keys of a configuration that the axes depend on: runs that differ in one of them are of two worlds.
WORLD = re.compile(
    r"(data|model|reward|generation|sft)\.|evaluation\.(seed|samples)$|trainer\.(threads|device|precision|processes)$"
)
# Keys that make another reference of the same kind: the order of its training's reviews, and its first weights.
REFERENCE_SEEDS = {"sft.seed", "model.init_seed"}
NO_WORLD = re.compile(r"data\.preferences(_eos|_revision|_split)?$|.*batch_size$")


def worlds(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Group run folders by world. Runs of one world share reward, prompts, sampling and reference.

    Returns:
        Name of a world -> its run folders; runs that are not finished are left out. A name lists the keys in which the
        worlds differ, and can be a folder's name; it is "" if there is one world only. Where all worlds are references
        of one kind that have a setting in common, "" is their pool, and comes last.
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
    named = {name: [run.path for run in members] for name, members in zip(names, groups.values(), strict=True)}
    return named | ({"": [run.path for run in runs]} if _poolable(list(groups.values())) else {})


def _worlds(runs: Sequence[FinishedRun]) -> list[str]:
    """The world of each run; one whose artifacts were removed is in the world of others with the same reference."""
    known = {run.artifacts.get("reference"): run.world for run in runs if run.world is not None}
    return [known.get(run.artifacts.get("reference")) or str(run.artifacts.get("reference")) for run in runs]


def by_reference(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """The runs of each reference, which share a pair of axes; one list, unless references are pooled.

    Raises:
        ConfigError: the runs cannot share a pair of axes; it names two of them and the keys in which they differ.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run, world in zip(runs, _worlds(runs), strict=True):
        groups.setdefault(world, []).append(run)
    members = list(groups.values())
    other = next((others for others in members[1:] if not _same_kind(members[0], others)), None)
    if other is not None:
        raise ConfigError(_why_not(members[0][0], other[0]))
    return sorted(members, key=lambda group: [group[0].flat.get(key) or 0 for key in sorted(REFERENCE_SEEDS)])


def _same_kind(runs: Sequence[FinishedRun], others: Sequence[FinishedRun]) -> bool:
    """Whether two references differ in their seeds alone; the prompts, the reward and the sampling are the same."""
    axes = [next((run.axes for run in group if run.axes is not None), None) for group in (runs, others)]
    differing = set(_differing([runs[0], others[0]]))
    return axes[0] is not None and axes[0] == axes[1] and bool(differing) and differing <= REFERENCE_SEEDS


def _poolable(groups: Sequence[Sequence[FinishedRun]]) -> bool:
    """Whether worlds are references of one kind, each of which has a policy of one setting."""
    settings = [{(run.algo, run.knob) for run in group if has_policy(run.algo)} for group in groups]
    return bool(set.intersection(*settings)) and all(_same_kind(groups[0], others) for others in groups[1:])


def _why_not(first: FinishedRun, other: FinishedRun) -> str:
    keys = _differing([first, other])
    difference = ", ".join(f"{key} ({first.flat.get(key)} and {other.flat.get(key)})" for key in keys[:3])
    if not difference:
        artifacts = [f"reference/{run.artifacts.get('reference')}" for run in (first, other)]
        difference = f"the reference, its prompts or the reward (artifacts {artifacts[0]} and {artifacts[1]}; their "
        difference += f"{INPUTS} say what made them)"
    elif set(keys) <= REFERENCE_SEEDS:
        difference += ", and their prompts, reward or sampling are not the same either"
    return (
        f"{first.name} and {other.name} cannot be compared: they differ in {difference}; "
        "name the runs of one, or its sweep: python -m imdb_rlhf.frontier outputs/sweeps/NAME"
    )


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys of the configuration that the axes depend on and that differ among runs; places if there is no other."""
    keys = sorted({key for run in runs for key in run.flat if WORLD.match(key) and not NO_WORLD.match(key)})
    differing = [key for key in keys if len({repr(run.flat.get(key)) for run in runs}) > 1]
    return [key for key in differing if key not in PLACES] or differing
