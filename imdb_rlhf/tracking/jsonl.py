"""`metrics.jsonl`: the truth about a run's metrics, a JSON object per line, on the disk before the next step begins."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonlLog:
    """A `Tracker` that appends each row to a file, flushed and fsynced.

    Floats are written with `repr`, so reading gives back the same bits. Histograms, tables and the summary are not
    written here: W&B gets a copy, and their values are in the run's parquet files and `summary.json`.
    """

    def __init__(self, path: Path | str, keep_until: int | None = None) -> None:
        """Start an empty file, or continue the one that exists.

        Args:
            path: the file; its folder is created.
            keep_until: the step of the checkpoint that the run resumes from. Rows up to and including that step stay;
                later ones and a torn last line are dropped. The file is replaced in one piece, so a crash here loses
                nothing. None starts an empty file.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        if keep_until is not None and path.exists():
            rows = [row for row in read(path) if row["step"] <= keep_until]
        _replace(path, "".join(_line(row) for row in rows))
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            ValueError: a metric is nan or infinite; nothing is written.
        """
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Do nothing: the values are in `evaluations.parquet`."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing: the texts are in `samples.parquet`."""

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Close the file; the summary is in `summary.json`."""
        self._file.close()


def read(path: Path | str) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, without a last line that a crash tore.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    return rows


def _line(row: Mapping[str, Any]) -> str:
    bad = [f"{key} is {value}" for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise ValueError(f"{', '.join(bad)} at step {row.get('step')} of {row.get('stage')}")
    # NumPy's integers and float32 are not Python numbers; `item` returns the exact one.
    return json.dumps(dict(row), allow_nan=False, ensure_ascii=False, default=lambda value: value.item()) + "\n"


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
