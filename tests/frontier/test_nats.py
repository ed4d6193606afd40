"""Where the nats go, in worlds whose optimum is known in closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.population import BestOf, Selector, Tilted
from imdb_rlhf.frontier.nats import inverse
from imdb_rlhf.runs.kinds import KINDS
from tests.frontier.test_measure import coin_kl, coin_reservoir, frontier_of, level

Write = Callable[..., Path]
PROMPTS = 40
GT = {"ppo.reward": "ground_truth", "ppo.scale": "reward"}


def parts(frontier: dict[str, Any], method: str, knob: float | None = None) -> dict[str, Any]:
    (entry,) = [e for e in frontier["nats"] if e["method"] == method and knob in (None, e["knob_value"])]
    return {part["name"]: part for part in entry["parts"]}


def test_the_parts_of_ppo_on_the_true_reward(write_run: Write) -> None:
    run = write_run("ppo", ("target_kl", 1.0), {5: (level(0.8), level(1.0))}, reservoir=coin_reservoir(), more=GT)
    found = parts(frontier_of(run), "PPO-GT")
    assert found["needed"]["nats"] == pytest.approx(coin_kl(0.8), abs=0.01)
    assert found["objective"]["nats"] == pytest.approx(0, abs=0.01)
    assert found["reward_model"]["nats"] == 0
    assert found["data"]["nats"] is None and "more data" in found["data"]["why"]
    assert found["optimisation"]["nats"] == pytest.approx(1 - coin_kl(0.8), abs=0.01)
    assert sum(part["nats"] or 0 for part in found.values()) == pytest.approx(1.0)
    low, high = found["needed"]["ci"]
    assert low - 1e-9 <= found["needed"]["nats"] <= high + 1e-9


def test_the_parts_of_ppo_on_a_learned_reward(write_run: Write) -> None:
    """Its score is the true reward for four fifths of the samples, and the other one for the rest."""
    reservoir = coin_reservoir()
    random = np.random.default_rng(0)
    learned = np.where(random.random(reservoir.shape) < 0.8, reservoir, 1 - reservoir)
    more = {"ppo.scale": "reward"}
    run = write_run(
        "ppo", ("target_kl", 1.0), {5: (level(0.7), level(1.0))}, reservoir=reservoir, learned=learned, more=more
    )
    found = parts(frontier_of(run), "PPO")
    # a score of 1 is right in 80 %: 0.7 is reached where the score is 1 with chance q, 0.8 q + 0.2 (1 - q) = 0.7
    q = 0.5 / 0.6
    assert found["objective"]["nats"] == pytest.approx(0, abs=0.01)
    assert found["reward_model"]["nats"] == pytest.approx(coin_kl(q) - coin_kl(0.7), abs=0.03)
    assert sum(part["nats"] or 0 for part in found.values()) == pytest.approx(1.0)


def test_what_has_no_optimum_says_so(write_run: Write) -> None:
    more = {"dpo": {"loss": "sigmoid", "label_smoothing": 0.0}}
    run = write_run("dpo", ("beta", 0.1), {5: (level(0.8), level(2.0))}, reservoir=coin_reservoir(), more=more)
    found = parts(frontier_of(run), "DPO")
    assert found["objective"]["nats"] is None and "infinite" in found["objective"]["why"]
    assert found["optimisation"]["nats"] == pytest.approx(2 - coin_kl(0.8), abs=0.01)


def test_more_data_is_read_at_equal_reward(write_run: Write) -> None:
    base = {"dpo": {"loss": "sigmoid", "label_smoothing": 0.0}, "data.prompts.train": 100}
    small, large = ({**base, "groups": {"k": k}} for k in (4, 16))
    runs = [write_run("dpo", ("beta", 0.1), {5: (level(0.8), level(2.0))}, reservoir=coin_reservoir(), more=small)]
    for beta, reward, kl in ((0.1, 0.9, 1.6), (0.5, 0.7, 0.6)):
        more = {5: (level(reward), level(kl))}
        runs.append(write_run("dpo", ("beta", beta), more, reservoir=coin_reservoir(), more=large, name=f"large{beta}"))
    frontier = frontier_of(*runs)
    found = parts(frontier, "DPO (k=4)")
    assert found["data"]["nats"] == pytest.approx(2 - 1.1, abs=0.02)  # halfway between the two settings with more data
    assert found["optimisation"]["nats"] == pytest.approx(1.1 - coin_kl(0.8), abs=0.02)
    assert parts(frontier, "DPO (k=16)", 0.1)["data"]["nats"] is None


def test_nothing_is_split_without_a_reservoir_or_without_kl(write_run: Write) -> None:
    assert frontier_of(write_run("dpo", ("beta", 0.1), {5: (level(0.8), level(2.0))}))["nats"] == []
    still = write_run("dpo", ("beta", 9.0), {5: (level(0.5), level(0.01))}, reservoir=coin_reservoir())
    assert frontier_of(still)["nats"] == []


def test_a_reward_beyond_the_known_optimum_is_not_split(write_run: Write) -> None:
    reservoir = np.tile(np.repeat([0.0, 0.5], 64), (PROMPTS, 1))
    run = write_run("ppo", ("target_kl", 9.0), {5: (level(0.9), level(9.0))}, reservoir=reservoir, more=GT)
    found = parts(frontier_of(run), "PPO-GT")
    assert all(part["nats"] is None for part in found.values())
    assert "ends below its reward" in found["needed"]["why"]


LEARNED, TRUE, LOGIT = (
    {"reward": reward, "scale": scale}
    for reward, scale in (("learned", "reward"), ("ground_truth", "reward"), ("ground_truth", "logit"))
)
ONLINE = {"labels": "bradley_terry", "kl_in": "reward", "scale_advantages": False}


@pytest.mark.parametrize("algo", ["reinforce", "rloo", "grpo", "online_dpo", "ppo", "guided"])
def test_what_maximises_a_reward_asks_for_the_tilted_reference(algo: str) -> None:
    section = "value" if algo == "guided" else algo
    kind: Any = ALGOS.get(algo) or KINDS[algo]
    asked = [kind.population({section: {**ONLINE, **values}}) for values in (LEARNED, TRUE, LOGIT)]
    assert asked == [Tilted(Selector(name)) for name in ("learned", "reward", "reward_logit")]


def test_what_else_is_known_of_losses() -> None:
    assert ALGOS["bon_sft"].population({"n": 4, "bon_sft": {"selector": "learned"}}) == BestOf(4, Selector.learned)
    assert "k3" in str(ALGOS["grpo"].population({"grpo": {**TRUE, **ONLINE, "kl_in": "loss"}}))
    assert "deviation" in str(ALGOS["grpo"].population({"grpo": {**TRUE, **ONLINE, "scale_advantages": True}}))
    assert "infinite" in str(ALGOS["online_dpo"].population({"online_dpo": {**TRUE, "labels": "deterministic"}}))
    assert "no closed form" in str(ALGOS["kto"].population({}))


def test_inverse() -> None:
    grid = np.array([0.0, 1.0, 2.0])
    curves = np.array([[0.0, 0.5, 0.6], [0.0, 0.5, 0.6], [0.3, 0.5, np.nan], [0.0, np.nan, np.nan]])
    rewards = np.array([0.25, 0.55, 0.2, 0.4])
    np.testing.assert_allclose(inverse(grid, curves, rewards), [0.5, 1.5, 0.0, np.inf])
