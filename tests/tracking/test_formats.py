"""Durations: written, and read back from a line of progress."""

import pytest

from imdb_rlhf.tracking.formats import duration, seconds_left


@pytest.mark.parametrize("seconds", [0.0, 0.4, 45.0, 59.9, 60.0, 125.0, 3599.0, 3600.0, 7380.0])
def test_what_is_left_is_read_as_it_was_written(seconds):
    said = seconds_left(f"dpo          5/50 steps   1.0 steps/s   {duration(seconds)} left   loss 0.5")
    assert said == pytest.approx(seconds, abs=0.05)
    assert seconds_left(f"dpo 5/50 steps 1.0 steps/s {duration(seconds)} left loss 0.5") == said


@pytest.mark.parametrize("line", ["", "dpo 5/50 steps", "dpo   nothing left", "dpo   3 left", "x  left   1.0 s"])
def test_a_line_that_says_nothing_of_it(line):
    assert seconds_left(line) is None
