"""KTO: its reference point by hand, the batch's loss, and processes that share the estimate."""

import math
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from imdb_rlhf.algos.kto import KTO, mismatched
from imdb_rlhf.config.preference_algos import KTOConfig, KTORun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.models.logprobs import Rows
from tests import tiny
from tests.algos.test_unlikelihood import PAIRS, make_groups

A, B, C = [1, 2], [3], [4, 5, 6]


def test_where_all_prompts_differ_each_has_the_completion_before_its_own() -> None:
    rows = mismatched(np.array([4, 7, 9]), [A] * 5 + [B] * 3 + [C] * 3)
    assert rows.tolist() == [[7, 4], [9, 7], [4, 9]]  # prompt and completion


def test_the_completions_of_a_group_move_to_the_next_group() -> None:
    assert mismatched(np.arange(4), [A, A, B, B]).tolist() == [[2, 0], [3, 1], [0, 2], [1, 3]]


def test_a_completion_that_stays_under_a_prompt_of_its_own_tokens_is_left_out() -> None:
    # two groups of one prompt, and one of another: no shift separates all
    assert mismatched(np.arange(3), [A, A, B]).tolist() == [[2, 1], [0, 2]]


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_one_prompt_has_no_mismatch(rows: list[int]) -> None:
    assert mismatched(np.array(rows), [A, A]).shape == (0, 2)


def two_groups() -> pd.DataFrame:
    """Rows 0 to 2 and 3 to 5 share a prompt."""
    groups = make_groups()
    return groups.assign(prompt_ids=[groups["prompt_ids"][3 * (row // 3)] for row in range(6)])


def make(runtime: Any = None, pairs: np.ndarray = PAIRS, **changes: Any) -> KTO:
    groups, reference = two_groups(), tiny.gpt2(0)
    run = tiny.run(KTORun, **{"beta": 0.2, "kto": KTOConfig(1.4, 0.6), **changes})
    drawn = Pairs(pairs, np.arange(len(pairs)), {})
    policy = tiny.policy(tiny.gpt2(1))
    return KTO(policy, reference, groups, drawn, run, runtime or tiny.runtime())


def estimate(algorithm: KTO) -> float:
    """The mean log-ratio of rows 0 to 5, two groups of 3, each completion under the other group's prompt."""
    groups, ratios = two_groups(), []
    for row in range(6):
        prompt, completion = groups["prompt_ids"][(row + 3) % 6], groups["completion_ids"][row]
        policy, reference = (
            float(tiny.completion_logprob(lm, prompt, completion).detach())
            for lm in (algorithm.module.lm, algorithm.reference.lm)
        )
        ratios.append(policy - reference)
    return math.fsum(ratios) / 6


def test_the_reference_point_and_the_loss_by_hand() -> None:
    algorithm = make()
    batch = next(algorithm.batches(0))
    mean = estimate(algorithm)
    assert abs(mean) > 0.05
    assert batch.notes == {"train/kl_estimate": batch.kl}
    assert batch.kl == pytest.approx(max(0.0, mean), abs=1e-5)
    groups, lm = two_groups(), cast(PreTrainedModel, algorithm.module.lm)
    ratios: dict[bool, list[float]] = {True: [], False: []}
    losses = []
    for pair in batch.pairs:
        for row, wins in zip(pair, (True, False), strict=True):
            logprob = tiny.completion_logprob(lm, groups["prompt_ids"][row], groups["completion_ids"][row])
            ratio = logprob - groups["ref_logprob"][row]
            gain = 0.2 * (ratio - batch.kl)
            losses.append(1.4 / (1 + torch.exp(gain)) if wins else 0.6 / (1 + torch.exp(-gain)))
            ratios[wins].append(float(ratio.detach()))
    expected = torch.stack(losses).mean()
    expected.backward()
    gradient = tiny.gradients(lm)
    assert batch.size == len(losses) == 12
    for limit in (None, 1, 4):
        loss, metrics = tiny.run_batch(algorithm, batch, limit)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert (tiny.gradients(lm) - gradient).norm() < 1e-4 * gradient.norm()
        assert metrics["train/chosen_log_ratio"] == pytest.approx(np.mean(ratios[True]), abs=1e-4)
        assert metrics["train/rejected_log_ratio"] == pytest.approx(np.mean(ratios[False]), abs=1e-4)
        better = np.array(ratios[True]) > np.array(ratios[False])
        assert metrics["train/accuracy"] == pytest.approx(better.mean())


def test_the_reference_point_is_that_of_the_policy_at_the_step() -> None:
    """The other way round it is the negative, or 0."""
    algorithm = make()
    batches = algorithm.batches(0)
    first = next(batches).kl
    with torch.no_grad():
        for mine, other in zip(algorithm.module.parameters(), algorithm.reference.parameters(), strict=True):
            mine.copy_(other)
    assert algorithm.kl_estimate(PAIRS) == 0  # the policy is the reference
    reverse = make()
    reverse.module, reverse.reference = reverse.reference, reverse.module
    assert max(first, reverse.kl_estimate(PAIRS)) == pytest.approx(abs(estimate(make())), abs=1e-5)
    assert min(first, reverse.kl_estimate(PAIRS)) == 0


class Rank:
    """One of several processes, whose gathering is the test's."""

    def __init__(self, rank: int, world: int, gathered: list[float]) -> None:
        self.rank, self.world, self.gathered = rank, world, gathered
        self.device, self.autocast = torch.device("cpu"), tiny.runtime().autocast

    def gather(self, values: list[float]) -> list[float]:
        self.gathered += values
        return self.gathered


def test_processes_share_the_estimate() -> None:
    whole = [make(), make()]
    whole[1].module, whole[1].reference = whole[1].reference, whole[1].module
    for swapped, one in enumerate(whole):
        gathered: list[float] = []
        for rank in range(4):  # 6 completions: shares of 2, 2, 1, 1
            part = make(Rank(rank, 4, gathered))
            if swapped:
                part.module, part.reference = part.reference, part.module
            last = part.kl_estimate(PAIRS)
        assert len(gathered) == 6
        assert last == pytest.approx(one.kl_estimate(PAIRS), abs=1e-6)


def test_a_row_that_is_longer_than_the_context_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make()
    algorithm.context = 6
    groups = two_groups()
    lengths = [len(groups["prompt_ids"][(row + 3) % 6]) + len(groups["completion_ids"][row]) for row in range(6)]
    assert 0 < sum(length > 6 for length in lengths) < 6
    seen: list[int] = []

    def score(rows: Rows) -> list[float]:
        seen.extend(rows.lengths.tolist())
        return [0.0] * len(rows.lengths)

    monkeypatch.setattr(algorithm, "_log_ratios", score)
    algorithm.kl_estimate(PAIRS)
    assert sorted(seen) == sorted(length for length in lengths if length <= 6)
