"""PPO's controllers of the KL coefficient by hand and on closed-form plants, and their part of the summary."""

import json
import math
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.algos.kl_controller import (
    INTEGRAL,
    LEAD,
    PROPORTIONAL,
    KLController,
    ProportionalIntegral,
    Ziegler,
    missed_because,
)
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.config.ppo import KLControl, PPOConfig
from tests import tiny
from tests.algos.naive_ppo import BETA, episodes, first_batch, make, ppo_run


def ziegler(algorithm: PPO) -> Ziegler:
    """Its controller, which is Ziegler's."""
    assert isinstance(algorithm.controller, Ziegler)
    return algorithm.controller


def coefficients(algorithm: PPO) -> list[float]:
    """The coefficient of every batch and the one after the last; nothing is trained."""
    firsts = [batch.notes["ppo/kl_coefficient"] for batch in algorithm.batches(0) if batch.first]
    return [*firsts, algorithm.coefficient]


# --- Ziegler's


def test_the_controller_by_hand() -> None:
    kl = float(np.mean([episode.kl for episode in episodes(make(ppo_run()), 0, BETA)]))
    # 10 % above the target; the first of 2 batches of 12 and a range of 2: horizon 0.2 x 24 / 2, clipped at a batch
    algorithm = make(ppo_run(target_kl=kl / 1.1, coefficient_range=2.0))
    assert ziegler(algorithm).horizon == 12
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * 1.1, rel=1e-4)
    # 10 % below it, with a horizon that is given
    algorithm = make(ppo_run(target_kl=kl / 0.9, horizon=60.0))
    assert ziegler(algorithm).horizon == 60
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * (1 - 0.1 * 12 / 60), rel=1e-4)
    assert algorithm.history == [[pytest.approx(kl, abs=1e-4), BETA]]


@pytest.mark.parametrize(("target", "sign"), [(1e-3, 1), (1e3, -1)])
def test_a_run_can_move_the_coefficient_by_its_range(target: float, sign: int) -> None:
    algorithm = make(ppo_run(target_kl=target, coefficient_range=3.0, episodes=240, epochs=1, rollout_batch_size=12))
    assert ziegler(algorithm).horizon == pytest.approx(0.2 * 240 / 3)
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


# --- none, and the summary


def test_a_fixed_coefficient_stays() -> None:
    algorithm = make(ppo_run(target_kl=None, kl_coefficient=BETA, episodes=36))
    assert coefficients(algorithm) == [BETA] * 4
    assert "ppo/kl_target" not in algorithm.notes and "ppo/kl_error" not in algorithm.notes
    report = algorithm.report()["ppo"]
    assert (report["target_kl"], report["on_target"]) == (None, None)
    assert not report["at_floor"] and not report["at_ceiling"]


@pytest.mark.parametrize(("last", "on_target"), [(2.19, True), (1.81, True), (2.21, False), (1.79, False)])
def test_the_summary(last: float, on_target: bool) -> None:
    algorithm = make(ppo_run(target_kl=2.0))
    history = [[9.0, 0.3 + 0.1 * number] for number in range(8)] + [[last - 0.5, 0.9], [last + 0.5, 0.8]]
    controller = algorithm.controller.state() | {"history": history, "coefficient": 0.7, "start": 0.3}
    algorithm.restore(algorithm.state() | {"controller": controller, "skipped_steps": 5})
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


@pytest.mark.parametrize(
    ("changes", "rewards", "why"),
    [
        ({"on_target": True}, [0.9], None),
        ({"on_target": None}, [0.9], None),
        ({}, [0.5, 0.905, 0.9], "coefficient at its floor, reward within 0.01 of the run's best: more KL buys none"),
        ({}, [0.5, 0.92, 0.9], "coefficient at its floor: more ppo.episodes"),
        ({}, [], "coefficient at its floor: more ppo.episodes"),
        ({"at_floor": False}, [0.9], "the coefficient had not settled"),
        ({"kl_last_fifth": 9.0}, [0.9], "the coefficient had not settled"),  # it fell to its floor too late to matter
        ({"at_floor": False, "at_ceiling": True, "kl_last_fifth": 9.0}, [0.9], "coefficient at its ceiling"),
    ],
)
def test_why_a_target_is_missed(changes: dict[str, Any], rewards: list[float], why: str | None) -> None:
    missed = {"target_kl": 3.0, "kl_last_fifth": 2.0, "on_target": False, "at_floor": True, "at_ceiling": False}
    reason = missed_because(missed | changes, rewards)
    assert reason is why is None or (reason is not None and why is not None and reason.startswith(why))


# --- proportional-integral


def config(**changes: Any) -> PPOConfig:
    changes = {"controller": KLControl.proportional_integral, "coefficient_range": None} | changes
    return tiny.ppo(batch_size=256, minibatch_size=256, rollout_batch_size=256, **changes)


