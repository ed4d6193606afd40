"""`report.html` of a frontier: the frontier and its runs in one file that needs no network."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier.methods import KNOBS, styles
from imdb_rlhf.frontier.report.parts import DETAILS, Detail, Pool, parts
from imdb_rlhf.frontier.report.render import LARGEST, render

SCRIPTS = ("common.js", "chart.js", "frontier.js", "tables.js", "run.js", "report.js")


def write(frontier: Mapping[str, Any], path: Path) -> None:
    """Write the report of a frontier, whole or not at all; the same input gives the same bytes.

    Args:
        frontier: as in `page`.
        path: of the HTML file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page(frontier))


def page(frontier: Mapping[str, Any], change: Callable[[Any], Any] = lambda data: data) -> str:
    """The report as text; of each run it holds as many samples and points of curves as leave it smaller than 2 MB.

    Args:
        frontier: the content of `frontier.json`. Curves, samples and configuration are read from the folders in
            `frontier["runs"]`; the page names files that are missing or cannot be read.
        change: is made to the data first.
    """
    for detail in DETAILS:
        text = render("report.html", SCRIPTS, change(page_data(frontier, detail)))
        if len(text) <= LARGEST:  # the page is ASCII but for a few signs
            break
    return text


def page_data(frontier: Mapping[str, Any], detail: Detail = DETAILS[0]) -> dict[str, Any]:
    """All data of the page.

    Returns:
        `frontier` (as given), `styles` (method -> [colour, symbol]), `knobs` (key -> its sign and the words for one and
        several values), `texts` and `steps` (which runs refer to by index), `redraw` (the command that draws this
        frontier again) and `runs`: the `parts` of each of `frontier["runs"]`.
    """
    pool = Pool()
    runs = [parts(run, pool, detail) for run in frontier["runs"]]
    names = [*(method["name"] for method in frontier["methods"]), *(run["method"] for run in frontier["runs"])]
    return {
        "frontier": frontier,
        "styles": {name: [style.colour, style.symbol] for name, style in styles(names).items()},
        "knobs": {key: list(knob) for key, knob in KNOBS.items()},
        "redraw": shlex.join(["python", "-m", "imdb_rlhf.frontier", *frontier["sources"]]),
        "runs": runs,
        "texts": pool.texts,
        "steps": pool.steps,
    }
