"""Model operations against torch's count and counts written out; amounts of the paper's configuration."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.operations import Finished, Planned, Sizes, Work, forward, of_stage
from benchmarks.runs import runs_of

MODEL = {"layers": 1, "width": 4, "vocabulary": 10}
SIZES = Sizes(**MODEL)
PAIRS = {"labels": "deterministic", "tau": None, "noise": None, "min_margin": 0.0, "ties": "drop", "order": "prefix"}


def read(tokens: int, logits: int) -> int:
    """Operations of a row: the layer's weights, every token with every token, the output layer."""
    return tokens * 2 * 12 * 4**2 + 4 * 4 * tokens**2 + logits * 2 * 4 * 10


# a completion of 2 tokens after a prompt of 3: drawn, scored, read by a scalar head
DRAWN, SCORED, BARE = read(4, 2), read(5, 2), read(5, 0)


@pytest.mark.parametrize(("rows", "tokens", "logits"), [(1, 1, 1), (5, 32, 32), (3, 9, 4)])
def test_a_pass_is_what_torch_counts(rows: int, tokens: int, logits: int) -> None:
    config = GPT2Config(vocab_size=101, n_positions=32, n_embd=24, n_layer=3, n_head=4)
    config._attn_implementation = "eager"
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 101
    counts = []
    for train in (False, True):
        with FlopCounterMode(display=False) as counter:
            output = GPT2LMHeadModel(config)(input_ids=ids, logits_to_keep=logits, use_cache=False).logits
            if train:
                output.sum().backward()
        counts.append(counter.get_total_flops())
    expected = forward(Sizes(3, 24, 101), [tokens] * rows, [logits] * rows).sum()
    assert counts == [expected, 3 * expected]


def table(*rows: tuple[int, int], **columns: Any) -> pd.DataFrame:
    """Prompts and completions of these lengths; the first token tells completions of one length apart."""
    completions = [[n, *[1] * (length - 1)] for n, (_, length) in enumerate(rows)]
    ids = {"prompt_ids": [[1] * length for length, _ in rows], "completion_ids": completions}
    return pd.DataFrame({"split": "test", "prompt_id": range(len(rows)), **ids} | columns)


@pytest.fixture
def run(tmp_path: Path) -> Finished:
    folders = {name: tmp_path / name for name in ("data", "sft", "groups", "reference", "reservoir")}
    for folder in folders.values():
        folder.mkdir()
    lengths = np.array([3] * 10 + [7] * 10)
    np.savez(folders["data"] / "sft.npz", ids=np.zeros(int(lengths.sum()), dtype=np.int32), lengths=lengths)
    prompts = {"split": ["train", "train", "test"], "prompt_id": [0, 1, 0], "ids": [[1, 1], [1] * 4, [1] * 9]}
    pd.DataFrame(prompts).to_parquet(folders["data"] / "prompts.parquet")
    table((2, 3), (4, 1)).to_parquet(folders["reference"] / "evaluation.parquet")
    table(*[(2, 3)] * 6).to_parquet(folders["reservoir"] / "reservoir.parquet")
    logits = {"prompt_id": [0, 0, 0, 1, 1], "reward_logit": [0.0, 1.0, 2.0, 0.0, 1.0], "ref_logprob": 0.0}
    table((2, 1), (2, 2), (2, 3), (3, 1), (3, 1), **logits).to_parquet(folders["groups"] / "groups.parquet")
    points = {"split": "test", "prompt_id": [1, 1], "length": [2, 3]}  # its prompt has 4 tokens
    pd.DataFrame(points).to_parquet(tmp_path / "evaluations.parquet")
    ppo = {"value": "own", "reward": "ground_truth", "minibatch_size": 2, "epochs": 4}
    config = {"algo": "dpo", "seed": 0, "model": MODEL, "data": {}, "pairs": PAIRS, "policy": {"batch_size": 4}}
    config |= {"sft": {"batch_size": 4, "epochs": 1.0}, "ppo": ppo}
    metrics = [{"step": 4, "ppo/length": 4.0}, {"step": 8, "ppo/length": 6.0}]
    return Finished(config, tmp_path, folders, metrics)


# 3 pairs of the first prompt and 1 of the second: a batch of 4 has all 5 completions. The winners are the longest of
# the first prompt, twice, its second, and the second's second. PPO's prompts have 3 tokens on average, completions 5:
# 8 steps of 2 episodes are 16 passes over 4 episodes.
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # two rows are held out; of the others 8 have 3 tokens and 10 have 7; 5 batches of 4
        ("sft", 3 * 20 * (8 * read(3, 2) + 10 * read(7, 6)) / 18 + 2 * read(3, 2)),
        ("reservoir", 6 * (read(4, 3) + read(5, 3))),
        ("reference", read(4, 3) + read(4, 1) + 2 * (read(5, 3) + read(5, 1))),
        ("dpo: evaluations", read(5, 2) + read(6, 3) + 2 * (read(6, 2) + read(7, 3))),
        ("dpo: training", 3 * 8 * (read(3, 1) + read(4, 2) + read(5, 3) + 2 * read(4, 1))),
        ("preferred_ft: training", 3 * 8 * (read(4, 2) + read(5, 3) + read(4, 1))),
        ("ppo: training", 16 * 3 * (read(8, 5) + read(8, 0)) + 4 * (read(7, 5) + 2 * read(8, 5) + read(8, 0))),
        ("data", None),
    ],
)
def test_a_finished_run_by_hand(run: Finished, stage: str, expected: float | None) -> None:
    operations = of_stage(stage, run, SIZES).operations
    assert operations is None if expected is None else operations == pytest.approx(expected, rel=1e-12)


