"""Unlikelihood against the loss a pair and a completion at a time."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.algos.preferences import PairBatch
from imdb_rlhf.algos.unlikelihood import Unlikelihood
from imdb_rlhf.config.algos import UnlikelihoodRun
from imdb_rlhf.config.stages import Order
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.models.policy import Policy

PAIRS = np.array([[0, 1], [2, 1], [0, 2], [4, 3], [5, 3], [5, 4]])


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def score(lm: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """The log-prob of a completion from full logits, without padding."""
    ids = torch.tensor([prompt + completion])
    log_softmax = (lm(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return log_softmax.gather(1, ids[0, len(prompt) :, None]).sum()


def make_groups() -> pd.DataFrame:
    random = np.random.default_rng(0)
    heads = [random.integers(1, 19, size=2 + row // 3).tolist() for row in range(6)]
    tails = [random.integers(1, 19, size=1 + 2 * row % 7).tolist() for row in range(6)]
    known = [-3.0 * len(tail) + random.normal() for tail in tails]
    return pd.DataFrame({"prompt_ids": heads, "completion_ids": tails, "ref_logprob": known})


def make(lm: PreTrainedModel, alpha: float, temperature: float = 1.0) -> Unlikelihood:
    run = SimpleNamespace(
        seed=0,
        alpha=alpha,
        generation=SimpleNamespace(temperature=temperature),
        policy=SimpleNamespace(batch_size=6, epochs=1.0, steps=None),
        pairs=SimpleNamespace(order=Order.prefix),
    )
    policy = Policy(lm, cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0)))
    return Unlikelihood(policy, make_groups(), Pairs(PAIRS, PAIRS[:, 0] // 3, {}), cast(UnlikelihoodRun, run))


def gradients(lm: PreTrainedModel) -> Tensor:
    """All gradients in one vector; they are 0 afterwards."""
    found = torch.cat([p.grad.flatten().clone() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    return found


def run_batch(algorithm: Unlikelihood, batch: Any, limit: int | None) -> tuple[float, dict[str, float]]:
    """Mean loss and mean metrics of a batch; gradients are left in the model."""
    total, sums = 0.0, dict[str, float]()
    for part in batch.parts(0, 1, limit):
        loss, metrics = algorithm.loss(algorithm.module, part)
        (loss / batch.size).backward()
        total += float(loss.detach()) / batch.size
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) / batch.size
    return total, sums


@pytest.mark.parametrize("limit", [None, 1, 4])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (1.0, 0.7), (0.0, 1.0)])
def test_the_loss_is_the_naive_one(alpha: float, temperature: float, limit: int | None) -> None:
    lm, groups = gpt2(), make_groups()
    algorithm = make(lm, alpha, temperature)
    batch = cast(PairBatch, next(algorithm.batches(0)))
    assert batch.size == 6
    (whole,) = batch.parts(0, 1, None)
    assert len(whole.ref_logprob) == 6  # 12 places, 6 completions
    losses = []
    for winner, loser in batch.pairs:
        best, worst = (
            score(lm, groups["prompt_ids"][row], groups["completion_ids"][row], temperature) for row in (winner, loser)
        )
        losses.append(-best + alpha * worst)
    expected = torch.stack(losses).mean()
    expected.backward()
    truth = gradients(lm)
    loss, _ = run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (gradients(lm) - truth).norm() < 1e-4 * truth.norm()


def test_the_metrics_by_hand() -> None:
    lm, groups = gpt2(), make_groups()
    with torch.no_grad():
        columns = (groups[name].tolist() for name in ("prompt_ids", "completion_ids", "ref_logprob"))
        ratio = np.array(
            [float(score(lm, head, tail, 1.0)) - known for head, tail, known in zip(*columns, strict=True)]
        )
    best, worst = ratio[PAIRS[:, 0]], ratio[PAIRS[:, 1]]
    assert 0 < (best > worst).sum() < 6
    algorithm = make(lm, 0.5)
    _, metrics = run_batch(algorithm, next(algorithm.batches(0)), 4)
    assert metrics == pytest.approx(
        {
            "train/accuracy": (best > worst).mean(),
            "train/chosen_log_ratio": best.mean(),
            "train/rejected_log_ratio": worst.mean(),
        },
        abs=1e-5,
    )
