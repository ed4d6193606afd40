"""Preferred-FT against the likelihood of the pairs' winners, one at a time."""

from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from imdb_rlhf.algos.preferred_ft import PreferredFT, WinnerBatch
from imdb_rlhf.config.algos import PreferredFTRun
from imdb_rlhf.config.stages import Order
from imdb_rlhf.data.pairs import Pairs, shuffled
from tests import tiny

# 0 wins three times, 2 twice, 1 once; 7 wins twice
PAIRS = np.array([[0, 1], [0, 2], [0, 3], [2, 1], [2, 3], [1, 3], [7, 4], [7, 5]])


def make_groups() -> pd.DataFrame:
    random = np.random.default_rng(0)
    prompt_ids = [random.integers(1, 19, size=2 + row // 4).tolist() for row in range(8)]
    completion_ids = [random.integers(1, 19, size=1 + row).tolist() for row in range(8)]
    ref_logprob = [-3.0 * len(ids) + random.normal() for ids in completion_ids]
    return pd.DataFrame({"prompt_ids": prompt_ids, "completion_ids": completion_ids, "ref_logprob": ref_logprob})


def make(lm: PreTrainedModel, temperature: float = 1.0, batch_size: int = 8) -> PreferredFT:
    run = tiny.run(
        PreferredFTRun,
        generation=tiny.generation(temperature=temperature),
        policy=tiny.steps(batch_size=batch_size, epochs=2.0),
        pairs=tiny.pairs(order=Order.shuffled),
    )
    return PreferredFT(tiny.policy(lm), make_groups(), Pairs(PAIRS, PAIRS[:, 0] // 4, {}), run)


@pytest.mark.parametrize(("world", "limit"), [(1, None), (1, 3), (2, None), (2, 1)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_is_the_mean_over_the_tokens_of_all_winners(temperature: float, world: int, limit: int | None) -> None:
    lm, groups = tiny.gpt2(1), make_groups()
    algorithm = make(lm, temperature)
    batch = cast(WinnerBatch, next(algorithm.batches(0)))
    winners = [0, 0, 0, 2, 2, 1, 7, 7]
    assert sorted(batch.winners.tolist()) == sorted(winners)
    logprobs = [
        tiny.completion_logprob(lm, groups["prompt_ids"][row], groups["completion_ids"][row], temperature)
        for row in winners
    ]
    tokens = 1 + 1 + 1 + 3 + 3 + 2 + 8 + 8  # row i has i + 1
    expected = -torch.stack(logprobs).sum() / tokens
    expected.backward()
    expected_gradient = tiny.gradients(lm)

    assert batch.size == tokens
    total = ratio = 0.0
    for rank in range(world):
        for part in batch.parts(rank, world, limit):
            loss, metrics = algorithm.loss(algorithm.module, part)
            (loss / batch.size).backward()
            total += float(loss.detach()) / batch.size
            assert metrics.keys() == {"train/chosen_log_ratio"}
            ratio += float(metrics["train/chosen_log_ratio"]) / batch.size  # as the loop divides it
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(lm) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    ref_logprobs = groups["ref_logprob"][winners].to_numpy()
    log_ratios = np.array([float(logprob.detach()) for logprob in logprobs]) - ref_logprobs
    assert ratio == pytest.approx(log_ratios.mean(), abs=1e-4)  # over examples, not tokens


def test_a_part_has_each_winner_once() -> None:
    batch = make(tiny.gpt2(1)).batch(np.array([7, 0, 1, 6, 3]))
    assert batch.winners.tolist() == [7, 0, 0, 7, 2]
    (part,) = batch.parts(0, 1, None)
    assert (part.rows.lengths - part.rows.starts).tolist() == [1, 3, 8]
    assert part.counts.tolist() == [2, 1, 2]
    assert part.mean_tokens == (8 + 1 + 1 + 8 + 3) / 5
    pieces = batch.parts(0, 1, 2)
    assert [piece.counts.tolist() for piece in pieces] == [[1, 1], [1, 1], [1]]
    assert {piece.mean_tokens for piece in pieces} == {part.mean_tokens}


def test_examples_come_in_the_order_of_the_pairs() -> None:
    algorithm = make(tiny.gpt2(1), batch_size=4)
    assert algorithm.steps == 4
    every = [cast(WinnerBatch, batch).winners.tolist() for batch in algorithm.batches(0)]
    drawn = Pairs(PAIRS, PAIRS[:, 0] // 4, {})
    for epoch in (0, 1):
        order = shuffled(drawn, Order.shuffled, 0, epoch)
        assert every[2 * epoch] + every[2 * epoch + 1] == PAIRS[order, 0].tolist()
