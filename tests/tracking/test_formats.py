"""How numbers are written: by hand."""

import pytest

from imdb_rlhf.tracking.formats import decimals, with_interval
from imdb_rlhf.tracking.result import figures


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
