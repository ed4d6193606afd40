import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import bootstrap_mean
from imdb_rlhf.frontier.finished import read
from imdb_rlhf.frontier.measure import measure
from imdb_rlhf.frontier.world import BUDGETS, SCORE_KL

Write = Callable[..., Path]
PROMPTS = 40


def noisy(mean: float, seed: int, spread: float = 0.1) -> np.ndarray:
    """(prompts, 2) numbers around a mean."""
    values = np.random.default_rng(seed).normal(0, spread, (PROMPTS, 2))
    return mean + values - values.mean()


def level(mean: float) -> np.ndarray:
    return np.full((PROMPTS, 2), mean)


def frontier_of(*paths: Path) -> dict[str, Any]:
    runs, skipped = read(list(paths))
    return measure(runs, skipped)


def coin_reservoir() -> np.ndarray:
    """Half of all samples of each prompt have reward 1, the others 0: the optimum is known in closed form."""
    return np.tile(np.repeat([0.0, 1.0], 64), (PROMPTS, 1))


def test_a_reward_above_its_range_is_refused(write_run: Write) -> None:
    steps, small = {5: (level(0.05), level(1.0))}, {"reward_range": [0.0, 0.5]}
    run = write_run("dpo", ("beta", 0.1), steps, reservoir=coin_reservoir(), summary=small)
    with pytest.raises(RunError, match=r"^a sample of the reference has reward 1, and the range .* ends at 0.5; mend "):
        frontier_of(run)


def coin_kl(reward: float) -> float:
    """KL of a policy that gets reward 1 that often, from one that gets it half of the time."""
    terms = [p * np.log(2 * p) for p in (reward, 1 - reward) if p > 0]
    return float(sum(terms))


def test_points_have_the_intervals_of_the_bootstrap(write_run: Write) -> None:
    reward, kl = noisy(0.7, 1), noisy(1.0, 2)
    frontier = frontier_of(write_run("dpo", ("beta", 0.1), {5: (level(0.6), level(0.5)), 9: (reward, kl)}))
    first, last = frontier["points"]
    assert last["reward"] == pytest.approx(0.7)
    assert last["reward_ci"] == pytest.approx(bootstrap_mean(reward.mean(1), 400, 0.95, 0))
    assert last["kl_ci"] == pytest.approx(bootstrap_mean(kl.mean(1), 400, 0.95, 0))
    assert (first["step"], first["last"], last["step"], last["last"]) == (5, False, 9, True)
    assert first["reward_ci"] == pytest.approx([0.6, 0.6])
    assert frontier["reference"] == {"reward": 0.5, "reward_ci": pytest.approx([0.5, 0.5])}


def test_everything_is_json(write_run: Write) -> None:
    run = write_run("dpo", ("beta", 0.1), {5: (noisy(0.7, 1), noisy(1.0, 2))}, reservoir=coin_reservoir())
    frontier = frontier_of(run)
    assert json.loads(json.dumps(frontier, allow_nan=False)) == frontier


def test_checkpoints_are_chosen_on_validation_and_reported_on_test(write_run: Write) -> None:
    # validation says that the first checkpoint is the better one, test the opposite
    run = write_run(
        "dpo",
        ("beta", 0.1),
        {5: (level(0.6), level(1.0)), 9: (level(0.9), level(2.0))},
        validation={5: (level(0.9), level(1.0)), 9: (level(0.6), level(2.0))},
    )
    frontier = frontier_of(run)
    assert [point["chosen"] for point in frontier["points"]] == [True, False]
    at = {row["kl"]: row for row in frontier["methods"][0]["at_budget"]}
    assert at[1]["reward"] == pytest.approx(0.6)
    assert at[5]["reward"] == pytest.approx(0.6)
    assert [at[kl]["reached"] for kl in (1, 2, 5)] == [True, True, False]
    assert [at[kl]["mixed"] for kl in (0.5, 1, 2)] == [True, False, False]


def test_reward_at_budgets_by_hand(write_run: Write) -> None:
    run = write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(1.0)), 9: (level(0.8), level(2.0))})
    rewards = [row["reward"] for row in frontier_of(run)["methods"][0]["at_budget"]]
    assert rewards == pytest.approx([0.55, 0.6, 0.7, 0.8, 0.8, 0.8])


