"""Batches of pairs and rankings by hand, and what every method that learns from them does."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.preferences import Completions, PairBatch, RankingBatch, describe
from imdb_rlhf.config.algos import DPORun, PreferredFTRun, UnlikelihoodRun
from imdb_rlhf.config.families import PreferenceRun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.rankings import Rankings
from tests import tiny


def table(prompts: int) -> pd.DataFrame:
    """Groups of 4 completions that differ in tokens and length; the log-prob of row i is -i."""
    rows = [
        {
            "prompt_id": row // 4,
            "sample_id": row % 4,
            "prompt_ids": [1, 2, 3][: 1 + row // 4 % 3],
            "completion_ids": [4 + row] * (1 + row % 4),
            "reward_logit": float(row % 4),
            "ref_logprob": -float(row),
        }
        for row in range(4 * prompts)
    ]
    return pd.DataFrame(rows).assign(reward=0.0, prompt="", completion="", finished=True)


def tokens_of(part: Any) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(part.rows.ids, part.rows.lengths, strict=True)]


# --- batches


def test_a_part_has_each_completion_once() -> None:
    batch = PairBatch(Completions(table(3)), np.array([[5, 2], [2, 9], [5, 9]]))
    assert batch.size == 3
    (part,) = batch.parts(0, 1, None)
    assert part.pairs.tolist() == [[1, 0], [0, 2], [1, 2]]
    assert part.ref_logprob.tolist() == [-2, -5, -9]
    assert part.rows.starts.tolist() == [1, 2, 3]
    assert tokens_of(part) == [[1, 6, 6, 6], [1, 2, 9, 9], [1, 2, 3, 13, 13]]


def test_padding_of_a_ranking_adds_no_completion() -> None:
    mask = np.array([[True, True, True], [True, True, False]])
    batch = RankingBatch(Completions(table(2)), np.array([[3, 0, 1], [6, 4, 6]]), mask)
    assert batch.size == 2
    (part,) = batch.parts(0, 1, None)
    assert part.ref_logprob.tolist() == [0, -1, -3, -4, -6]
    assert part.rankings.tolist() == [[2, 0, 1], [4, 3, 4]]
    assert part.mask.tolist() == mask.tolist()
    assert tokens_of(part) == [[1, 4], [1, 5, 5], [1, 7, 7, 7, 7], [1, 2, 8], [1, 2, 10, 10, 10]]


def test_processes_and_pieces_share_a_batch_of_rankings() -> None:
    completions = Completions(table(8))
    rows = np.arange(32).reshape(8, 4)
    mask = np.arange(4) < np.array([2, 3, 4, 2, 3, 4, 2, 3])[:, None]
    batch = RankingBatch(completions, rows, mask)
    seen = []
    for rank in (0, 1):
        parts = batch.parts(rank, 2, 3)
        assert [len(part.rankings) for part in parts] == [3, 1]
        for part in parts:
            assert part.mask.shape == part.rankings.shape
            seen += [
                (-part.ref_logprob[ranking[mask]]).tolist()
                for ranking, mask in zip(part.rankings, part.mask, strict=True)
            ]
    assert seen == [row[ranked].tolist() for row, ranked in zip(rows, mask, strict=True)]


# --- the summary line


def test_what_is_left_out_is_told() -> None:
    rows, prompts = np.zeros((5, 2), dtype=np.int64), np.arange(5)
    assert describe(Pairs(rows, prompts, {"equal rewards": 0}), 7) == "5 pairs, 7 steps"
    rankings = Rankings(rows, rows == 0, prompts, {"equal rewards": 4, "ranking of one": 1})
    assert describe(rankings, 2) == "5 rankings, 2 steps; left out: 4 equal rewards, 1 ranking of one"


# --- every method


@pytest.mark.parametrize(
    ("name", "kind"), [("dpo", DPORun), ("unlikelihood", UnlikelihoodRun), ("preferred_ft", PreferredFTRun)]
)
def test_every_method_is_made_from_inputs_and_read_by_step(
    name: str, kind: type[PreferenceRun], tmp_path: Path
) -> None:
    table(3).to_parquet(tmp_path / "groups.parquet")
    lm = tiny.gpt2(width=8, layers=1, heads=1, dropout=0.5).requires_grad_(False).train()
    inputs = tiny.FixedInputs(tiny.policy(lm), tiny.gpt2(), tiny.runtime(), groups=tmp_path)
    algorithm = ALGOS[name].from_inputs(inputs, tiny.run(kind, policy=tiny.steps(batch_size=4)))
    assert algorithm.stage == name
    assert algorithm.summary_line() == "18 pairs, 5 steps"
    assert not algorithm.module.training  # no dropout
    assert all(parameter.requires_grad for parameter in algorithm.module.parameters())
    assert (algorithm.state(), algorithm.report()) == ({}, {})
    losses = []
    for first in (0, 3):
        batches = list(algorithm.batches(first))
        assert len(batches) == 5 - first
        assert batches[-1].notes == {}
        (part,) = batches[-1].parts(0, 1, None)
        losses.append(algorithm.loss(algorithm.module, part))
    assert losses[0][0].item() == losses[1][0].item()
    assert all(key.startswith("train/") for key in losses[0][1])
    losses[0][0].backward()
    assert all(parameter.grad is not None for parameter in algorithm.module.parameters())
