"""The data of runs as pages show them: curves, rewards, samples and configuration, read from the runs' folders."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from imdb_rlhf.runs import files
from imdb_rlhf.tracking import jsonl

BINS = 40


class Pool:
    """What is stored once and referred to by index.

    Runs share prompts, reference samples and lines of their configuration; metrics share their steps.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.steps: list[list[float]] = []
        self._places: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The index of a text."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]

    def share(self, curves: Mapping[str, Sequence[list[float]]]) -> dict[str, list[Any]]:
        """The curves with the index of their steps in place of the steps."""
        for steps, _ in curves.values():
            if steps not in self.steps:
                self.steps.append(steps)
        return {key: [self.steps.index(steps), values] for key, (steps, values) in curves.items()}


class Detail(NamedTuple):
    """How much of each run a page holds.

    Attributes:
        prompts: test prompts with their completions.
        points: of each training curve.
    """

    prompts: int = 100
    points: int = 300


# From the most to the least; a page takes the first with which it is small enough.
DETAILS = (Detail(), Detail(60, 200), Detail(30, 120), Detail(15, 60), Detail(8, 30), Detail(3, 12))


def parts(run: Mapping[str, Any], texts: Pool, detail: Detail) -> dict[str, Any]:
    """The data of one run: `command`, `step`, `curves`, `histogram`, `samples`, `config` and `missing`.

    A part that cannot be read is None and has a line in `missing`.

    Args:
        run: an entry of `frontier["runs"]`.
        texts: gets the texts that samples and configuration refer to, and the steps that curves refer to.
        detail: how much of the run is taken.
    """
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
        "curves": read(files.METRICS, lambda path: texts.share(curves(jsonl.read(path), detail.points))),
        "histogram": None if table is None else read(files.SAMPLES, lambda _: histogram(table)),
        "samples": None if table is None else read(files.SAMPLES, lambda _: samples(table, texts, detail.prompts)),
        "config": read(files.CONFIG, lambda path: [texts.add(line) for line in _lines(path)]),
        "missing": list(dict.fromkeys(missing)),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")


def curves(rows: Sequence[Mapping[str, Any]], most: int = Detail().points) -> dict[str, list[list[float]]]:
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
        result[key] = [list(map(float, steps)), [short(values[step]) for step in steps]]
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
        "edges": [short(edge) for edge in edges],
        "before": np.histogram(before, edges)[0].tolist(),
        "after": np.histogram(after, edges)[0].tolist(),
        "mean_before": short(before.mean()),
        "mean_after": short(after.mean()),
    }


def samples(table: pd.DataFrame, texts: Pool, most: int = Detail().prompts) -> list[list[Any]]:
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
        [*(texts.add(text) for text in row[:3]), *(short(number) for number in row[3:])]
        for row in zip(*text_columns, *numbers, strict=True)
    ]


def short(value: float) -> float:
    """Round to six significant digits: more than the page shows, in a third of the bytes."""
    return float(f"{value:.6g}")
