"""PPO an episode and a token at a time, against which the tests of PPO hold the real one; and the set-up of both."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.rollout import Minibatch, Rollout
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.ppo import Whitening
from imdb_rlhf.config.run import Run
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.loop import Algorithm
from imdb_rlhf.training.runtime import Runtime
from tests import tiny

BETA = 0.3
MAX_NEW_TOKENS = 6

# 2 to 5 tokens, all different; a batch of 12 ends in the middle of the second pass over them
PROMPTS = [[1 + (i + 3 * j) % 8 for j in range(2 + i % 4)] for i in range(8)]


def small(seed: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    return tiny.gpt2(seed, vocabulary=9, layers=1, dropout=dropout)


def ppo_run(
    seed: int = 0,
    target_kl: float | None = 2.0,
    temperature: float = 1.0,
    shortest_limit: int | None = None,
    **changes: Any,
) -> PPORun:
    generation = tiny.generation(MAX_NEW_TOKENS, shortest_limit, temperature)
    return tiny.run(PPORun, seed=seed, target_kl=target_kl, generation=generation, ppo=tiny.ppo(**changes))


def reward(prompt: list[int], completion: list[int]) -> float:
    """Of the whole episode; no two episodes that differ in a token happen to have the same."""
    return math.sin(sum((place + 1) * token for place, token in enumerate(prompt + completion)))


def score(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
    return np.array([reward(*pair) for pair in zip(prompt_ids, completion_ids, strict=True)])


def make(run: PPORun, runtime: Runtime | None = None, coefficient: float = BETA, trained: bool = True) -> PPO:
    """PPO whose policy and reference differ; `trained`: with values other than 0, and a critic that is no copy."""
    lm, reference = small(1), small(2)
    algorithm = PPO(tiny.policy(lm), reference, PROMPTS, score, run, runtime or tiny.runtime(), coefficient)
    torch.manual_seed(7)
    with torch.no_grad():
        if trained:
            algorithm.actor_critic.head.weight.normal_(0, 0.3)
            algorithm.actor_critic.head.bias.fill_(0.2)
        if trained and algorithm.actor_critic.critic is not None:
            for parameter in algorithm.actor_critic.critic.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return algorithm


def disturb(algorithm: Algorithm, size: float = 0.03) -> None:
    """Move every weight, as steps on other minibatches would."""
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in algorithm.module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=random))


# --- the naive PPO


@dataclass
class Episode:
    """A prompt with the completion that the policy sampled, and the numbers of each token."""

    prompt: list[int]
    completion: list[int]
    finished: bool
    score: float
    logprob: list[float]
    ref_logprob: list[float]
    value: list[float]
    rewards: list[float] = field(default_factory=list)
    advantage: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    @property
    def kl(self) -> float:
        return sum(self.logprob) - sum(self.ref_logprob)


def next_logprobs(lm: PreTrainedModel, ids: list[int], temperature: float) -> Tensor:
    return (lm(input_ids=torch.tensor([ids])).logits[0, -1] / temperature).log_softmax(-1)


def token_values(algorithm: PPO, prompt: list[int], completion: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Log-prob of each token of a completion, and the value of the state before it."""
    model, temperature = algorithm.actor_critic, algorithm.run.generation.temperature
    trunk = model.lm.transformer if model.critic is None else model.critic
    logprobs, values = [], []
    for place, token in enumerate(completion):
        before = prompt + completion[:place]
        logprobs.append(next_logprobs(model.lm, before, temperature)[token])
        state = trunk(input_ids=torch.tensor([before])).last_hidden_state[0, -1]
        values.append((state * model.head.weight[0]).sum() + model.head.bias[0])
    return logprobs, values


def draw_completion(
    lm: PreTrainedModel, prompt: list[int], run: Run, number: int, stage: str = "ppo"
) -> tuple[list[int], bool]:
    """An episode's completion: at each step the first token whose cumulative probability exceeds the uniform."""
    low, high = run.generation.shortest_limit, run.generation.max_new_tokens
    limit = high if low is None else int(generator(run.seed, f"{stage}/limit", number).integers(low, high + 1, 1)[0])
    completion: list[int] = []
    for uniform in generator(run.seed, stage, number).random(high)[:limit]:
        below = next_logprobs(lm, prompt + completion, run.generation.temperature).double().exp().cumsum(0)
        completion.append(int((below <= uniform).sum()))
        if completion[-1] == 0:
            return completion, True
    return completion, False


def whitened(rows: list[list[float]], bessel: bool, keep_mean: bool = False) -> list[list[float]]:
    """(x - mean) / std over all tokens of the rows."""
    numbers = [number for row in rows for number in row]
    mean = sum(numbers) / len(numbers)
    std = math.sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - bessel))
    return [[(number - mean) / std + mean * keep_mean for number in row] for row in rows]


