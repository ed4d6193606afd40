"""How many cases: FUZZ_CASES per test, 10,000 for all of them with `make fuzz`; a few in every run of the tests."""

import os

from hypothesis import HealthCheck, settings

CASES = int(os.environ.get("FUZZ_CASES", "20"))
settings.register_profile(
    "fuzz",
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize="FUZZ_CASES" not in os.environ,  # the same cases in every run of the tests
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("fuzz")
