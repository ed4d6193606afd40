"""PPO refuses a batch whose numbers are not finite, or that was not scored as it is trained on; no weight changes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.rollout import Minibatch
from imdb_rlhf.config.machine import Precision
from imdb_rlhf.errors import RunError
from tests import tiny
from tests.algos.naive_ppo import BETA, PROMPTS, first_batch, make, ppo_run, score, train


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_score_that_is_not_finite_changes_no_weight(batch: int, value: float, tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    scored = 0

    def broken(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
        nonlocal scored
        scored += len(prompt_ids)
        scores = score(prompt_ids, completion_ids)
        if scored == 12 * (batch + 1):
            scores[-1] = value
        return scores

    algorithm.score = broken
    before = [tiny.weights(algorithm.module)]
    with pytest.raises(RunError, match=f"ppo: a score of batch {batch} is not finite"):
        train(algorithm, tmp_path, lambda values: before.append(tiny.weights(algorithm.module)))
    assert len(before) == 1 + 6 * batch
    assert tiny.weights(algorithm.module).equal(before[-1])


class Broken(nn.Module):
    """A reference that gives one token a log-prob of nan or of minus infinity."""

    def __init__(self, inner: nn.Module, value: float) -> None:
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        logprobs = self.inner(ids, starts, lengths)
        logprobs[-1, starts[-1]] = self.value
        return logprobs


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_kl_that_is_not_finite_changes_no_weight(value: float, tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    algorithm.reference = cast(Any, Broken(algorithm.reference, value))
    before = tiny.weights(algorithm.module)
    with pytest.raises(RunError, match="ppo: a KL of batch 0 is not finite"):
        train(algorithm, tmp_path)
    assert tiny.weights(algorithm.module).equal(before)
    assert algorithm.history == []


def moved(batch: Minibatch, by: float, tokens: int | None = None) -> Minibatch:
    """The batch with the old log-probs of its first `tokens`, or all, moved `by` so much."""
    logprob = batch.rollout.logprob.clone()
    places = batch.rollout.mask.nonzero()[:tokens]
    logprob[places[:, 0], places[:, 1]] += by
    return replace(batch, rollout=replace(batch.rollout, logprob=logprob))


@pytest.mark.parametrize(
    ("precision", "by", "tokens", "refused"),
    [
        (Precision.float32, 0.0011, None, True),
        (Precision.float32, -0.0011, None, True),
        (Precision.float32, 0.0005, None, False),
        (Precision.float32, 5.0, 1, True),
        (Precision.bf16, 0.3, None, True),
        (Precision.bf16, -0.3, None, True),
        (Precision.bf16, 0.1, None, False),
        (Precision.bf16, 2.0, 1, False),  # bf16 may move single tokens far
        (Precision.bf16, 2.0, 12, True),
    ],
)
def test_a_rollout_that_was_scored_otherwise_is_refused(
    precision: Precision, by: float, tokens: int | None, refused: bool
) -> None:
    algorithm = make(ppo_run(), tiny.runtime(precision))
    batches = algorithm.batches(0)
    off = moved(next(batches), by, tokens)

    def run(batch: Minibatch) -> None:
        with algorithm.runtime.autocast():
            algorithm.loss(algorithm.module, batch.parts(0, 1, None)[0])

    if refused:
        with pytest.raises(
            RunError, match="ppo: before the first step on batch 0 a tenth of the log-ratios are beyond"
        ):
            run(off)
    else:
        run(off)
    run(moved(next(batches), by, tokens))  # later the policy may have moved


@pytest.mark.parametrize("shift", [0.0, -90.0])
def test_a_right_run_of_36_layers_is_not_refused_in_bf16(shift: float) -> None:
    """It is scored a few rows at a time and trained on whole, so bf16 rounds its two scorings differently."""
    algorithm = make(ppo_run(rollout_batch_size=3), tiny.runtime(Precision.bf16))
    deep = tiny.scattered_gpt2(seed=3, spread=0.1, vocabulary=9, layers=36, width=64, tie_word_embeddings=False)
    with torch.no_grad():
        deep.transformer.ln_f.weight[0], deep.transformer.ln_f.bias[0] = 0, 1
        deep.lm_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
        deep.lm_head.weight[:, 0] = shift
    algorithm = PPO(
        tiny.policy(deep),
        cast(PreTrainedModel, algorithm.reference.lm),
        PROMPTS,
        score,
        algorithm.run,
        algorithm.runtime,
        BETA,
    )
    batch = first_batch(algorithm)
    with algorithm.runtime.autocast():
        _, metrics = algorithm.loss(algorithm.module, batch.parts(0, 1, None)[0])
    assert float(metrics["ppo/ratio"]) == pytest.approx(float(batch.rollout.mask.sum()), rel=0.05)


def test_another_temperature_than_that_of_the_rollout_is_refused(tmp_path: Path) -> None:
    algorithm = make(ppo_run(temperature=0.7))
    batch = first_batch(algorithm)
    algorithm.actor_critic.temperature = 1.0
    with pytest.raises(RunError, match="before the first step on batch 0"):
        tiny.run_batch(algorithm, batch)


def test_a_policy_that_scores_otherwise_than_it_samples_stops_before_a_step(tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    # another copy is trained: it equals the policy that samples in the first batch, and no longer in the second
    algorithm.module = make(ppo_run()).module
    seen: list[Tensor] = []
    with pytest.raises(RunError, match="before the first step on batch 1"):
        train(algorithm, tmp_path, lambda values: seen.append(tiny.weights(algorithm.module)))
    assert len(seen) == 6
    assert tiny.weights(algorithm.module).equal(seen[-1])