def test_optimum_score_and_efficiency_in_closed_form(write_run: Write) -> None:
    steps = {5: (level(0.7), level(0.5)), 9: (level(0.8), level(1.0))}
    frontier = frontier_of(write_run("dpo", ("beta", 0.1), steps, reservoir=coin_reservoir()))
    optimum = frontier["optimum"]
    for budget in (0.25, 0.5):
        at = optimum["kl"].index(budget)
        rewards = np.linspace(0.5, 1, 100001)
        exact = rewards[np.searchsorted([coin_kl(r) for r in rewards], budget)]
        assert optimum["lower"][at] <= exact + 1e-4
        assert optimum["upper"][at] >= exact - 1e-4
        assert optimum["upper"][at] - optimum["lower"][at] < 0.02
    low, high = frontier["points"][-1]["efficiency"]
    assert low == pytest.approx(coin_kl(0.8) / 1.0, abs=0.02)
    assert low <= high <= low + 0.05
    # the curve's area: to 0.7 at half a nat, to 0.8 at one, then level up to K
    own = (0.2 * 0.5 / 2 + 0.25 * 0.5 + 0.3 * (SCORE_KL - 1)) / SCORE_KL
    method = frontier["methods"][0]
    assert method["score_raw"] == pytest.approx(own)
    kl = np.linspace(0, SCORE_KL, 5001)
    table = np.linspace(0.5, 1, 5001)
    best = np.interp(kl, [coin_kl(r) for r in table], table) - 0.5
    assert method["score"][0] == pytest.approx(own / best.mean(), abs=0.01)
    assert method["score_ci"][0] <= method["score"][0] <= method["score"][1] <= method["score_ci"][1] + 1e-9


def test_best_of_n_is_the_reservoirs(write_run: Write) -> None:
    learned = np.random.default_rng(0).normal(size=(PROMPTS, 128))
    run = write_run("ppo", ("target_kl", 1), {5: (level(0.7), level(1.0))}, reservoir=coin_reservoir(), learned=learned)
    frontier = frontier_of(run)
    curve = frontier["best_of_n"]["ground_truth"]
    assert curve["n"] == list(range(1, 129))
    # the best of two different samples out of 64 zeros and 64 ones
    assert curve["reward"][:2] == pytest.approx([0.5, 1 - 63 / 127 / 2])
    assert curve["kl"][1] == pytest.approx(np.log(2) - 0.5)
    # a selector that knows nothing of the reward buys nothing
    blind = frontier["best_of_n"]["learned"]["reward"][3]
    assert blind == pytest.approx(0.5, abs=0.05)
    assert frontier["optimum"]["learned"]["reward"][0] == pytest.approx(0.5)


def test_the_largest_reservoir_serves(write_run: Write) -> None:
    steps = {5: (level(0.7), level(1.0))}
    small = write_run("dpo", ("beta", 0.1), steps, reservoir=coin_reservoir()[:, ::2])
    large = write_run("best_of_n", ("n", 4), steps, reservoir=coin_reservoir())
    frontier = frontier_of(small, large)
    assert frontier["optimum"]["samples"] == 128
    assert [method["name"] for method in frontier["methods"]] == ["DPO"]
    assert frontier["sources"] == [str(small), str(large)]


def test_what_no_policy_can_do_is_flagged(write_run: Write) -> None:
    possible = write_run("dpo", ("beta", 1), {5: (noisy(0.79, 1), level(0.2))}, reservoir=coin_reservoir())
    wrong = write_run("dpo", ("beta", 5), {5: (noisy(0.95, 2), level(0.2))})
    frontier = frontier_of(possible, wrong)
    assert [point["above_optimum"] for point in frontier["points"]] == [False, True]
    assert any(wrong.name in warning and "above the optimum" in warning for warning in frontier["warnings"])


def test_one_point_is_drawn_without_a_score(write_run: Write) -> None:
    frontier = frontier_of(write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(1.0))}, reservoir=coin_reservoir()))
    assert len(frontier["points"]) == 1
    assert frontier["methods"][0]["score"] is None
    assert frontier["methods"][0]["score_raw"] is None


def test_no_reservoir_no_optimum(write_run: Write) -> None:
    frontier = frontier_of(write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(1.0)), 9: (level(0.8), level(2.0))}))
    assert frontier["optimum"] is None
    assert frontier["best_of_n"] == {}
    assert frontier["methods"][0]["score"] is None
    assert frontier["methods"][0]["score_raw"] == pytest.approx((0.1 + 0.25 + 0.3 * 3) / 5)
    assert any("no optimum" in warning for warning in frontier["warnings"])


def test_paired_tests_where_both_methods_have_been(write_run: Write) -> None:
    noise = noisy(0.0, 3)
    better = write_run("dpo", ("beta", 0.1), {2: (0.6 + noise, level(0.4)), 5: (0.8 + noise, level(2.0))})
    other = 0.75 + noise + noisy(0, 4, 0.01)
    worse = write_run("unlikelihood", ("alpha", 1), {2: (other - 0.2, level(0.5)), 5: (other, level(1.2))})
    frontier = frontier_of(better, worse)
    assert [test["kl"] for test in frontier["tests"]] == [0.5, 1.0]
    test = frontier["tests"][-1]
    # both curves by hand at one nat: the corners are all points that gain on the reference
    first = 0.6 + 0.2 * (1 - 0.4) / 1.6
    second = 0.55 + 0.2 * (1 - 0.5) / 0.7
    line = 0.5 + 0.25 * 1 / 1.2  # 0.55 at half a nat is under the mixture of the reference and the last checkpoint
    assert second < line
    assert test["difference"] == pytest.approx(first - line)
    assert test["ci"][0] <= test["difference"] <= test["ci"][1] < 0
    assert test["p"] < 0.001
    assert all(test["p_adjusted"] >= test["p"] for test in frontier["tests"])