@torch.no_grad()
def episodes(algorithm: PPO, number: int, coefficient: float) -> list[Episode]:
    """Batch `number` under the present weights, an episode at a time."""
    run, config = algorithm.run, algorithm.config
    batch = []
    for place in range(config.batch_size):
        position = number * config.batch_size + place
        order = generator(run.seed, "ppo/prompts", position // len(PROMPTS)).permutation(len(PROMPTS))
        prompt = PROMPTS[order[position % len(PROMPTS)]]
        completion, finished = draw_completion(algorithm.policy.lm, prompt, run, position)
        logprob, value = token_values(algorithm, prompt, completion)
        ref_logprob = [
            next_logprobs(algorithm.reference.lm, prompt + completion[:at], run.generation.temperature)[token]
            for at, token in enumerate(completion)
        ]
        total = reward(prompt, completion) - (0 if finished else config.missing_eos_penalty)
        columns = [[float(number) for number in column] for column in (logprob, ref_logprob, value)]
        batch.append(Episode(prompt, completion, finished, total, *columns))
    for episode in batch:
        episode.rewards = [-coefficient * (a - b) for a, b in zip(episode.logprob, episode.ref_logprob, strict=True)]
        episode.rewards[-1] += episode.score
    bessel = config.advantage_whitening == Whitening.batch
    if config.whiten_rewards:
        scaled = whitened([episode.rewards for episode in batch], bessel, keep_mean=True)
        for episode, rewards in zip(batch, scaled, strict=True):
            episode.rewards = rewards
    for episode in batch:
        # A_t = sum over l of (gamma lambda)^l delta_{t + l}
        follows = [*episode.value[1:], 0.0]
        delta = [
            r + config.gamma * after - v for r, v, after in zip(episode.rewards, episode.value, follows, strict=True)
        ]
        decay = config.gamma * config.lam
        episode.advantage = [
            sum(decay**later * number for later, number in enumerate(delta[t:])) for t in range(len(delta))
        ]
        episode.returns = [a + v for a, v in zip(episode.advantage, episode.value, strict=True)]
    if bessel:
        scaled = whitened([episode.advantage for episode in batch], bessel=True)
        for episode, advantage in zip(batch, scaled, strict=True):
            episode.advantage = advantage
    return batch


def naive_loss(algorithm: PPO, rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics as means over tokens, one at a time."""
    config = algorithm.config
    policy_losses, value_losses, ratios, clipped, value_clipped = [], [], [], [], []
    for row, (ids, start, length) in enumerate(zip(rollout.ids, rollout.starts, rollout.lengths, strict=True)):
        prompt, completion = ids[: int(start)].tolist(), ids[int(start) : int(length)].tolist()
        for at, (logprob, value) in enumerate(zip(*token_values(algorithm, prompt, completion), strict=True)):
            old_logprob, old_value, a, target = (
                float(getattr(rollout, name)[row, at]) for name in ("logprob", "value", "advantage", "returns")
            )
            ratio = torch.exp(logprob - old_logprob)
            low, high = 1 - config.policy_clip, 1 + config.policy_clip
            bounded = torch.tensor(low) if ratio < low else torch.tensor(high) if ratio > high else ratio
            policy_losses.append(-torch.min(a * ratio, a * bounded))
            low, high = old_value - config.value_clip, old_value + config.value_clip
            near = torch.tensor(low) if value < low else torch.tensor(high) if value > high else value
            value_losses.append(torch.max((value - target) ** 2, (near - target) ** 2) / 2)
            ratios.append(float(ratio.detach()))
            clipped.append(abs(ratios[-1] - 1) > config.policy_clip)
            value_clipped.append(not low <= float(value.detach()) <= high)
    policy_loss, value_loss = torch.stack(policy_losses).mean(), torch.stack(value_losses).mean()
    return policy_loss + config.value_coefficient * value_loss, {
        "ppo/policy_loss": float(policy_loss.detach()),
        "ppo/value_loss": float(value_loss.detach()),
        "ppo/ratio": float(np.mean(ratios)),
        "ppo/approx_kl": float(np.mean([ratio - 1 - math.log(ratio) for ratio in ratios])),
        "ppo/clip_fraction": float(np.mean(clipped)),
        "ppo/value_clip_fraction": float(np.mean(value_clipped)),
    }


# --- using the real one


def assert_close(table: Tensor, rows: list[list[float]], tolerance: float = 1e-4) -> None:
    """The (rows, tokens) table holds these rows, and zeros behind them."""
    expected = torch.zeros(table.shape)
    for index, row in enumerate(rows):
        expected[index, : len(row)] = torch.tensor(row)
    torch.testing.assert_close(table, expected, atol=tolerance, rtol=tolerance)


def first_batch(algorithm: PPO, step: int = 0) -> Minibatch:
    return next(algorithm.batches(step))


def rollout_of(algorithm: PPO) -> Rollout:
    assert algorithm.rollout is not None
    return algorithm.rollout


def same(one: Rollout, other: Rollout) -> bool:
    """Whether two rollouts are equal bit for bit."""
    return all(getattr(one, f.name).equal(getattr(other, f.name)) for f in fields(Rollout))


def train(
    algorithm: PPO, folder: Path, advance: Callable[[dict[str, float]], None] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Train to the end with these `tiny.settings`; the logged rows without times."""
    advance = advance or (lambda values: None)
    return tiny.train(algorithm, tiny.settings(**options), folder, algorithm.runtime, advance=advance)
