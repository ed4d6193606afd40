"""Where a run's numbers go: `jsonl` keeps them, `wandb` mirrors them, `console` shows them.

A tracker only ever receives plain Python values: no tensor, model or configuration class comes in here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
    """What the training loop and the pipeline may ask of a logger."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one flat row: `stage` (str), `step` (int) and metrics: `train/loss`, `eval/kl`, `time/elapsed`."""

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Take the values of one quantity at one step, one per sample."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table, such as sampled texts; `rows` is (row, column)."""

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Take the run's summary and close; `exit_code` is 0 only for a run that did what it was asked."""


class Trackers(list[Tracker]):
    """Several trackers as one, told in order: put the one that may refuse a row (`JsonlLog`) first."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass a row to every tracker."""
        for tracker in self:
            tracker.log(row)

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Pass a histogram's values to every tracker."""
        for tracker in self:
            tracker.histogram(key, values, step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Pass a table to every tracker."""
        for tracker in self:
            tracker.table(key, columns, rows)

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Close every tracker."""
        for tracker in self:
            tracker.finish(summary, exit_code)
