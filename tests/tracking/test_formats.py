"""Durations: written, and read back from a line of progress. Numbers: by hand."""

import pytest

from imdb_rlhf.tracking.formats import decimals, duration, seconds_left, with_interval
from imdb_rlhf.tracking.result import figures


@pytest.mark.parametrize("seconds", [0.0, 0.4, 45.0, 59.9, 60.0, 125.0, 3599.0, 3600.0, 7380.0])
def test_what_is_left_is_read_as_it_was_written(seconds):
    said = seconds_left(f"dpo          5/50 steps   1.0 steps/s   {duration(seconds)} left   loss 0.5")
    assert said == pytest.approx(seconds, abs=0.05)
    assert seconds_left(f"dpo 5/50 steps 1.0 steps/s {duration(seconds)} left loss 0.5") == said


@pytest.mark.parametrize("line", ["", "dpo 5/50 steps", "dpo   nothing left", "dpo   3 left", "x  left   1.0 s"])
def test_a_line_that_says_nothing_of_it(line):
    assert seconds_left(line) is None


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        ([0.5, 1e-7], ".3f"),
        ([0.01, None], ".3f"),
        ([2e-6, 0.0], ".3g"),
        ([-0.009], ".3g"),
        ([0.0], ".3f"),
        ([None], ".3f"),
        ([], ".3f"),
        ([2000.0], ".3f"),
    ],
)
def test_small_numbers_have_digits(values, spec):
    assert decimals(values, 3) == spec
    assert with_interval(2.5e-6, (2e-6, 3e-6), ".3g") == "2.5e-06 [2e-06, 3e-06]"


def test_small_rewards_in_a_result():
    summary = {"reward": 2.5e-6, "reward_ci": [2e-6, 3e-6], "reference": {"reward": 1e-6, "reward_ci": [0.0, 2e-6]}}
    assert dict(figures(summary))["reward"] == "2.5e-06 [2e-06, 3e-06]   reference 1e-06 [0, 2e-06]"
