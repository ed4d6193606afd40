"""PPO trained by the loop: it learns, a run goes on bit for bit after a crash, and early stopping skips steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.machine import Precision
from imdb_rlhf.config.ppo import KLControl, ValueNetwork
from imdb_rlhf.training import checkpoint
from tests import tiny
from tests.algos.naive_ppo import disturb, first_batch, make, ppo_run, rollout_of, same, train

# --- training and going on


def same_after_a_crash(run: PPORun, steps: list[int], folder: Path, every: int | None = None) -> PPO:
    """Train straight on, and with a crash at each of `steps` and a new start; the numbers must be equal bit for bit.

    A crash comes a step after the last checkpoint, or as checkpoints `every` so many steps have it.
    """
    straight = make(run)
    rows = train(straight, folder / "straight", log_every=4)
    for step in steps:
        place, period = folder / str(step), every or step - 1
        stopped = make(run)
        with pytest.raises(tiny.Crash):
            train(stopped, place, tiny.crash_at(step), log_every=4, checkpoint_every=period)
        last = checkpoint.load(place)
        assert last is not None
        assert last.step == (step - 1) // period * period
        resumed = make(run, coefficient=77.0)  # a number that is not restored would show
        disturb(resumed)
        rest = train(resumed, place, log_every=4, checkpoint_every=period)
        assert rest == [row for row in rows if row["step"] > last.step]
        assert tiny.weights(resumed.module).equal(tiny.weights(straight.module))
        assert resumed.history == straight.history
        assert resumed.coefficient == straight.coefficient
        assert resumed.controller.state() == straight.controller.state()
        assert resumed.report() == straight.report()
    return straight


@pytest.mark.parametrize(
    ("network", "steps", "every"),
    [(ValueNetwork.shared, [3, 7, 11], None), (ValueNetwork.own, [8], 1)],  # in a batch, between two, in the second
)
def test_a_run_goes_on_bit_for_bit(network: ValueNetwork, steps: list[int], every: int | None, tmp_path: Path) -> None:
    straight = same_after_a_crash(ppo_run(value=network, target_kl=0.5), steps, tmp_path, every)
    assert len(straight.history) == 2
    assert len({coefficient for _, coefficient in straight.history} | {straight.coefficient}) == 3
    assert not tiny.weights(straight.module).equal(tiny.weights(make(straight.run).module))


def test_the_proportional_integral_controller_goes_on_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"controller": KLControl.proportional_integral, "coefficient_range": None}
    straight = same_after_a_crash(ppo_run(target_kl=0.5, **changes), [3, 7, 11], tmp_path)
    assert "integral" in straight.state()["controller"]


def test_a_run_goes_on_from_an_old_checkpoint(tmp_path: Path) -> None:
    # a checkpoint at 4 and a crash at 8: the second batch is sampled again
    same_after_a_crash(ppo_run(target_kl=0.5), [8], tmp_path, every=4)


def test_bf16_trains(tmp_path: Path) -> None:
    algorithm = make(ppo_run(), tiny.runtime(Precision.bf16))
    rows = train(algorithm, tmp_path)
    assert len(rows) == 12
    assert algorithm.report()["ppo"]["skipped_steps"] == 0  # nothing is skipped without a limit
    assert {p.dtype for p in algorithm.module.parameters()} == {torch.float32}
    exact = make(ppo_run())
    _, metrics = tiny.run_batch(exact, first_batch(exact))
    assert rows[0]["ppo/value_loss"] == pytest.approx(metrics["ppo/value_loss"], rel=0.1)
    assert rows[0]["ppo/value_loss"] != metrics["ppo/value_loss"]  # it was bf16


def test_it_learns(tmp_path: Path) -> None:
    run = ppo_run(target_kl=None, kl_coefficient=0.01, episodes=640, batch_size=64, minibatch_size=32, gamma=1.0)
    algorithm = make(run, coefficient=0.01, trained=False)
    # the score is the share of token 3
    algorithm.score = lambda prompt_ids, completion_ids: np.array([row.count(3) / len(row) for row in completion_ids])
    rows = train(algorithm, tmp_path, log_every=algorithm.period)
    assert rows[-1]["ppo/score"] > rows[0]["ppo/score"] + 0.3


def test_a_state_is_restored_whole() -> None:
    algorithm = make(ppo_run())
    assert algorithm.state()["rollout"] is None
    fresh = make(ppo_run())
    fresh.restore(algorithm.state())
    assert fresh.rollout is None
    first_batch(algorithm)
    algorithm.stopped, algorithm.skipped_steps = True, 4
    fresh.restore(algorithm.state())
    assert same(rollout_of(fresh), rollout_of(algorithm))
    for name in ("number", "coefficient", "stopped", "skipped_steps", "notes", "history"):
        assert getattr(fresh, name) == getattr(algorithm, name), name


# --- early stop


def test_a_policy_that_moved_far_skips_the_rest_of_the_batch(tmp_path: Path) -> None:
    algorithm = make(ppo_run(early_stop_kl=1e-6))
    seen = [tiny.weights(algorithm.module)]
    values: list[dict[str, float]] = []

    def advance(shown: dict[str, float]) -> None:
        seen.append(tiny.weights(algorithm.module))
        values.append(shown)

    rows = train(algorithm, tmp_path, advance)
    # the first step of a batch sees ratios of 1, the second sees that the policy moved; then nothing moves
    moved = [not before.equal(after) for before, after in zip(seen, seen[1:], strict=False)]
    assert moved == [True, True, False, False, False, False] * 2
    assert [row["step"] for row in rows] == [1, 2, 7, 8]
    assert ["loss" in shown for shown in values] == moved
    assert rows[0]["ppo/approx_kl"] < 1e-6 < rows[1]["ppo/approx_kl"]
    # skipped steps count for the schedule
    assert [row["train/lr"] for row in rows] == pytest.approx([0.01 * (1 - step / 12) for step in (0, 1, 6, 7)])
    assert algorithm.skipped_steps == algorithm.report()["ppo"]["skipped_steps"] == 8

    whole = make(ppo_run(early_stop_kl=1e-6))
    means = train(whole, tmp_path / "whole", log_every=6)
    assert [row["step"] for row in means] == [6, 12]
    for mean, pair in zip(means, (rows[:2], rows[2:]), strict=True):
        for key in ("train/loss", "ppo/ratio", "ppo/kl", "train/lr"):
            assert mean[key] == pytest.approx((pair[0][key] + pair[1][key]) / 2, rel=1e-6)


def test_a_policy_within_the_limit_skips_nothing(tmp_path: Path) -> None:
    algorithm = make(ppo_run(early_stop_kl=1e9))
    assert len(train(algorithm, tmp_path)) == 12
    assert algorithm.report()["ppo"]["skipped_steps"] == 0


def test_a_run_goes_on_among_skipped_steps(tmp_path: Path) -> None:
    # after the step that stopped it, among the skipped ones, at the end of the batch
    straight = same_after_a_crash(ppo_run(early_stop_kl=1e-6, target_kl=0.5), [3, 5, 7], tmp_path)
    assert straight.skipped_steps == 8
