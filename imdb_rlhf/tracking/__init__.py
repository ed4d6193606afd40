"""Where a run's numbers go: `jsonl` keeps them, `wandb` copies them to W&B, `console` shows them.

Trackers receive plain Python values only: no tensor, model or configuration class.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tracker(Protocol):
    """The interface between a run and a logger."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one flat row: `stage` (str), `step` (int) and metrics such as `train/loss`, `eval/kl`, `time/elapsed`."""

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Log the values of one quantity at one step, one per sample."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, such as sampled texts; `rows` is (row, column)."""

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Log the run's summary and close; `exit_code` is 0 only for a run that succeeded."""


class Trackers(list[Tracker]):
    """Several trackers as one, called in order: put the one that may refuse a row (`JsonlLog`) first."""

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
