"""PPO's controller of the KL coefficient by hand, and its part of the summary."""

import math

import numpy as np
import pytest

from imdb_rlhf.algos.ppo import PPO
from tests.algos.naive_ppo import BETA, episodes, first_batch, make, ppo_run


def coefficients(algorithm: PPO) -> list[float]:
    """The coefficient of every batch and the one after the last; nothing is trained."""
    firsts = [batch.notes["ppo/kl_coefficient"] for batch in algorithm.batches(0) if batch.first]
    return [*firsts, algorithm.coefficient]


def test_the_controller_by_hand() -> None:
    kl = float(np.mean([episode.kl for episode in episodes(make(ppo_run()), 0, BETA)]))
    # 10 % above the target; the first of 2 batches of 12 and a range of 2: horizon 0.2 x 24 / 2, clipped at a batch
    algorithm = make(ppo_run(target_kl=kl / 1.1, coefficient_range=2.0))
    assert algorithm.controller.horizon == 12
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * 1.1, rel=1e-4)
    # 10 % below it, with a horizon that is given
    algorithm = make(ppo_run(target_kl=kl / 0.9, horizon=60.0))
    assert algorithm.controller.horizon == 60
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * (1 - 0.1 * 12 / 60), rel=1e-4)
    assert algorithm.history == [[pytest.approx(kl, abs=1e-4), BETA]]


@pytest.mark.parametrize(("target", "sign"), [(1e-3, 1), (1e3, -1)])
def test_a_run_can_move_the_coefficient_by_its_range(target: float, sign: int) -> None:
    algorithm = make(ppo_run(target_kl=target, coefficient_range=3.0, episodes=240, epochs=1, rollout_batch_size=12))
    assert algorithm.controller.horizon == pytest.approx(0.2 * 240 / 3)
    betas = coefficients(algorithm)
    # each of 20 batches by the factor 1 +- 3/20
    assert betas == pytest.approx([BETA * (1 + sign * 3 / 20) ** number for number in range(21)])
    assert sign * math.log(betas[-1] / BETA) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("target", "ends"), [(1e-3, "ceiling"), (1e3, "floor")])
def test_the_coefficient_has_a_floor_and_a_ceiling(target: float, ends: str) -> None:
    run = ppo_run(target_kl=target, episodes=72, epochs=1, min_kl_coefficient=0.2, max_kl_coefficient=0.5)
    algorithm = make(run)
    betas = coefficients(algorithm)
    assert betas[-3:] == [0.5 if ends == "ceiling" else 0.2] * 3
    assert 0.2 <= min(betas) <= max(betas) <= 0.5
    report = algorithm.report()["ppo"]
    assert (report["at_floor"], report["at_ceiling"]) == (ends == "floor", ends == "ceiling")


def test_a_fixed_coefficient_stays() -> None:
    algorithm = make(ppo_run(target_kl=None, kl_coefficient=BETA, episodes=36))
    assert coefficients(algorithm) == [BETA] * 4
    assert "ppo/kl_target" not in algorithm.notes and "ppo/kl_error" not in algorithm.notes
    report = algorithm.report()["ppo"]
    assert (report["target_kl"], report["on_target"]) == (None, None)
    assert not report["at_floor"] and not report["at_ceiling"]


@pytest.mark.parametrize(("last", "on_target"), [(2.4, True), (1.6, True), (2.6, False), (1.4, False)])
def test_the_summary(last: float, on_target: bool) -> None:
    algorithm = make(ppo_run(target_kl=2.0))
    history = [[9.0, 0.3 + 0.1 * number] for number in range(8)] + [[last - 0.5, 0.9], [last + 0.5, 0.8]]
    algorithm.restore(algorithm.state() | {"history": history, "skipped_steps": 5, "coefficient": 0.7})
    assert algorithm.report() == {
        "ppo": {
            "target_kl": 2.0,
            "kl_last_fifth": pytest.approx(last),
            "on_target": on_target,
            "kl_coefficient": 0.8,
            "first_kl_coefficient": 0.3,
            "at_floor": False,
            "at_ceiling": False,
            "episodes": 120,
            "skipped_steps": 5,
        }
    }
