"""Methods that learn from their own completions against their closed forms, on the world of `test_closed_forms`.

REINFORCE, RLOO, and GRPO with the KL in the reward end at reference * exp(r / beta) / Z; online DPO on Bradley-Terry
labels at reference * exp(r / (tau beta)) / Z. GRPO with k3 in the loss ends elsewhere: see `fixed_point`.
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


@pytest.mark.slow
def test_rloo_reaches_the_optimum(runtime: Runtime, tmp_path: Path) -> None:
    changes = {"episodes": 40 * 256, "minibatch_size": 256, "epochs": 2}
    assert_optimal(trained(RLOO, RLOORun, tiny.rloo, 1.0, 1e-3, runtime, tmp_path, **changes), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("length_norm", list(LengthNorm))
def test_grpo_with_the_kl_in_the_reward_reaches_the_optimum(
    length_norm: LengthNorm, scale: bool, runtime: Runtime, tmp_path: Path
) -> None:
    """All rewards of a prompt are equal there, so all advantages are 0, whatever they are divided by."""
    changes = {"episodes": 40 * 256, "minibatch_size": 256, "epochs": 2, "kl_in": KLPlace.reward}
    changes |= {"scale_advantages": scale, "length_norm": length_norm}
    assert_optimal(trained(GRPO, GRPORun, tiny.grpo, 1.0, 1e-3, runtime, tmp_path, **changes), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "tau", "k"), [(1.0, None, 2), (2.0, 0.5, 4)])
def test_online_dpo_reaches_the_optimum(
    beta: float, tau: float | None, k: int, runtime: Runtime, tmp_path: Path
) -> None:
    size = 512 if k == 4 else 2048
    changes: dict[str, Any] = {"episodes": 20 * size, "batch_size": size, "rollout_batch_size": size, "k": k}
    changes |= {"minibatch_size": size // 2, "epochs": 2, "labels": Labels.bradley_terry, "tau": tau}
    algorithm = trained(OnlineDPO, OnlineDPORun, tiny.online_dpo, beta, 1.5e-3, runtime, tmp_path, **changes)
    assert_optimal(algorithm, beta * (tau or 1.0))


# --- where GRPO's published form ends


Step = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def of_k3(reference: np.ndarray, value: np.ndarray, beta: float) -> np.ndarray:
    """The zero of sum_a [pi(a) Q(a) + beta ref(a)] dlog pi(a): pi(a) = beta ref(a) / (c - Q(a)), by bisection of c.

    The gradient of k3 under samples of pi is that of KL(ref || pi) of the token.
    """
    low = value.max(-1, keepdims=True)
    high = low + beta + np.ptp(value, axis=-1, keepdims=True)
    for _ in range(60):
        middle = (low + high) / 2
        above = (beta * reference / (middle - value)).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(beta * reference / (high - value))


def of_corrected(reference: np.ndarray, value: np.ndarray, beta: float) -> np.ndarray:
    """The same with the gradient of KL(pi || ref) of the token: reference * exp(Q / beta) / Z."""
    masses = reference * np.exp((value - value.max(-1, keepdims=True)) / beta)
    return np.asarray(masses / masses.sum(-1, keepdims=True))


def fixed_point(step: Step, beta: float, advantages: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(prompts, completions) log-probs where the expected step of GRPO with the KL in the loss is zero.

    The KL of a token does not reach the tokens before it, so at each state Q(s, a) is the mean advantage of the
    completions that go on with a, without the KL that they cost. From the last token back; repeated until the
    advantages, a function of the policy, settle.

    Args:
        step: a state's distribution, given the reference's, Q and beta.
        beta: as in the loss.
        advantages: (prompts, completions) probabilities to the mean advantage of each completion.
    """
    shape = (len(LOG_REF), *[TOKENS] * LENGTH)
    masses = np.exp(LOG_REF).reshape(shape)
    law = np.exp(LOG_REF)
    for _ in range(100):
        value, policy = advantages(law).reshape(shape), np.ones(shape)
        for place in reversed(range(LENGTH)):
            upto = masses.sum(tuple(range(place + 2, LENGTH + 1)))  # of each prefix that ends here
            chances = step(upto / upto.sum(-1, keepdims=True), value, beta)
            value = (chances * value).sum(-1)
            policy = policy * chances.reshape(chances.shape + (1,) * (LENGTH - 1 - place))
        law = 0.5 * law + 0.5 * policy.reshape(LOG_REF.shape)
    return np.log(law)


def mean_over_group(law: np.ndarray) -> np.ndarray:
    """Rewards minus the mean of a group of 4 with the completion in it: 3/4 of rewards minus their mean."""
    return 0.75 * (REWARDS - (law * REWARDS).sum(1, keepdims=True))


def sign_in_pairs(law: np.ndarray) -> np.ndarray:
    """Scaled advantages of groups of 2: 1 / sqrt 2 for the better one, minus that for the other."""
    gaps = np.sign(REWARDS[:, :, None] - REWARDS[:, None, :])
    return (gaps * law[:, None]).sum(2) / math.sqrt(2)


@pytest.mark.parametrize(
    ("kl_in", "step", "k", "advantages"),
    [
        (KLPlace.loss, of_k3, 4, mean_over_group),
        pytest.param(KLPlace.loss, of_k3, 2, sign_in_pairs, marks=pytest.mark.slow),
        pytest.param(KLPlace.loss_corrected, of_corrected, 4, mean_over_group, marks=pytest.mark.slow),
    ],
)
def test_the_kl_in_the_loss_ends_at_a_fixed_point_of_its_own(
    kl_in: KLPlace, step: Step, k: int, advantages: Any, runtime: Runtime, tmp_path: Path
) -> None:
    beta = 0.5 if k == 2 else 1.0
    expected = fixed_point(step, beta, advantages)
    assert np.exp(expected).sum(1) == pytest.approx(1)
    episodes = 200 * 256 if k == 2 else 40 * 256
    changes: dict[str, Any] = {"episodes": episodes, "minibatch_size": 256, "epochs": 2, "k": k, "kl_in": kl_in}
    changes |= {"scale_advantages": k == 2}
    algorithm = trained(GRPO, GRPORun, tiny.grpo, beta, 1e-3, runtime, tmp_path, **changes)
    law = log_law(language_model(algorithm))

    def distance(other: np.ndarray) -> float:
        return float((np.exp(law) * (law - other)).sum(1).mean())

    assert distance(expected) < 0.01
    assert distance(LOG_REF) > 0.1
    assert distance(optimum(beta)) > 3 * distance(expected)