def test_sizes_are_the_references_own(run: Finished) -> None:
    assert run.sizes == SIZES
    (run.folders["sft"] / "model").mkdir()
    for config, sizes in (({"n_layer": 2, "n_embd": 8, "vocab_size": 11}, Sizes(2, 8, 11)), ({"hidden_size": 8}, None)):
        (run.folders["sft"] / "model" / "config.json").write_text(json.dumps(config))
        assert run.sizes == sizes


def planned(*words: str) -> Planned:
    lengths = ["data.prompts.min_tokens=3", "data.prompts.max_tokens=3", "generation.max_new_tokens=2"]
    prompts = ["data.prompts.train=7", "data.prompts.validation=2", "data.prompts.test=3", "evaluation.samples=4"]
    return Planned(asdict(runs_of(["experiment=smoke", *lengths, *prompts, *words])[0]))


def test_planned_artifacts_by_hand() -> None:
    sft = ["data.sft_reviews=20", "sft.epochs=1", "sft.batch_size=5", "sft.max_tokens=6"]
    model = ["reward_model.epochs=2", "reward_model.validation=0.25", "reward_model.evaluations=3"]
    source = planned(
        "algo=best_of_n", "n=2", "groups.k=3", "reservoir.samples=8", "reward_model.batch_size=4", *sft, *model
    )
    # 2 rows are held out; 18 make 4 batches of 5
    assert of_stage("sft", source, SIZES) == Work(120, "tokens", (3 * 20 + 2) * read(6, 5))
    assert of_stage("groups", source, SIZES) == Work(21, "completions", 21 * (DRAWN + SCORED), 21)
    assert of_stage("rescored", source, SIZES) == Work(21, "completions", 21 * SCORED)
    assert of_stage("reference", source, SIZES) == Work(20, "samples", 20 * (DRAWN + 2 * SCORED), 20)
    assert of_stage("learned_scores", source, SIZES) == Work(40, "completions", 40 * BARE)
    # two passes over three quarters of 21 completions; the rest is read at 3 evaluations and twice for the scale
    model_work = of_stage("reward_model", source, SIZES)
    assert model_work.operations == pytest.approx((3 * 2 * 0.75 + 5 * 0.25) * 21 * BARE)
    assert model_work.amount == 8  # 16 of 21 pairs, twice, in batches of 4


def test_planned_policies_by_hand() -> None:
    # all 6 pairs of each prompt in a batch of their own: 4 completions, 3 of which win; evaluated after 4, 8, 12 and 14
    words = ["policy.batch_size=6", "policy.epochs=2", "policy.steps=null", "evaluation.every=4"]
    source = planned("algo=dpo", *words)
    assert of_stage("dpo: training", source, SIZES) == Work(14, "steps", 3 * 14 * 4 * SCORED)
    assert of_stage("dpo: evaluations", source, SIZES).amount == 4 * 20
    winners = of_stage("preferred_ft: training", planned("algo=preferred_ft", *words), SIZES)
    assert winners.operations == 3 * 14 * 3 * SCORED
    assert of_stage("dpo: training", planned("dpo.loss=plackett_luce"), SIZES).operations is None
    # 3 batches of 16; sampled, scored twice, valued, trained on twice in 4 steps; evaluated after step 8, the
    # first end of a batch past 6, and at the end
    words = ["algo=ppo", "ppo.episodes=50", "ppo.batch_size=16", "ppo.minibatch_size=8", "ppo.epochs=2"]
    source = planned(*words, "ppo.reward=ground_truth", "ppo.value=own", "evaluation.every=6")
    expected = 48 * (DRAWN + 2 * SCORED + BARE + 2 * 3 * (SCORED + BARE))
    assert of_stage("ppo: training", source, SIZES) == Work(12, "steps", expected, 48)
    assert of_stage("ppo: evaluations", source, SIZES).amount == 2 * 20
    shared = of_stage("ppo: training", planned(*words, "ppo.reward=learned", "ppo.value=shared"), SIZES)
    assert shared == Work(12, "steps", 48 * (DRAWN + 2 * SCORED + BARE + 2 * 3 * SCORED), 0)


def test_prompts_have_every_length_equally_often() -> None:
    source = planned("data.prompts.min_tokens=2", "data.prompts.max_tokens=4", "data.prompts.train=3", "groups.k=2")
    expected = 2 * sum(read(p + 1, 2) + read(p + 2, 2) for p in (2, 3, 4))
    assert of_stage("groups", source, SIZES).operations == pytest.approx(expected)
