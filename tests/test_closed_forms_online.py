"""Methods that learn from their own completions against their closed forms, on the world of `test_closed_forms`.

REINFORCE, RLOO, and GRPO with the KL in the reward end at reference * exp(r / beta) / Z; online DPO on Bradley-Terry
labels at reference * exp(r / (tau beta)) / Z. GRPO with k3 in the loss ends elsewhere: see `k3_fixed_point`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.algos.grpo import GRPO
from imdb_rlhf.algos.online_dpo import OnlineDPO
from imdb_rlhf.algos.reinforce import Reinforce
from imdb_rlhf.algos.rloo import RLOO
from imdb_rlhf.config.online_algos import (
    Baseline,
    GRPORun,
    KLPlace,
    LengthNorm,
    OnlineDPORun,
    ReinforceRun,
    RLOORun,
)
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.test_closed_forms import (
    GENERATION,
    LENGTH,
    LOG_REF,
    REWARDS,
    TOKENS,
    adam,
    assert_optimal,
    fit,
    inputs,
    language_model,
    log_law,
    optimum,
)

SIZES = {"batch_size": 256, "rollout_batch_size": 256}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return tiny.runtime()


def trained(
    method: Any,
    kind: Any,
    section: Callable[..., Any],
    beta: float,
    lr: float,
    runtime: Runtime,
    folder: Path,
    **changes: Any,
) -> Any:
    """The method, trained on the enumerated world by the package's loop."""
    run = tiny.run(kind, generation=GENERATION, beta=beta, **{section.__name__: section(**{**SIZES, **changes})})
    algorithm = method.from_inputs(inputs(runtime), run)
    fit(algorithm, runtime, adam(lr=lr), folder)
    return algorithm


# --- the reference tilted by the reward


@pytest.mark.parametrize("baseline", [Baseline.batch, pytest.param(Baseline.moving_average, marks=pytest.mark.slow)])
def test_reinforce_reaches_the_optimum(baseline: Baseline, runtime: Runtime, tmp_path: Path) -> None:
    changes = {"episodes": 50 * 256, "baseline": baseline}
    assert_optimal(trained(Reinforce, ReinforceRun, tiny.reinforce, 1.0, 2e-3, runtime, tmp_path, **changes), 1.0)


def test_rloo_reaches_the_optimum(runtime: Runtime, tmp_path: Path) -> None:
    changes = {"episodes": 40 * 256, "minibatch_size": 256, "epochs": 2}
    assert_optimal(trained(RLOO, RLOORun, tiny.rloo, 1.0, 1e-3, runtime, tmp_path, **changes), 1.0)
