"""`report.html`: a frontier and its runs in one file that needs no network.

`page/` holds the page's parts: `report.html` (the frame), `report.css` and the scripts. When the page is written, they
are joined with plotly.js and the data, which is JSON in a script element that no browser runs.
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
from imdb_rlhf.frontier.methods import styles
from imdb_rlhf.runs import files
from imdb_rlhf.tracking import jsonl

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("common.js", "frontier.js", "tables.js", "run.js", "report.js")
CURVE_POINTS = 300
PROMPTS = 100
BINS = 40


def write(frontier: Mapping[str, Any], path: Path) -> None:
    """Write the report of a frontier, whole or not at all; the same input gives the same bytes.

    Args:
        frontier: the content of `frontier.json`. Curves, samples and configuration are read from the folders in
            `frontier["runs"]`; the page names files that are missing or cannot be read.
        path: of the HTML file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, render(page_data(frontier)))


def render(data: Mapping[str, Any]) -> str:
    """The page as text, for the data of `page_data`."""
    from plotly.offline import get_plotlyjs  # 5 MB of text, read only when a report is written

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
    """A value as JSON that is safe inside a script element: no character of it can end or open an element.

    Characters beyond ASCII are escaped, and so are those with a meaning in HTML; nan and infinity become null.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """The same value with Python's own types, and None in place of nan and infinity."""
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
    """Texts that are stored once and referred to by index: runs share prompts, reference samples and config lines."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The index of a text."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def page_data(frontier: Mapping[str, Any]) -> dict[str, Any]:
    """All data of the page.

    Returns:
        `frontier` (as given), `styles` (method -> [colour, plotly's symbol]), `texts` (which samples and configurations
        refer to by index), `redraw` (the command that draws this frontier again) and `runs`: for each of
        `frontier["runs"]` its `command`, `step`, `curves`, `histogram`, `samples`, `config` and `missing`.
    """
    texts = Pool()
    runs = [_run(run, texts) for run in frontier["runs"]]
    names = [*(method["name"] for method in frontier["methods"]), *(run["method"] for run in frontier["runs"])]
    return {
        "frontier": frontier,
        "styles": {name: [style.colour, style.symbol] for name, style in styles(names).items()},
        "redraw": shlex.join(["python", "-m", "imdb_rlhf.frontier", *frontier["sources"]]),
        "runs": runs,
        "texts": texts.texts,
    }


def _run(run: Mapping[str, Any], texts: Pool) -> dict[str, Any]:
    """The data of one run; a part that cannot be read is None and has a line in `missing`."""
    folder, missing = Path(run.get("path") or run["name"]), []

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(folder / name)
        except FileNotFoundError:
            missing.append(f"{name} is not in the run's folder")
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"{name} cannot be read: {' '.join(str(error).split())[:200]}")
        return None

    table = read(files.SAMPLES, pd.read_parquet)
    return {
        "command": run.get("command") or shlex.join(["python", "train.py", *run.get("overrides", [])]),
        "step": read(files.SUMMARY, lambda path: json.loads(path.read_text(encoding="utf-8"))["step"]),
        "curves": read(files.METRICS, lambda path: curves(jsonl.read(path))),
        "histogram": None if table is None else read(files.SAMPLES, lambda _: histogram(table)),
        "samples": None if table is None else read(files.SAMPLES, lambda _: samples(table, texts)),
        "config": read(files.CONFIG, lambda path: [texts.add(line) for line in _lines(path)]),
        "missing": list(dict.fromkeys(missing)),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")


def curves(rows: Sequence[Mapping[str, Any]], most: int = CURVE_POINTS) -> dict[str, list[list[float]]]:
    """Metrics over steps.

    Args:
        rows: of `metrics.jsonl`.
        most: points per metric; a longer curve is thinned to as many evenly spaced points, first and last included.

    Returns:
        Name of each numeric metric -> [steps, values], without `time/`. Of a step that was logged twice the last row
        counts.
    """
    by_step: dict[str, dict[int, float]] = {}
    for row in rows:
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and key not in ("step", "stage") and not key.startswith("time/"):
                by_step.setdefault(key, {})[int(row["step"])] = value
    result = {}
    for key, values in sorted(by_step.items()):
        steps = sorted(values)
        if len(steps) > most:
            steps = [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
        result[key] = [list(map(float, steps)), [_short(values[step]) for step in steps]]
    return result


def histogram(table: pd.DataFrame, bins: int = BINS) -> dict[str, Any]:
    """Rewards before and after training, counted in equal bins over [0, 1], or over their range if that is wider.

    Returns:
        `edges` (bins + 1), `before` and `after` (counts), `mean_before` and `mean_after`.
    """
    before, after = (table[key].to_numpy(float) for key in ("reference_reward", "policy_reward"))
    rewards = np.concatenate([before, after])
    if rewards.size == 0 or not np.isfinite(rewards).all():
        raise ValueError("it holds no rewards" if rewards.size == 0 else "a reward is not finite")
    inside = rewards.min() >= 0 and rewards.max() <= 1
    edges = np.histogram_bin_edges(rewards, bins, (0.0, 1.0) if inside else None)
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
        Rows of prompt, completion before and after training (indices into `texts`), reward before, reward after,
        log-ratio and KL.
    """
    first = table[table["sample_id"] == 0].sort_values("prompt_id")
    if len(first) > most:
        first = first.iloc[[round(place * (len(first) - 1) / (most - 1)) for place in range(most)]]
    text_columns = [first[key].astype(str) for key in ("prompt", "reference", "policy")]
    numbers = [first[key].astype(float) for key in ("reference_reward", "policy_reward", "log_ratio", "kl")]
    return [
        [*(texts.add(text) for text in row[:3]), *(_short(number) for number in row[3:])]
        for row in zip(*text_columns, *numbers, strict=True)
    ]


def _short(value: float) -> float:
    """Round to six significant digits: more than the page shows, in a third of the bytes."""
    return float(f"{value:.6g}")
