"""Reward and KL of one policy on fixed prompts: one definition for all methods.

Sampling and scoring run in float32, whatever the training's precision. A prompt's random numbers are the same for every
policy and every step, so differences between policies are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import bootstrap_mean, distinct_n, prompt_means
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.mixtures import DecodedPolicy
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import batches_by_length, limits, sample, uniforms
from imdb_rlhf.models.tokens import decode
from imdb_rlhf.rewards import Reward

# The columns of `evaluations.parquet`, which has a row per sample of every evaluation point.
COLUMNS = ["step", "split", "prompt_id", "sample_id", "reward", "reward_logit", "kl", "kl_k1", "length", "finished"]
# The columns that are kept beside them until a run is finished: texts, and the tokens as they were sampled.
TEXTS = ["prompt", "completion", "prompt_ids", "completion_ids"]

T = TypeVar("T")


class Processes(Protocol):
    """The processes that share an evaluation's batches, as `training.runtime.Runtime` has them."""

    @property
    def device(self) -> torch.device:
        """The models' device."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def gather(self, values: Sequence[T]) -> list[T]:
        """Return all ranks' values, in the order of the ranks, on every rank."""


def evaluate(
    policy: Policy | DecodedPolicy,
    reference: PreTrainedModel,
    reward: Reward,
    prompts: Mapping[str, list[list[int]]],
    config: EvaluationConfig,
    generation: GenerationConfig,
    runtime: Processes,
    step: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> pd.DataFrame:
    """Sample from a policy, score the samples, and compute their KL to the reference.

    Args:
        policy: the policy to evaluate; one model, or several that are decoded together.
        reference: the model that the KL is measured from.
        reward: the true reward.
        prompts: split -> prompts as token rows.
        config: samples per prompt, seed and batch size.
        generation: length limit and temperature.
        runtime: its processes share the batches; every rank returns all rows.
        step: the training step, written into the rows.
        advance: called with the number of samples of each finished batch.

    Returns:
        A frame with `COLUMNS` and `TEXTS`, one row per sample, ordered by split, prompt and sample.

    Raises:
        RunError: a reward or a KL is nan or infinite, or an exact KL is negative beyond rounding.
    """
    index = [
        (split, prompt, number)
        for split, rows in prompts.items()
        for prompt in range(len(rows))
        for number in range(config.samples)
    ]
    random = {
        split: uniforms(config.seed, f"evaluation/{split}", range(len(rows)), config.samples, generation.max_new_tokens)
        for split, rows in prompts.items()
    }
    limit = {
        split: limits(config.seed, f"evaluation/{split}", range(len(rows)), config.samples, generation)
        for split, rows in prompts.items()
    }
    batches = batches_by_length([len(prompts[split][prompt]) for split, prompt, _ in index], config.batch_size)
    rows_of_rank: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        if number % runtime.world != runtime.rank:
            continue
        keys = [index[i] for i in batch]
        prompt_ids = [prompts[split][prompt] for split, prompt, _ in keys]
        draws = np.stack([random[split][prompt, repetition] for split, prompt, repetition in keys])
        ends = np.array([limit[split][prompt, repetition] for split, prompt, repetition in keys])
        with torch.autocast(runtime.device.type, enabled=False):
            samples = sample(policy.next_token, prompt_ids, draws, policy.eos_id, generation.temperature, ends)
        compared = compare(policy.next_token, reference, Rows.of(prompt_ids, samples.ids), generation.temperature)
        prompt_texts = decode(policy.tokenizer, prompt_ids)
        texts = decode(policy.tokenizer, [row + ids for row, ids in zip(prompt_ids, samples.ids, strict=True)])
        scores = reward.score(texts)
        for at, (split, prompt, repetition) in enumerate(keys):
            rows_of_rank.append(
                {
                    "step": step,
                    "split": split,
                    "prompt_id": prompt,
                    "sample_id": repetition,
                    "reward": float(scores.reward[at]),
                    "reward_logit": float(scores.logit[at]),
                    "kl": float(compared.kl[at]),
                    "kl_k1": float(compared.logprob[at] - compared.ref_logprob[at]),
                    "length": len(samples.ids[at]),
                    "finished": samples.finished[at],
                    "prompt": prompt_texts[at],
                    "completion": completion_text(prompt_texts[at], texts[at]),
                    "prompt_ids": prompt_ids[at],
                    "completion_ids": samples.ids[at],
                }
            )
        advance(len(keys))
    frame = pd.DataFrame(runtime.gather(rows_of_rank), columns=COLUMNS + TEXTS)
    _check(frame, step)
    return frame.sort_values(["split", "prompt_id", "sample_id"], ignore_index=True)


def completion_text(prompt: str, text: str) -> str:
    """The part of a text that follows its prompt; if a character is split between the two, from that character on."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    common = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(prompt))
    return text[common:]


def _check(frame: pd.DataFrame, step: int) -> None:
    """Refuse numbers that are not finite, and an exact KL below 0."""
    for column in ("reward", "reward_logit", "kl", "kl_k1"):
        bad = frame[~np.isfinite(frame[column])]
        if len(bad):
            raise RunError(
                f"evaluation at step {step}: {column} is {bad[column].iloc[0]} for prompt {bad['prompt_id'].iloc[0]} "
                f"of split {bad['split'].iloc[0]}; no number is reported from it"
            )
    if len(frame) and frame["kl"].min() < -1e-3:
        raise RunError(f"evaluation at step {step}: an exact KL is {frame['kl'].min():.6f}, below 0 beyond rounding")


def metrics(frame: pd.DataFrame) -> dict[str, float]:
    """The metrics of one evaluation point: `eval/...` on test prompts, `eval/validation_...` on validation prompts."""
    test, validation = (frame[frame["split"] == split] for split in ("test", "validation"))
    return test_metrics(test) | {
        "eval/validation_reward": float(prompt_means(validation, "reward").mean()),
        "eval/validation_kl": float(prompt_means(validation, "kl").mean()),
    }


def test_metrics(test: pd.DataFrame) -> dict[str, float]:
    """The metrics of the rows of test prompts: `eval/...`."""
    return {
        "eval/reward": float(prompt_means(test, "reward").mean()),
        "eval/reward_logit": float(prompt_means(test, "reward_logit").mean()),
        "eval/kl": float(prompt_means(test, "kl").mean()),
        "eval/kl_k1": float(prompt_means(test, "kl_k1").mean()),
        "eval/kl_per_token": float(test["kl"].sum() / test["length"].sum()),
        "eval/length": float(test["length"].mean()),
        "eval/eos_rate": float(test["finished"].mean()),
        "eval/distinct_2": distinct_n(test["completion"]),
    }


def interval(frame: pd.DataFrame, column: str, config: EvaluationConfig) -> list[float]:
    """[low, high] of a column's mean over the test prompts of a frame."""
    values = prompt_means(frame[frame["split"] == "test"], column)
    return list(bootstrap_mean(values, config.bootstrap, config.confidence, config.seed))
