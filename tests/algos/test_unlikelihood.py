"""Unlikelihood against its loss, a pair and a completion at a time."""

from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from imdb_rlhf.algos.preferences import PairBatch
from imdb_rlhf.algos.unlikelihood import Unlikelihood
from imdb_rlhf.config.algos import UnlikelihoodRun
from imdb_rlhf.data.pairs import Pairs
from tests import tiny

PAIRS = np.array([[0, 1], [2, 1], [0, 2], [4, 3], [5, 3], [5, 4]])


def make_groups() -> pd.DataFrame:
    random = np.random.default_rng(0)
    prompt_ids = [random.integers(1, 19, size=2 + row // 3).tolist() for row in range(6)]
    completion_ids = [random.integers(1, 19, size=1 + 2 * row % 7).tolist() for row in range(6)]
    ref_logprob = [-3.0 * len(ids) + random.normal() for ids in completion_ids]
    return pd.DataFrame({"prompt_ids": prompt_ids, "completion_ids": completion_ids, "ref_logprob": ref_logprob})


def make(lm: PreTrainedModel, alpha: float, temperature: float = 1.0) -> Unlikelihood:
    run = tiny.run(UnlikelihoodRun, alpha=alpha, generation=tiny.generation(temperature=temperature))
    return Unlikelihood(tiny.policy(lm), make_groups(), Pairs(PAIRS, PAIRS[:, 0] // 3, {}), run)


@pytest.mark.parametrize("limit", [None, 1, 4])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (1.0, 0.7), (0.0, 1.0)])
def test_the_loss_is_the_naive_one(alpha: float, temperature: float, limit: int | None) -> None:
    lm, groups = tiny.gpt2(1), make_groups()
    algorithm = make(lm, alpha, temperature)
    batch = cast(PairBatch, next(algorithm.batches(0)))
    assert batch.size == 6
    (whole,) = batch.parts(0, 1, None)
    assert len(whole.ref_logprob) == 6  # 12 indices, 6 completions
    losses = []
    for winner, loser in batch.pairs:
        best, worst = (
            tiny.completion_logprob(lm, groups["prompt_ids"][row], groups["completion_ids"][row], temperature)
            for row in (winner, loser)
        )
        losses.append(-best + alpha * worst)
    expected = torch.stack(losses).mean()
    expected.backward()
    expected_gradient = tiny.gradients(lm)
    loss, _ = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(lm) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_the_metrics_by_hand() -> None:
    lm, groups = tiny.gpt2(1), make_groups()
    with torch.no_grad():
        columns = (groups[name].tolist() for name in ("prompt_ids", "completion_ids", "ref_logprob"))
        ratio = np.array(
            [
                float(tiny.completion_logprob(lm, prompt_ids, completion_ids)) - ref_logprob
                for prompt_ids, completion_ids, ref_logprob in zip(*columns, strict=True)
            ]
        )
    best, worst = ratio[PAIRS[:, 0]], ratio[PAIRS[:, 1]]
    assert 0 < (best > worst).sum() < 6
    algorithm = make(lm, 0.5)
    _, metrics = tiny.run_batch(algorithm, next(algorithm.batches(0)), 4)
    assert metrics == pytest.approx(
        {
            "train/accuracy": (best > worst).mean(),
            "train/chosen_log_ratio": best.mean(),
            "train/rejected_log_ratio": worst.mean(),
        },
        abs=1e-5,
    )
