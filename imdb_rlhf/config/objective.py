"""The names that `objective=` takes."""

import re
from collections.abc import Sequence

from imdb_rlhf.errors import ConfigError

AT_BUDGET = re.compile(r"reward@(\d+(?:\.\d+)?)")
NAMES = ("reward", "kl", "score")


def check_objective(names: Sequence[str]) -> None:
    """Refuse a name that no run has a value of.

    Raises:
        ConfigError: naming those that exist.
    """
    for name in names:
        if name not in NAMES and AT_BUDGET.fullmatch(name) is None:
            raise ConfigError(
                f"objective={name} is no number of a run; give {', '.join(NAMES)} or reward@K, the reward within K nats"
            )
    if not names:
        raise ConfigError("objective=[] names nothing; give one of reward, kl, score, reward@K, such as [reward@5]")
