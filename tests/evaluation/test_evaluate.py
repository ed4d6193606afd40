"""Evaluation: reward and KL of one policy."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.evaluate import COLUMNS, completion_text, evaluate, metrics
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards import Reward, Scores
from imdb_rlhf.training.runtime import Runtime
from tests import tiny

TEXTS = ["the film is good. the film is bad. a good cast in a bad film."] * 20
VOCABULARY = 280
EVALUATION = tiny.evaluation(seed=1, samples=3, batch_size=7)
PROMPTS = {"validation": [[40, 41]], "test": [[40, 41, 42], [50, 51], [60, 61, 62, 63]]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return policies.train_tokenizer(TEXTS, VOCABULARY, VOCABULARY)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return tiny.runtime()


def scratch(tokenizer: PreTrainedTokenizerFast, seed: int) -> Policy:
    sizes = {"context": 32, "tokenizer_size": VOCABULARY, "vocabulary": VOCABULARY}
    return policies.scratch(tiny.model(init_seed=seed, **sizes), tokenizer)


def run(
    policy: Policy, reference: Policy, runtime: Runtime, reward: Reward | None = None, **changes: int
) -> pd.DataFrame:
    config, score = replace(EVALUATION, **changes), reward or tiny.Length()
    return evaluate(policy, reference.lm, score, PROMPTS, config, tiny.generation(6), runtime, 5)


def test_a_policy_is_at_no_distance_from_itself(tokenizer: PreTrainedTokenizerFast, runtime: Runtime) -> None:
    policy = scratch(tokenizer, 0)
    frame = run(policy, policy, runtime)
    assert list(frame.columns[: len(COLUMNS)]) == COLUMNS
    assert len(frame) == 4 * 3 and set(frame["step"]) == {5}
    assert frame["kl"].abs().max() == 0 and frame["kl_k1"].abs().max() == 0


def test_samples_do_not_depend_on_the_batch_size(tokenizer: PreTrainedTokenizerFast, runtime: Runtime) -> None:
    policy, reference = scratch(tokenizer, 0), scratch(tokenizer, 1)
    first = run(policy, reference, runtime)
    second = run(policy, reference, runtime, batch_size=2)
    assert first["completion"].tolist() == second["completion"].tolist()
    np.testing.assert_allclose(first["kl"], second["kl"], atol=1e-5)


def test_texts_and_rewards_belong_together(tokenizer: PreTrainedTokenizerFast, runtime: Runtime) -> None:
    frame = run(scratch(tokenizer, 0), scratch(tokenizer, 1), runtime)
    assert [len(p + c) for p, c in zip(frame["prompt"], frame["completion"], strict=True)] == frame["reward"].tolist()


def test_exact_kl_and_k1_estimate_the_same_number(tokenizer: PreTrainedTokenizerFast, runtime: Runtime) -> None:
    policy, reference = scratch(tokenizer, 0), scratch(tokenizer, 1)
    with torch.no_grad():
        for weight in policy.lm.parameters():
            weight.mul_(3)
    frame = run(policy, reference, runtime, samples=400)
    gap = frame["kl"] - frame["kl_k1"]
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert frame["kl"].std() < frame["kl_k1"].std()


def test_a_reward_that_is_not_finite_stops_it(tokenizer: PreTrainedTokenizerFast, runtime: Runtime) -> None:
    class Broken(tiny.Length):
        def score(self, texts: Sequence[str]) -> Scores:
            values = np.full(len(texts), np.nan)
            return Scores(values, values)

    policy = scratch(tokenizer, 0)
    with pytest.raises(RunError, match="reward is nan"):
        run(policy, policy, runtime, reward=Broken())


def test_metrics_by_hand() -> None:
    rows = [
        # split, prompt, reward, kl, length
        ("test", 0, 1.0, 2.0, 4),
        ("test", 0, 0.0, 4.0, 6),
        ("test", 1, 1.0, 1.0, 10),
        ("validation", 0, 0.25, 9.0, 3),
    ]
    frame = pd.DataFrame(rows, columns=["split", "prompt_id", "reward", "kl", "length"])
    frame = frame.assign(reward_logit=0.0, kl_k1=frame["kl"], finished=True, completion="a b a b")
    values = metrics(frame)
    assert values["eval/reward"] == 0.75  # the mean of 0.5 and 1, not of three samples
    assert values["eval/kl"] == 2.0
    assert values["eval/kl_per_token"] == pytest.approx(7 / 20)
    assert values["eval/validation_reward"] == 0.25
    assert values["eval/distinct_2"] == pytest.approx(2 / 9)


def test_completion_text_where_a_character_is_split() -> None:
    assert completion_text("The", "The film") == " film"
    assert completion_text("caf\ufffd", "café au lait") == "é au lait"
