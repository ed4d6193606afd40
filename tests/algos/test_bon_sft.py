"""Best-of-N distillation against its loss, a completion at a time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imdb_rlhf.algos.bon_sft import BonSFT
from imdb_rlhf.config.preference_algos import BonSFTConfig, BonSFTRun
from imdb_rlhf.config.reward import RewardSource
from tests import tiny
from tests.algos.test_unlikelihood import make_groups
from tests.command import refusal, run_of

SCORES = np.array([0.0, 2.0, 1.0, 5.0, 5.0, 3.0])
# the chance to be the best of 2 of each group of 3
BEST_OF_2 = [0, 2 / 3, 1 / 3, 1 / 2, 1 / 2, 0]


def table() -> pd.DataFrame:
    return make_groups().assign(prompt_id=np.arange(6) // 3)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize(("n", "weights"), [(2, BEST_OF_2), (3, [0, 1, 0, 1 / 2, 1 / 2, 0])])
def test_the_loss_is_the_naive_one(n: int, weights: list[float], limit: int | None) -> None:
    lm, groups = tiny.gpt2(1), table()
    run = tiny.run(BonSFTRun, n=n, groups=tiny.groups(k=3), policy=tiny.steps(batch_size=2))
    algorithm = BonSFT(tiny.policy(lm), groups, SCORES, run)
    assert algorithm.summary_line() == f"the best of {n} of 2 groups, 1 steps"
    batch = next(algorithm.batches(0))
    terms, ratios, tokens = [], [], 0.0
    for row, weight in enumerate(weights):
        logprob = tiny.completion_logprob(lm, groups["prompt_ids"][row], groups["completion_ids"][row])
        terms.append(-weight * logprob)
        ratios.append(weight * (float(logprob.detach()) - groups["ref_logprob"][row]))
        tokens += weight * len(groups["completion_ids"][row])
    expected = torch.stack(terms).sum() / tokens
    expected.backward()
    gradient = tiny.gradients(lm)
    assert batch.size == pytest.approx(tokens)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(lm) - gradient).norm() < 1e-4 * gradient.norm()
    assert metrics == {"train/chosen_log_ratio": pytest.approx(sum(ratios) / 2, abs=1e-4)}


@pytest.mark.parametrize("selector", RewardSource)
def test_it_is_made_from_inputs(selector: RewardSource, tmp_path: Path) -> None:
    table().assign(reward_logit=-SCORES).to_parquet(tmp_path / "groups.parquet")
    inputs = tiny.FixedInputs(
        tiny.policy(tiny.gpt2()), tiny.gpt2(), tiny.runtime(), tmp_path, scores=lambda prompts, completions: SCORES
    )
    run = tiny.run(
        BonSFTRun, n=3, groups=tiny.groups(k=3), bon_sft=BonSFTConfig(selector), policy=tiny.steps(batch_size=2)
    )
    algorithm = BonSFT.from_inputs(inputs, run)
    wanted = [[0, 1, 0], [0.5, 0.5, 0]] if selector == RewardSource.learned else [[1, 0, 0], [0, 0, 1]]
    assert algorithm.weights.tolist() == wanted


def test_keys() -> None:
    run = run_of("algo=bon_sft")
    assert (run.knob, run.variant, run.uses_learned_reward) == (("n", 4), "learned", True)
    true = run_of("algo=bon_sft", "n=2", "bon_sft.selector=ground_truth")
    assert (true.knob, true.uses_learned_reward, true.uses_groups) == (("n", 2), False, True)
    assert refusal("algo=bon_sft", "n=5").startswith("n=5 is above groups.k=4")
    assert refusal("algo=bon_sft", "data.preferences=pairs.parquet").startswith("algo=bon_sft chooses from groups")


def test_names() -> None:
    assert BonSFT.method_name({}, "learned") == "BoN-SFT"
    assert BonSFT.method_name({}, "ground_truth") == "BoN-SFT-GT"
