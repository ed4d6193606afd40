"""Batches of pairs and rankings by hand; what an artifact's pairs are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.preferences import Completions, PairBatch, RankingBatch, describe
from imdb_rlhf.config.algos import DPOConfig, DPOLoss
from imdb_rlhf.config.stages import Labels, Order, PairsConfig, Ties
from imdb_rlhf.data.pairs import Pairs, load_pairs
from imdb_rlhf.data.rankings import Rankings
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.policy import Policy
from tests.tiny import FixedInputs


def config(**changes: Any) -> PairsConfig:
    values = {"labels": Labels.deterministic, "tau": None, "noise": None, "min_margin": 0.0}
    return PairsConfig(**{**values, "ties": Ties.drop, "order": Order.prefix, **changes})


def table(prompts: int) -> pd.DataFrame:
    """Groups of 4, each completion of other tokens and another length; log-probs are minus the row."""
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
                (-part.ref_logprob[ranking[there]]).tolist()
                for ranking, there in zip(part.rankings, part.mask, strict=True)
            ]
    assert seen == [row[there].tolist() for row, there in zip(rows, mask, strict=True)]


# --- the artifact


def test_pairs_are_drawn_or_those_of_a_preference_file(tmp_path: Path) -> None:
    table(10).to_parquet(tmp_path / "groups.parquet")
    groups, drawn = load_pairs(tmp_path, config(), 0)
    assert len(groups) == 40
    assert len(drawn.rows) == 60
    np.savez(tmp_path / "pairs.npz", rows=np.array([[3, 0], [4, 5]]), prompts=np.array([0, 1]))
    (tmp_path / "report.json").write_text('{"dropped": {"empty": 3, "same completion": 0}}')
    _, brought = load_pairs(tmp_path, config(), 0)
    assert brought.rows.tolist() == [[3, 0], [4, 5]]
    assert describe(brought, 1) == "2 pairs, 1 steps; left out: 3 empty"
    _, flipped = load_pairs(tmp_path, config(labels=Labels.noisy, noise=1.0), 0)
    assert flipped.rows.tolist() == [[0, 3], [5, 4]]
    table(10).assign(ref_logprob=np.nan).to_parquet(tmp_path / "groups.parquet")
    with pytest.raises(RunError, match="not finite"):
        load_pairs(tmp_path, config(), 0)


def test_what_is_left_out_is_told() -> None:
    rows, prompts = np.zeros((5, 2), dtype=np.int64), np.arange(5)
    assert describe(Pairs(rows, prompts, {"equal rewards": 0}), 7) == "5 pairs, 7 steps"
    rankings = Rankings(rows, rows == 0, prompts, {"equal rewards": 4, "ranking of one": 1})
    assert describe(rankings, 2) == "5 rankings, 2 steps; left out: 4 equal rewards, 1 ranking of one"


# --- every method


@pytest.mark.parametrize("name", ["dpo", "unlikelihood", "preferred_ft"])
def test_every_method_is_made_from_inputs_and_read_by_step(name: str, tmp_path: Path) -> None:
    table(3).to_parquet(tmp_path / "groups.parquet")
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=19, n_positions=16, n_embd=8, n_layer=1, n_head=1, resid_pdrop=0.5))
    policy = Policy(lm.requires_grad_(False).train(), cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0)))
    run = SimpleNamespace(
        seed=0,
        beta=0.1,
        alpha=0.5,
        generation=SimpleNamespace(temperature=1.0),
        policy=SimpleNamespace(batch_size=4, epochs=1.0, steps=None),
        pairs=config(),
        dpo=DPOConfig(DPOLoss.sigmoid, 0.0, False),
    )
    algorithm = ALGOS[name].from_inputs(
        cast(FixedInputs, SimpleNamespace(policy=policy, groups=tmp_path)), cast(Any, run)
    )
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
