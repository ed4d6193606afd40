"""What a finished run is worth to a sweeper that searches.

The numbers are of validation prompts, so that a search sees no test prompt.

`config.objective` has their names.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imdb_rlhf.config.objective import AT_BUDGET
from imdb_rlhf.errors import RunError
from imdb_rlhf.frontier.curves import area, corners
from imdb_rlhf.frontier.finished import FinishedRun, read
from imdb_rlhf.frontier.world import SCORE_KL


def objective(folder: Path, names: Sequence[str]) -> float | list[float]:
    """The value of a finished run, or the list of its values where there are several names.

    Args:
        folder: of the run.
        names: `reward` and `kl` (nats) of the checkpoint that it reports; `reward@K`, the reward that its curve reaches
            within K nats; `score`, its curve's mean reward above the reference's over [0, 5] nats.

    Raises:
        RunError: the run has no policy, no validation prompts, or was changed after it was finished.
    """
    runs, skipped = read([folder])
    if not runs:
        raise RunError(f"{folder}: {skipped[0]['why']}")
    values = [_value(runs[0], name) for name in names]
    if not np.isfinite(values).all():
        raise RunError(f"{folder} has no policy that was evaluated on validation prompts; objective= needs some")
    return values[0] if len(values) == 1 else values


def _value(run: FinishedRun, name: str) -> float:
    steps = [point.step for point in run.checkpoints]
    if name in ("reward", "kl"):
        return float(getattr(run.checkpoints[steps.index(int(run.summary["step"]))], f"validation_{name}"))
    start = run.reference[1]
    if start is None:
        raise RunError(f"{run.path}: the artifact of its reference's evaluation was removed; objective={name} needs it")
    kl, reward = ([getattr(point, f"validation_{key}") for point in run.checkpoints] for key in ("kl", "reward"))
    chosen = corners(kl, reward, start)
    grid = np.linspace(0.0, SCORE_KL, 101)
    budget = AT_BUDGET.fullmatch(name)
    if budget is not None:
        grid = np.array([float(budget[1])])
    curve = np.interp(grid, [0.0, *(kl[i] for i in chosen)], [start, *(reward[i] for i in chosen)])
    return float(curve[0] if budget is not None else area(grid, curve, start))