def test_equal_methods_do_not_differ(write_run: Write) -> None:
    first = write_run("dpo", ("beta", 0.1), {5: (noisy(0.8, 5, 0.3), level(2.0))})
    second = write_run("unlikelihood", ("alpha", 1), {5: (noisy(0.8, 6, 0.3), level(2.0))})
    assert all(test["p_adjusted"] > 0.5 for test in frontier_of(first, second)["tests"])


def test_seeds_are_averaged_and_widen_the_interval(write_run: Write) -> None:
    rewards = [0.6, 0.7, 0.8]
    runs = [
        write_run("dpo", ("beta", 0.1), {5: (level(reward), level(1.0))}, seed=seed)
        for seed, reward in enumerate(rewards)
    ]
    frontier = frontier_of(*runs)
    (setting,) = frontier["methods"][0]["settings"]
    assert setting["reward"] == pytest.approx(0.7)
    assert setting["seeds"] == [0, 1, 2]
    # t with two degrees of freedom, 4.3027; no noise of prompts; standard error 0.1 / sqrt(3)
    assert setting["reward_ci"] == pytest.approx([0.7 - 4.3027 * 0.1 / 3**0.5, 0.7 + 4.3027 * 0.1 / 3**0.5], abs=1e-4)
    at_one = next(row for row in frontier["methods"][0]["at_budget"] if row["kl"] == 1)
    assert at_one["reward"] == pytest.approx(0.7)


def test_diverged_runs(write_run: Write) -> None:
    fine = [write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(1.0))}, seed=seed) for seed in (0, 1)]
    far = write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(9.0))}, seed=2)
    worse = write_run("dpo", ("beta", 1), {5: (noisy(0.3, 1), level(1.0))})
    frontier = frontier_of(*fine, far, worse)
    assert sorted(frontier["methods"][0]["diverged"]) == sorted([far.name, worse.name])


def test_a_setting_evaluated_twice_is_no_second_seed(write_run: Write) -> None:
    steps = {5: (level(0.7), level(1.0))}
    first = write_run("dpo", ("beta", 0.1), steps)
    second = write_run("dpo", ("beta", 0.1), steps, more={"evaluation.every": 2}, name="dpo-again")
    frontier = frontier_of(first, second)
    assert [run["name"] for run in frontier["runs"]] == ["dpo-again"]
    assert frontier["skipped"][0]["path"] == str(first)


def test_the_widest_confidence_of_all_runs_whatever_their_order(write_run: Write) -> None:
    steps = {5: (noisy(0.7, 1), noisy(1.0, 2))}
    first = write_run("dpo", ("beta", 0.1), steps)
    second = write_run("dpo", ("beta", 1), steps, more={"evaluation.confidence": 0.5, "evaluation.bootstrap": 100})
    one, other = frontier_of(first, second), frontier_of(second, first)
    assert one["confidence"] == other["confidence"] == 0.95
    assert [point["kl_ci"] for point in one["points"]] == [point["kl_ci"] for point in other["points"]]
    assert any("evaluation.confidence" in warning for warning in one["warnings"])


def test_missed_targets_are_said(write_run: Write) -> None:
    run = write_run("ppo", ("target_kl", 3), {5: (level(0.7), level(1.0))}, summary={"ppo": {"on_target": False}})
    assert any("off its target" in warning and run.name in warning for warning in frontier_of(run)["warnings"])


def test_a_target_is_met_within_10_percent_whatever_the_run_said(write_run: Write) -> None:
    """By its numbers, and grouped by their reasons."""
    kls, why = {1: 1.09, 2: 2.3, 3: 3.4, 6: 2.0}, {3: "a reason", 6: "a reason"}
    runs = [
        write_run(
            "ppo",
            ("target_kl", target),
            {5: (level(0.7), level(1.0))},
            summary={
                "ppo": {"target_kl": target, "kl_last_fifth": kl, "on_target": True, "missed_because": why.get(target)}
            },
            name=f"run{target}",
        )
        for target, kl in kls.items()
    ]
    frontier = frontier_of(*runs)
    assert [run["missed_target"] for run in frontier["runs"]] == [False, True, True, True]
    off = [warning for warning in frontier["warnings"] if "off its target" in warning]
    assert off == [
        "KL of the last fifth of training more than 10 % off its target in run2",
        "KL of the last fifth of training more than 10 % off its target in run3, run6 (a reason)",
    ]


def test_nothing_to_draw(write_run: Write) -> None:
    run = write_run("reward_model", None, {5: (level(0.7), level(1.0))})
    with pytest.raises(RunError, match="none of the runs has a policy"):
        frontier_of(run)


def test_budgets_ascend() -> None:
    assert list(BUDGETS) == sorted(BUDGETS)
    assert SCORE_KL in BUDGETS
