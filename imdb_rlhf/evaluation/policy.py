"""Reward and KL of one policy on fixed prompts: the one definition that every method shares.

Samples and scores are float32 whatever the training's precision. A prompt's random numbers are the same for every
policy and every step, so differences between policies are paired.

    python -m imdb_rlhf.evaluation.policy MODEL_DIR [key=value ...]

puts a model that exists beside them: the same as `python train.py algo=own_model own_model.path=MODEL_DIR ...`.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from imdb_rlhf.config import EvaluationConfig, GenerationConfig
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation.stats import bootstrap_mean, distinct_n, prompt_means
from imdb_rlhf.models.logprobs import Rows, compare
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


HELP = """How much reward has a model that exists, at what KL to the reference? Nothing is trained.

  python -m imdb_rlhf.evaluation.policy MODEL_DIR [key=value ...]

MODEL_DIR   folder (or Hub id) of a Hugging Face causal LM with the reference's tokenizer
key=value   as train.py takes them: what says which reference, reward and prompts, and
            own_model.name=...  what the frontier calls it
            paths.outputs=DIR   where the runs to compare it with lie
            plan=true           what would be made, what reused; runs nothing

It is the same as: python train.py algo=own_model own_model.path=MODEL_DIR [key=value ...]"""


def overrides(arguments: Sequence[str]) -> list[str]:
    """What `train.py` is to be given for the arguments of this command line.

    Raises:
        ConfigError: the first argument is no model, or another one is not of the form key=value.
    """
    usage = "python -m imdb_rlhf.evaluation.policy MODEL_DIR [key=value ...]"
    if not arguments or not arguments[0] or arguments[0].startswith("-"):
        raise ConfigError(f"MODEL_DIR is missing; {usage}")
    model, *others = arguments
    wrong = next((word for word in others if "=" not in word.lstrip("-")), None)
    if wrong is not None:
        raise ConfigError(f"{wrong!r} is not of the form key=value; {usage}")
    if "=" in model and not Path(model).expanduser().exists():
        raise ConfigError(f"{model!r} stands where MODEL_DIR should; {usage}")
    # a path may be more than a word of Hydra's grammar, where backslashes before a quote are doubled and others are not
    quoted = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", model))
    return ["algo=own_model", f"own_model.path='{quoted}'", *others]


if __name__ == "__main__":
    # A command line stands above all floors, so what follows may import what a library here may not.
    from imdb_rlhf.cli import main

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP)
        sys.exit(0)
    try:
        sys.argv = [sys.argv[0], *overrides(sys.argv[1:])]
    except ConfigError as error:
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(2)
    main()
