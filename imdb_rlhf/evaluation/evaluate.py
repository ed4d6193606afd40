"""Reward and KL of one policy on fixed prompts: the one definition that every method shares.

Samples and scores are float32 whatever the training's precision. A prompt's random numbers are the same for every
policy and every step, so differences between policies are paired.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation.stats import bootstrap_mean, distinct_n, prompt_means
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.policy import Policy, decode
from imdb_rlhf.models.sampling import batches_by_length, limits, sample, uniforms
from imdb_rlhf.rewards import Reward
from imdb_rlhf.training.runtime import Runtime

# A row a sample: what `evaluations.parquet` holds of every evaluation point.
COLUMNS = ["step", "split", "prompt_id", "sample_id", "reward", "reward_logit", "kl", "kl_k1", "length", "finished"]
# What is kept beside them until a run is finished: texts, and the tokens as they were sampled.
TEXTS = ["prompt", "completion", "prompt_ids", "completion_ids"]


def evaluate(
    policy: Policy,
    reference: PreTrainedModel,
    reward: Reward,
    prompts: Mapping[str, list[list[int]]],
    config: EvaluationConfig,
    generation: GenerationConfig,
    runtime: Runtime,
    step: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> pd.DataFrame:
    """Sample, score and compare.

    Args:
        policy: what is evaluated.
        reference: what the KL is taken to.
        reward: the true reward.
        prompts: split -> token rows.
        config: samples a prompt, seed, batch size.
        generation: length limit and temperature.
        runtime: processes share the batches; every rank returns all rows.
        step: written into the rows.
        advance: called with the number of finished samples.

    Returns:
        A frame with `COLUMNS` and `TEXTS`, ordered by split, prompt and sample.

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
    found: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        if number % runtime.world != runtime.rank:
            continue
        keys = [index[i] for i in batch]
        heads = [prompts[split][prompt] for split, prompt, _ in keys]
        draws = np.stack([random[split][prompt, which] for split, prompt, which in keys])
        ends = np.array([limit[split][prompt, which] for split, prompt, which in keys])
        with torch.autocast(runtime.device.type, enabled=False):
            samples = sample(policy.lm, heads, draws, policy.eos_id, generation.temperature, ends)
        compared = compare(policy.lm, reference, Rows.of(heads, samples.ids), generation.temperature)
        starts = decode(policy.tokenizer, heads)
        wholes = decode(policy.tokenizer, [head + ids for head, ids in zip(heads, samples.ids, strict=True)])
        scores = reward.score(wholes)
        for at, (split, prompt, which) in enumerate(keys):
            found.append(
                {
                    "step": step,
                    "split": split,
                    "prompt_id": prompt,
                    "sample_id": which,
                    "reward": float(scores.reward[at]),
                    "reward_logit": float(scores.logit[at]),
                    "kl": float(compared.kl[at]),
                    "kl_k1": float(compared.logprob[at] - compared.ref_logprob[at]),
                    "length": len(samples.ids[at]),
                    "finished": samples.finished[at],
                    "prompt": starts[at],
                    "completion": completion_text(starts[at], wholes[at]),
                    "prompt_ids": heads[at],
                    "completion_ids": samples.ids[at],
                }
            )
        advance(len(keys))
    frame = pd.DataFrame(runtime.gather(found), columns=COLUMNS + TEXTS)
    _check(frame, step)
    return frame.sort_values(["split", "prompt_id", "sample_id"], ignore_index=True)


def completion_text(prompt: str, whole: str) -> str:
    """What follows the prompt; where a character was split between the two, the part after the common beginning."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return whole[same:]


def _check(frame: pd.DataFrame, step: int) -> None:
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
    return {
        "eval/reward": float(prompt_means(test, "reward").mean()),
        "eval/reward_logit": float(prompt_means(test, "reward_logit").mean()),
        "eval/kl": float(prompt_means(test, "kl").mean()),
        "eval/kl_k1": float(prompt_means(test, "kl_k1").mean()),
        "eval/kl_per_token": float(test["kl"].sum() / test["length"].sum()),
        "eval/length": float(test["length"].mean()),
        "eval/eos_rate": float(test["finished"].mean()),
        "eval/distinct_2": distinct_n(test["completion"]),
        "eval/validation_reward": float(prompt_means(validation, "reward").mean()),
        "eval/validation_kl": float(prompt_means(validation, "kl").mean()),
    }


def interval(frame: pd.DataFrame, column: str, config: EvaluationConfig) -> list[float]:
    """[low, high] over the test prompts of a frame."""
    values = prompt_means(frame[frame["split"] == "test"], column)
    return list(bootstrap_mean(values, config.bootstrap, config.confidence, config.seed))
