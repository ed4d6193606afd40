"""`report.html`: a frontier and its runs in one file that needs no network.

`page/` holds the page's parts: `report.html` (the frame), `report.css` and the scripts. They are put together with
plotly.js and the data (JSON in a script element that no browser runs) when the page is written.
"""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier import methods as palette
from imdb_rlhf.tracking import jsonl

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("common.js", "frontier.js", "tables.js", "run.js", "report.js")
CURVE_POINTS = 300
PROMPTS = 100
BINS = 40


def write(frontier: Mapping[str, Any], path: Path) -> None:
    """Write the report of a frontier, whole or not at all; the same input gives the same bytes.

    Args:
        frontier: what `frontier.json` holds. The folders in `frontier["runs"]` are read for curves, samples and
            configuration; a file that is missing or broken is named on the page.
        path: of the HTML file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, render(page_data(frontier)))


def render(data: Mapping[str, Any]) -> str:
    """The page as text, for the data of `page_data`."""
    from plotly.offline import get_plotlyjs  # 5 MB of text: only whoever draws a report reads it

    parts = {
        "@style@": _part("report.css"),
        "@plotly@": get_plotlyjs(),
        "@data@": embed(data),
        "@script@": "\n".join(_part(name) for name in SCRIPTS),
    }
    frame, page = _part("report.html"), ""
    for mark, text in parts.items():
        before, _, frame = frame.partition(mark)
        page += before + text
    return page + frame


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def embed(value: Any) -> str:
    """A value as JSON that can stand inside a script element: no character of it can end or open one.

    Other than ASCII is escaped, and so are the characters that mean something in HTML; nan and infinity are null.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """The same value with Python's own types, and None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


class Pool:
    """Texts that are stored once and named by their place: runs share prompts, reference samples and config lines."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The place of a text."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def page_data(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows.

    Returns:
        `frontier` (as given), `styles` (of every method, [colour, plotly's symbol]), `texts` (what the rows below
        name by their place), `redraw` (the command that draws this frontier again) and `runs`: for each of
        `frontier["runs"]` its `command`, `step`, `curves`, `histogram`, `samples`, `config` and `missing`.
    """
    texts = Pool()
    runs = [_run(run, texts) for run in frontier["runs"]]
    names = [*(method["name"] for method in frontier["methods"]), *(run["method"] for run in frontier["runs"])]
    return {
        "frontier": frontier,
        "styles": {name: [style.colour, style.symbol] for name, style in palette.styles(names).items()},
        "redraw": shlex.join(["python", "-m", "imdb_rlhf.frontier", *frontier["sources"]]),
        "runs": runs,
        "texts": texts.texts,
    }


def _run(run: Mapping[str, Any], texts: Pool) -> dict[str, Any]:
    """One run as the page shows it; what cannot be read is None and has a line in `missing`."""
    folder, missing = Path(run.get("path") or run["name"]), []

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(folder / name)
        except FileNotFoundError:
            missing.append(f"{name} is not in the run's folder")
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"{name} cannot be read: {' '.join(str(error).split())[:200]}")
        return None

    table = read("samples.parquet", pd.read_parquet)
    return {
        "command": shlex.join(["python", "train.py", *run.get("overrides", [])]),
        "step": read("summary.json", lambda path: json.loads(path.read_text(encoding="utf-8"))["step"]),
        "curves": read("metrics.jsonl", lambda path: curves(jsonl.read(path))),
        "histogram": None if table is None else read("samples.parquet", lambda _: histogram(table)),
        "samples": None if table is None else read("samples.parquet", lambda _: samples(table, texts)),
        "config": read("config.yaml", lambda path: [texts.add(line) for line in _lines(path)]),
        "missing": list(dict.fromkeys(missing)),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")


def curves(rows: Sequence[Mapping[str, Any]], most: int = CURVE_POINTS) -> dict[str, list[list[float]]]:
    """Metrics over steps.

    Args:
        rows: of `metrics.jsonl`.
        most: points a metric; of more, this many evenly spaced ones are kept, first and last included.

    Returns:
        Each numeric metric as [steps, values], without `time/`. A step that was logged twice counts with its last row.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and key not in ("step", "stage") and not key.startswith("time/"):
                found.setdefault(key, {})[int(row["step"])] = value
    result = {}
    for key, values in sorted(found.items()):
        steps = sorted(values)
        if len(steps) > most:
            steps = [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
        result[key] = [list(map(float, steps)), [_short(values[step]) for step in steps]]
    return result


def histogram(table: pd.DataFrame, bins: int = BINS) -> dict[str, Any]:
    """Rewards before and after, counted in equal bins over [0, 1], or over their range where it is wider.

    Returns:
        `edges` (bins + 1), `before` and `after` (counts), `mean_before` and `mean_after`.
    """
    before, after = (table[key].to_numpy(float) for key in ("reference_reward", "policy_reward"))
    every = np.concatenate([before, after])
    if every.size == 0 or not np.isfinite(every).all():
        raise ValueError("it holds no rewards" if every.size == 0 else "a reward is not finite")
    inside = every.min() >= 0 and every.max() <= 1
    edges = np.histogram_bin_edges(every, bins, (0.0, 1.0) if inside else None)
    return {
        "edges": [_short(edge) for edge in edges],
        "before": np.histogram(before, edges)[0].tolist(),
        "after": np.histogram(after, edges)[0].tolist(),
        "mean_before": _short(before.mean()),
        "mean_after": _short(after.mean()),
    }


def samples(table: pd.DataFrame, texts: Pool, most: int = PROMPTS) -> list[list[Any]]:
    """The first sample of evenly spaced prompts.

    Returns:
        Rows of prompt, before and after (places in `texts`), reward before, reward after, log-ratio and KL.
    """
    first = table[table["sample_id"] == 0].sort_values("prompt_id")
    if len(first) > most:
        first = first.iloc[[round(place * (len(first) - 1) / (most - 1)) for place in range(most)]]
    words = [first[key].astype(str) for key in ("prompt", "reference", "policy")]
    numbers = [first[key].astype(float) for key in ("reference_reward", "policy_reward", "log_ratio", "kl")]
    return [
        [*(texts.add(text) for text in row[:3]), *(_short(number) for number in row[3:])]
        for row in zip(*words, *numbers, strict=True)
    ]


def _short(value: float) -> float:
    """Six significant digits: more than the page shows, and a third of the bytes."""
    return float(f"{value:.6g}")
