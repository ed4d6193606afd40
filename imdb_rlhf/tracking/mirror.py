"""What trackers outside the run's folder share: a failure costs one warning and the rest of the copy, never the run."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imdb_rlhf.tracking.redact import redact


class Mirror:
    """A copy of a run that may fail.

    Attributes:
        title: its name in warnings.
        on: whether rows are still copied.
    """

    title: str

    def __init__(self, warn: Callable[[str], None], truth: str) -> None:
        """Not started yet.

        Args:
            warn: is called once, with one line, if copying failed and has stopped.
            truth: ends that line by saying where the numbers are.
        """
        self.on, self._told = False, False
        self._warn, self._truth = warn, truth

    def log(self, row: Mapping[str, Any]) -> None:
        """Copy one row."""
        raise NotImplementedError

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the rows of an earlier run, such as a finished run's `metrics.jsonl`."""
        for row in rows:
            self.log(row)

    @contextmanager
    def attempt(self, action: str) -> Iterator[None]:
        """Do something that may fail: then warn, once, and stop copying."""
        state = random.getstate()  # retries draw from it
        try:
            yield
        except Exception as error:
            if not self._told:
                self._told = True
                self._warn(
                    f"{self.title} could not {action} ({redact(self.reason(error))}); "
                    f"the run goes on without it, {self._truth}"
                )
            self.on = False
        finally:
            random.setstate(state)

    def reason(self, error: Exception) -> str:
        """An error in one line."""
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line}".rstrip(": ")
