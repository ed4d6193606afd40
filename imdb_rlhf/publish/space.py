"""A frontier as a static Space: the report is its page. Places on this machine's disk are not in it."""

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imdb_rlhf.config.keys import PLACES
from imdb_rlhf.data.card import TAG, assembled
from imdb_rlhf.data.hub import is_folder
from imdb_rlhf.frontier import files
from imdb_rlhf.frontier.report import report
from imdb_rlhf.publish.repository import Repository, Upload
from imdb_rlhf.runs import files as run_files

PAGE = "index.html"


def space(
    folders: Mapping[str, Path],
    repository: Repository,
    *,
    models: Sequence[str],
    datasets: Sequence[str],
    licence: str | None,
) -> Upload:
    """The Space of a drawn frontier, or of several.

    Args:
        folders: name of each world -> the folder that its frontier was drawn into; "" for the only one.
        repository: where it goes.
        models: Hub ids of the runs' models that are pushed too.
        datasets: of their preferences.
        licence: that the publisher states.
    """
    contents: dict[str, Path | bytes] = {}
    for name, folder in folders.items():
        contents |= {f"{name}/{path}" if name else path: each for path, each in page(folder).items()}
    if "" not in folders:
        contents[PAGE] = _index(sorted(folders)).encode()
    frontiers = [json.loads((folder / files.JSON).read_text()) for folder in folders.values()]
    readme = _readme(frontiers, repository.name, models, datasets, licence)
    return Upload(repository, contents | {"README.md": readme.encode()})


def page(folder: Path) -> dict[str, Path | bytes]:
    """The files of a drawn frontier: the report as `index.html`, the figure, and the numbers behind them."""
    frontier = json.loads((folder / files.JSON).read_text())
    without = _without_places(frontier)
    data = json.dumps(_each_text(frontier, without), indent=1, allow_nan=False) + "\n"
    return {
        PAGE: report.page(frontier, lambda data: _each_text(data, without)).encode(),
        files.JSON: data.encode(),
        **{name: folder / name for name in (files.CSV, files.SVG, files.PDF, files.PNG)},
        **{name: folder / name for name in files.NATS if frontier.get("nats")},
    }


# --- places on this disk


def _without_places(frontier: Mapping[str, Any]) -> Callable[[str], str]:
    """Make what replaces the folders of this machine that a frontier and its runs name by their last part."""
    names: dict[str, str] = {str(Path.home()): "~"}
    for run in frontier["runs"]:
        path = Path(run["path"])
        names[str(path.parent.parent)] = "outputs"
        config = path / run_files.CONFIG
        for key, value in _flat(yaml.safe_load(config.read_text()) if config.is_file() else {}):
            local = isinstance(value, str) and is_folder(value.rpartition(":")[0] or value)
            if key == "paths.outputs" and local:
                names[str(value)] = "outputs"
            elif key in PLACES and local:
                names[str(value)] = Path(str(value)).name
    known = sorted((name for name in names if len(Path(name).parts) > 1), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, known)) + r")(?![\w.-])")
    return lambda text: pattern.sub(lambda match: names[match[1]], text)


def _flat(node: Any, start: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        return [(start, value) for value in (node if isinstance(node, list) else [node])]
    return [pair for key, value in node.items() for pair in _flat(value, f"{start}.{key}" if start else str(key))]


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with every text in it changed."""
    if isinstance(value, Mapping):
        return {key: _each_text(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


# --- the Space's own files


def _index(worlds: Sequence[str]) -> str:
    """A page that leads to each of several frontiers."""
    links = "\n".join(f'<li><a href="{html.escape(name)}/{PAGE}">{html.escape(name)}</a></li>' for name in worlds)
    title = "Reward over KL"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<h1>{title}</h1>\n<p>Frontiers that cannot share a pair of axes:</p>\n<ul>\n{links}\n</ul>\n</html>\n"
    )


def _readme(
    frontiers: Sequence[Mapping[str, Any]],
    name: str,
    models: Sequence[str],
    datasets: Sequence[str],
    licence: str | None,
) -> str:
    from huggingface_hub import SpaceCardData

    runs = sum(len(frontier["runs"]) for frontier in frontiers)
    data = SpaceCardData(
        title=name.partition("/")[2],
        emoji="📈",
        colorFrom="blue",
        colorTo="yellow",
        sdk="static",
        app_file=PAGE,
        license=licence,
        models=list(models) or None,
        datasets=list(datasets) or None,
        tags=[TAG, "rlhf", "preference-optimization"],
        short_description="Reward over KL of preference-tuning methods",
    )
    methods = list(dict.fromkeys(method["name"] for frontier in frontiers for method in frontier["methods"]))
    text = (
        f"# Reward over KL of {runs} {'run' if runs == 1 else 'runs'}\n\n"
        f"How much reward a method buys for each nat of KL to its reference: {', '.join(methods)}. `{PAGE}` is the "
        f"report that imdb_rlhf draws; `{files.CSV}` has a row per evaluated checkpoint, `{files.JSON}` all numbers of "
        "the figure.\n"
    )
    return assembled(data, text)