def test_the_proportional_integral_controller_by_hand() -> None:
    controller = ProportionalIntegral(config(episodes=4 * 256), 4.0, 0.5)
    # distances 0, 0.8, 0.9 and 0.99 of the target's; at the third it has arrived
    distances = [0.0, 0.8, 0.9, 0.99]
    headings = [1e-6, 0.8 + LEAD * 0.8, 0.9 + LEAD * 0.9 / 2, 0.99 + LEAD * 0.19 / 2]
    integral, expected = 0.5, []
    for number, heading in enumerate(headings):
        error = 1 - 1 / heading
        expected.append(max(integral * (1 + PROPORTIONAL * error), 1e-4))
        integral *= math.exp(INTEGRAL * min(error, 0.25)) if number >= 2 else 1.0
    kls = [4 * distance**2 for distance in distances]
    given = [controller.steer(77.0, kl) for kl in kls]
    assert given == pytest.approx(expected, rel=1e-6)
    assert controller.integral == pytest.approx(integral)
    assert controller.history == [[kl, beta] for kl, beta in zip(kls, given, strict=True)]
    assert controller.report()["first_kl_coefficient"] == 0.5


def test_it_stays_between_its_limits_and_leaves_them_at_once() -> None:
    controller = ProportionalIntegral(config(min_kl_coefficient=0.2, max_kl_coefficient=0.5), 1.0, 0.3)
    for kl, limit in ((1e-3, 0.2), (1e3, 0.5)):
        assert [controller.steer(kl, kl) for _ in range(20)][-3:] == [limit] * 3
        assert 0.2 <= controller.integral <= 0.5
    report = controller.report()
    assert report["at_ceiling"] and not report["at_floor"]
    # far below the target for a hundred batches, I has not moved: there is nothing to unwind
    patient = ProportionalIntegral(config(), 1.0, 0.3)
    assert [patient.steer(0.1, 0.1) for _ in range(100)] == [1e-4] * 100
    assert patient.integral == 0.3 and patient.report()["at_floor"]
    assert patient.steer(1.0, 1.0) >= 0.3


def normal_world(
    controller: KLController, target: float, holds: float, pace: float, noise: float, seed: int
) -> list[float]:
    """KL over target per batch of a policy whose rewards are normal: log pi - log ref is d times a standard normal.

    Its KL is d^2 / 2, its reward rises with d, so that reward - beta KL pulls it to d = 1 / beta (all in units of the
    target's), with the momentum that Adam has: 10 steps, 3 per batch. At beta = `holds` it rests at the target.
    """
    random, distance, speed, kept, seen = np.random.default_rng(seed), 0.0, 0.0, 0.9**3, []
    for _ in range(controller.config.batches):
        kl = distance**2 * target
        beta = controller.steer(kl, kl * (1 + noise * random.normal()))
        pull = beta * distance / holds
        speed = kept * speed + (1 - kept) * (1 - pull) / math.hypot(1, pull)
        distance = abs(distance + pace * speed)
        seen.append(kl / target)
    return seen


@pytest.mark.parametrize("target", [0.25, 0.5, 1, 2, 3, 6, 9, 12])
@pytest.mark.parametrize("wrong", [0.5, 1.0, 1.5])
def test_it_settles_on_a_closed_form_plant(target: float, wrong: float) -> None:
    """Within 10 % over the last fifth, five seeds each, where the optimum's coefficient is wrong by a factor."""
    for seed in range(5):
        start = 1 / math.sqrt(2 * target)
        controller = ProportionalIntegral(config(episodes=32 * 256), target, start)
        seen = normal_world(controller, target, wrong * start, pace=0.09, noise=0.03, seed=seed)
        assert np.mean(seen[-6:]) == pytest.approx(1, abs=0.1)
        assert controller.report()["on_target"]
        assert max(seen) < 1.35


def test_where_the_old_one_misses() -> None:
    changes = {"controller": KLControl.ziegler, "coefficient_range": 2.5, "episodes": 32 * 256}
    old = Ziegler(config(**changes), 3.0, 1 / math.sqrt(6))
    new = ProportionalIntegral(config(episodes=32 * 256), 3.0, 1 / math.sqrt(6))
    off = [abs(np.mean(normal_world(one, 3.0, 0.5 / math.sqrt(6), 0.09, 0.0, 0)[-6:]) - 1) for one in (old, new)]
    assert off[1] < 0.05 < 0.1 < off[0]


def test_it_goes_on_bit_for_bit() -> None:
    straight = ProportionalIntegral(config(), 1.0, 0.3)
    kls = [0.2, 0.6, 0.9, 1.3, 1.1, 0.95]
    expected = [straight.steer(kl, kl) for kl in kls]
    for at in range(len(kls)):
        first = ProportionalIntegral(config(), 1.0, 0.3)
        before = [first.steer(kl, kl) for kl in kls[:at]]
        resumed = ProportionalIntegral(config(), 1.0, 77.0)
        resumed.restore(json.loads(json.dumps(first.state())))
        assert [*before, *(resumed.steer(kl, kl) for kl in kls[at:])] == expected
        assert resumed.state() == straight.state() and resumed.report() == straight.report()
