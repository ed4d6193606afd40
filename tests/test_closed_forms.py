"""Every method against its closed form, through the package's own loop and algorithms, on a world that is enumerated.

The world: 4 tokens, 64 completions of 3 tokens (no token ends one early), 3 prompts of different lengths, a table of
rewards in 0..3, a random GPT-2 as reference, a temperature other than 1. What is expected is enumerated from plain
logits in float64. Regret is what a policy falls short of the optimum in reward - beta KL, as a share of the range of
the rewards.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.materials import Materials
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.preferred_ft import PreferredFT
from imdb_rlhf.algos.unlikelihood import Unlikelihood
from imdb_rlhf.config import (
    AdamWConfig,
    Device,
    DPOConfig,
    DPOLoss,
    DPORun,
    EvaluationConfig,
    GenerationConfig,
    Labels,
    Order,
    PairsConfig,
    PPOConfig,
    PPORun,
    Precision,
    PreferredFTRun,
    RewardSource,
    Scale,
    Schedule,
    Ties,
    TrainerConfig,
    UnlikelihoodRun,
    ValueNetwork,
    Whitening,
)
from imdb_rlhf.data.groups import draw_pairs, flip
from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.policy import evaluate
from imdb_rlhf.models.logprobs import Rows, compare, sequence_logprobs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.rewards import Scores
from imdb_rlhf.training.loop import Algorithm, Hooks, Settings, train
from imdb_rlhf.training.runtime import Runtime

TOKENS, LENGTH, TEMPERATURE, RANGE = 4, 3, 0.8, 3.0
PROMPTS = [[1], [3, 0], [2, 0, 1]]
COMPLETIONS = [list(tokens) for tokens in product(range(TOKENS), repeat=LENGTH)]
INDEX = {tuple(tokens): at for at, tokens in enumerate(COMPLETIONS)}
K, GROUPS = 4, 3000  # samples a group, groups a prompt

# --- the world, by enumeration: tables are (prompts, completions)


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": TOKENS, "n_positions": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes, **rates)).eval()


@torch.no_grad()
def log_law(lm: PreTrainedModel) -> np.ndarray:
    """Log-probs of all completions after each prompt, from plain logits."""
    table = np.zeros((len(PROMPTS), len(COMPLETIONS)))
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + tokens for tokens in COMPLETIONS])
        steps = (lm(input_ids=ids).logits[:, len(prompt) - 1 : -1].double() / TEMPERATURE).log_softmax(-1)
        table[row] = steps.gather(2, ids[:, len(prompt) :, None]).sum((1, 2)).numpy()
    assert np.exp(table).sum(1) == pytest.approx(1)
    return table


REFERENCE = gpt2(0).requires_grad_(False)
LOG_REF = log_law(REFERENCE)
REWARDS = np.random.default_rng(0).uniform(0, RANGE, LOG_REF.shape)


def reward_and_kl(log_pi: np.ndarray, rewards: np.ndarray = REWARDS) -> tuple[float, float]:
    """Mean reward and mean KL to the reference, over prompts."""
    pi = np.exp(log_pi)
    return float((pi * rewards).sum(1).mean()), float((pi * (log_pi - LOG_REF)).sum(1).mean())


def optimum(beta: float, rewards: np.ndarray = REWARDS) -> np.ndarray:
    """Log-probs of reference * exp(reward / beta) / Z."""
    tilted = LOG_REF + rewards / beta
    return tilted - np.log(np.exp(tilted).sum(1, keepdims=True))


def regret(lm: PreTrainedModel, beta: float, rewards: np.ndarray = REWARDS) -> float:
    """What is lost to the optimum of reward - beta KL, as a share of the range of the rewards."""
    (best, best_kl), (mine, kl) = reward_and_kl(optimum(beta, rewards), rewards), reward_and_kl(log_law(lm), rewards)
    return ((best - beta * best_kl) - (mine - beta * kl)) / float(np.ptp(rewards))


def coefficient_of(kl: float) -> float:
    """The coefficient whose optimum has this KL, by bisection."""
    low, high = 0.01, 100.0
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reward_and_kl(optimum(middle))[1] > kl else (low, middle)
    return low


# --- what the package is given


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(TrainerConfig(Device.cpu, Precision.float32, 1, 1, None, 0, 1))


class Digits:
    """A tokenizer whose texts are the token ids."""

    eos_token_id = TOKENS  # not in the vocabulary, so never sampled

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return ["".join(map(str, row)) for row in rows]


def policy() -> Policy:
    """A copy of the reference."""
    return Policy(deepcopy(REFERENCE), cast(PreTrainedTokenizerBase, Digits()))


def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
    """The table, at these rows."""
    pairs = zip(prompts, completions, strict=True)
    return np.array([REWARDS[PROMPTS.index(prompt), INDEX[tuple(tokens)]] for prompt, tokens in pairs])


def drawn(stage: str, count: int) -> list[list[list[int]]]:
    """`count` samples of the reference after each prompt."""
    random = uniforms(0, stage, range(len(PROMPTS)), count, LENGTH)
    eos = Digits.eos_token_id
    pairs = zip(PROMPTS, random, strict=True)
    return [sample(REFERENCE, [prompt] * count, draws, eos, TEMPERATURE).ids for prompt, draws in pairs]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of groups: samples of the reference, each prompt many times over."""
    rows = []
    for prompt, completions in enumerate(drawn("groups", K * GROUPS)):
        heads = [PROMPTS[prompt]] * len(completions)
        known = sequence_logprobs(REFERENCE, Rows.of(heads, completions), TEMPERATURE).tolist()
        rewards = score(heads, completions)
        for at, (head, tokens) in enumerate(zip(heads, completions, strict=True)):
            rows.append((prompt * GROUPS + at // K, at % K, head, tokens, rewards[at], known[at]))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    folder = tmp_path_factory.mktemp("groups")
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "groups.parquet")
    return folder


def materials(runtime: Runtime, groups: Path | None = None, kl_coefficient: float | None = None) -> Materials:
    return Materials(policy(), REFERENCE, runtime, groups, PROMPTS, score, kl_coefficient)


def adam(lr: float, schedule: Schedule = Schedule.linear) -> AdamWConfig:
    return AdamWConfig("adamw", lr, 0, schedule, 1.0, 0.9, 0.999, 1e-8, 0.0)


def fit(algorithm: Algorithm, runtime: Runtime, optim: AdamWConfig, folder: Path) -> None:
    """The package's loop."""
    train(algorithm, Settings(0, optim, None, 0, 1), runtime, folder, Hooks())


def pairs_config(**changes: Any) -> PairsConfig:
    values = {"labels": Labels.bradley_terry, "tau": None, "noise": None, "min_margin": 0.0, "ties": Ties.drop}
    return PairsConfig(**{**values, "order": Order.prefix, **changes})


def preference_run(batch_size: int, steps: int | None, **changes: Any) -> Any:
    values = {
        "seed": 0,
        "generation": GenerationConfig(max_new_tokens=LENGTH, shortest_limit=None, temperature=TEMPERATURE),
        "policy": SimpleNamespace(batch_size=batch_size, epochs=1.0, steps=steps),
        "pairs": pairs_config(),
        "dpo": DPOConfig(DPOLoss.sigmoid, 0.0, False),
    }
    return SimpleNamespace(**{**values, **changes})
