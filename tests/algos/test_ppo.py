"""PPO against one that takes an episode and a token at a time; going on, stopping early, the controller, the checks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.rollout import Minibatch, Rollout
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.machine import Device, Precision, TrainerConfig
from imdb_rlhf.config.optim import AdamWConfig, Schedule
from imdb_rlhf.config.ppo import PPOConfig, Scale, ValueNetwork, Whitening
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import GenerationConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.seeds import generator
from imdb_rlhf.training import checkpoint, loop
from imdb_rlhf.training.runtime import Runtime
from tests.tiny import FixedInputs

BETA = 0.3
NEW = 6
OPTIM = AdamWConfig("adamw", 0.01, 0, Schedule.linear, 1.0, 0.9, 0.95, 1e-5, 0.0)


def gpt2(seed: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 9, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes, **rates)).eval()


def policy_of(lm: PreTrainedModel) -> Policy:
    return Policy(lm, cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0)))


def make_runtime(precision: Precision = Precision.float32) -> Runtime:
    return Runtime(TrainerConfig(Device.cpu, precision, 1, 1, None, 0, 1))


def settings(**changes: Any) -> loop.Settings:
    values = {"seed": 0, "optim": OPTIM, "micro_batch": None, "checkpoint_every": 0, "log_every": 1}
    return loop.Settings(**{**values, **changes})


def ppo_config(**changes: Any) -> PPOConfig:
    values = {
        "preset": "test",
        "reward": RewardSource.ground_truth,
        "scale": Scale.reward,
        "normalize": False,
        "value": ValueNetwork.shared,
        "episodes": 24,
        "batch_size": 12,
        "minibatch_size": 4,
        "epochs": 2,
        "rollout_batch_size": 5,
        "gamma": 0.9,
        "lam": 0.8,
        "policy_clip": 0.2,
        "value_clip": 0.2,
        "value_coefficient": 0.1,
        "whiten_rewards": False,
        "advantage_whitening": Whitening.minibatch,
        "kl_coefficient": None,
        "initial_kl_coefficient": None,
        "min_kl_coefficient": 1e-4,
        "max_kl_coefficient": 100.0,
        "horizon": None,
        "coefficient_range": 6.0,
        "missing_eos_penalty": 0.0,
        "early_stop_kl": None,
        "optim": OPTIM,
    }
    return PPOConfig(**{**values, **changes})


def ppo_run(
    seed: int = 0,
    target_kl: float | None = 2.0,
    temperature: float = 1.0,
    shortest_limit: int | None = None,
    **changes: Any,
) -> PPORun:
    generation = GenerationConfig(max_new_tokens=NEW, shortest_limit=shortest_limit, temperature=temperature)
    config = ppo_config(**changes)
    return cast(PPORun, SimpleNamespace(seed=seed, target_kl=target_kl, generation=generation, ppo=config))


# 2 to 5 tokens, all different; the last pass over them is cut short by a batch of 12
PROMPTS = [[1 + (i + 3 * j) % 8 for j in range(2 + i % 4)] for i in range(8)]


def reward(prompt: list[int], completion: list[int]) -> float:
    """Of the whole episode: no two that differ in a token have the same by chance."""
    return math.sin(sum((place + 1) * token for place, token in enumerate(prompt + completion)))


def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
    return np.array([reward(*pair) for pair in zip(prompts, completions, strict=True)])


def make(run: PPORun, runtime: Runtime | None = None, coefficient: float = BETA, trained: bool = True) -> PPO:
    """PPO whose policy and reference differ; with `trained`, its values are not 0 and its own network is no copy."""
    lm, reference = gpt2(1), gpt2(2)
    algorithm = PPO(policy_of(lm), reference, PROMPTS, score, run, runtime or make_runtime(), coefficient)
    torch.manual_seed(7)
    with torch.no_grad():
        if trained:
            algorithm.actor_critic.head.weight.normal_(0, 0.3)
            algorithm.actor_critic.head.bias.fill_(0.2)
        if trained and algorithm.actor_critic.critic is not None:
            for parameter in algorithm.actor_critic.critic.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return algorithm


def disturb(algorithm: PPO, size: float = 0.03) -> None:
    """Move every weight, as steps on other minibatches would."""
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in algorithm.module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=random))


def weights(algorithm: PPO) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in algorithm.module.parameters()])


def gradients(algorithm: PPO) -> Tensor:
    """All gradients in one vector; they are 0 afterwards."""
    found = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in algorithm.module.parameters()]
    )
    algorithm.module.zero_grad()
    return found


# --- the naive PPO


@dataclass
class Episode:
    """A prompt and what the policy made of it."""

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


def draw_completion(lm: PreTrainedModel, prompt: list[int], run: PPORun, number: int) -> tuple[list[int], bool]:
    """An episode's completion by its own random numbers: the first token whose cumulated probability is above."""
    low, high = run.generation.shortest_limit, run.generation.max_new_tokens
    limit = high if low is None else int(generator(run.seed, "ppo/limit", number).integers(low, high + 1, 1)[0])
    completion: list[int] = []
    for uniform in generator(run.seed, "ppo", number).random(high)[:limit]:
        below = next_logprobs(lm, prompt + completion, run.generation.temperature).double().exp().cumsum(0)
        completion.append(int((below <= uniform).sum()))
        if completion[-1] == 0:
            return completion, True
    return completion, False


def whitened(
    rows: list[list[float]], bessel: bool, keep_mean: bool = False, over: list[int] | None = None
) -> list[list[float]]:
    """(x - mean) / std over the tokens of the rows `over`, all if None."""
    chosen = range(len(rows)) if over is None else over
    numbers = [number for row in chosen for number in rows[row]]
    mean = sum(numbers) / len(numbers)
    std = math.sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - bessel))
    return [[(number - mean) / std + mean * keep_mean for number in row] for row in rows]


@torch.no_grad()
def episodes(algorithm: PPO, number: int, coefficient: float) -> list[Episode]:
    """Batch `number` under the weights as they are, worked out an episode at a time."""
    run, config = algorithm.run, algorithm.config
    found = []
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
        found.append(Episode(prompt, completion, finished, total, *columns))
    for episode in found:
        episode.rewards = [-coefficient * (a - b) for a, b in zip(episode.logprob, episode.ref_logprob, strict=True)]
        episode.rewards[-1] += episode.score
    bessel = config.advantage_whitening == Whitening.batch
    if config.whiten_rewards:
        kept = whitened([episode.rewards for episode in found], bessel, keep_mean=True)
        for episode, rewards in zip(found, kept, strict=True):
            episode.rewards = rewards
    for episode in found:
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
        scaled = whitened([episode.advantage for episode in found], bessel=True)
        for episode, advantage in zip(found, scaled, strict=True):
            episode.advantage = advantage
    return found


def table(rows: list[list[float]], like: Tensor) -> Tensor:
    out = torch.zeros(like.shape)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row)
    return out


def close(found: Tensor, rows: list[list[float]], tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, table(rows, found), atol=tolerance, rtol=tolerance)


def first_batch(algorithm: PPO, step: int = 0) -> Minibatch:
    return next(algorithm.batches(step))


def rollout_of(algorithm: PPO) -> Rollout:
    assert algorithm.rollout is not None
    return algorithm.rollout


def same(one: Rollout, other: Rollout) -> bool:
    return all(getattr(one, f.name).equal(getattr(other, f.name)) for f in fields(Rollout))


# --- the rollout


@pytest.mark.parametrize(
    ("network", "temperature", "shortest_limit"),
    [(ValueNetwork.shared, 1.0, None), (ValueNetwork.own, 0.7, None), (ValueNetwork.shared, 0.7, 1)],
)
def test_a_rollout_is_what_was_sampled_and_scored(
    network: ValueNetwork, temperature: float, shortest_limit: int | None
) -> None:
    algorithm = make(ppo_run(value=network, temperature=temperature, shortest_limit=shortest_limit))
    for number in (0, 1):  # the second batch begins in the middle of a pass over the prompts
        expected = episodes(algorithm, number, BETA)
        first_batch(algorithm, number * algorithm.period)
        rollout = rollout_of(algorithm)
        for row, episode in enumerate(expected):
            start, length = int(rollout.starts[row]), int(rollout.lengths[row])
            assert rollout.ids[row, :start].tolist() == episode.prompt
            assert rollout.ids[row, start:length].tolist() == episode.completion
            assert rollout.mask[row].tolist() == [at < len(episode.completion) for at in range(rollout.mask.shape[1])]
        close(rollout.logprob, [episode.logprob for episode in expected])
        close(rollout.value, [episode.value for episode in expected])
        assert rollout.value[rollout.mask].std() > 0.05
        # some sampled their EOS and some were cut
        assert 0 < algorithm.notes["ppo/eos_rate"] < 1
        assert len({len(episode.completion) for episode in expected}) > 2


@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("scope", list(Whitening))
def test_advantages_and_returns_are_the_naive_ones(scope: Whitening, whiten_rewards: bool, penalty: float) -> None:
    config = ppo_config(advantage_whitening=scope, whiten_rewards=whiten_rewards, missing_eos_penalty=penalty)
    algorithm = make(ppo_run(temperature=0.7, **vars(config)))
    expected = episodes(algorithm, 0, BETA)
    batches = algorithm.batches(0)
    minibatches = [next(batches) for _ in range(3)]
    rollout = rollout_of(algorithm)
    close(rollout.returns, [episode.returns for episode in expected])
    close(rollout.advantage, [episode.advantage for episode in expected])
    for minibatch in minibatches:
        owners = [int((rollout.returns == row).all(1).nonzero()) for row in minibatch.rollout.returns]
        advantages = [expected[owner].advantage for owner in owners]
        if scope == Whitening.minibatch:
            advantages = whitened(advantages, bessel=False)
        close(minibatch.rollout.advantage, advantages, 1e-3)
        close(minibatch.rollout.returns, [expected[owner].returns for owner in owners])


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_without_a_future_returns_are_the_rewards(whiten_rewards: bool) -> None:
    algorithm = make(ppo_run(gamma=0.0, whiten_rewards=whiten_rewards, missing_eos_penalty=2.0))
    expected = episodes(algorithm, 0, BETA)
    first_batch(algorithm)
    close(rollout_of(algorithm).returns, [episode.rewards for episode in expected])


def test_only_what_was_cut_is_fined() -> None:
    algorithm, fined = make(ppo_run(gamma=1.0, lam=1.0)), make(ppo_run(gamma=1.0, lam=1.0, missing_eos_penalty=5.0))
    expected = episodes(algorithm, 0, BETA)
    for one in (algorithm, fined):
        first_batch(one)
    # with gamma and lambda 1 the first return is the sum of the rewards
    difference = (rollout_of(algorithm).returns - rollout_of(fined).returns)[:, 0]
    assert difference.tolist() == pytest.approx([0.0 if episode.finished else 5.0 for episode in expected], abs=1e-5)
    share = sum(not episode.finished for episode in expected) / 12
    assert fined.notes["ppo/score"] == pytest.approx(algorithm.notes["ppo/score"] - 5 * share, abs=1e-5)
    assert algorithm.notes["ppo/eos_rate"] == pytest.approx(1 - share)


def test_a_completion_of_full_length_may_have_ended() -> None:
    algorithm = make(ppo_run())
    with torch.no_grad():  # after 5 tokens and a prompt of 2 nothing but EOS
        algorithm.policy.lm.transformer.wpe.weight[6] = 50 * algorithm.policy.lm.transformer.wte.weight[0]
    algorithm.prompts = [[1, 2]] * 8
    first_batch(algorithm)
    rollout = rollout_of(algorithm)
    last = [int(rollout.ids[row, int(rollout.lengths[row]) - 1]) for row in range(12)]
    assert algorithm.notes["ppo/eos_rate"] == sum(token == 0 for token in last) / 12
    assert any(token == 0 and int(rollout.mask[row].sum()) == NEW for row, token in enumerate(last))


def test_the_numbers_of_a_batch_by_hand() -> None:
    algorithm = make(ppo_run(target_kl=2.0, missing_eos_penalty=0.5))
    expected = episodes(algorithm, 0, BETA)
    first_batch(algorithm)
    scores, kl = [episode.score for episode in expected], float(np.mean([episode.kl for episode in expected]))
    logprobs, values, returns = (
        np.concatenate([getattr(episode, name) for episode in expected]) for name in ("logprob", "value", "returns")
    )
    assert kl > 0.1
    assert algorithm.notes == pytest.approx(
        {
            "ppo/score": np.mean(scores),
            "ppo/score_std": np.std(scores),
            "ppo/kl": kl,
            "ppo/kl_coefficient": 0.3,
            "ppo/log_kl_coefficient": math.log(0.3),
            "ppo/kl_penalty": 0.3 * kl,
            "ppo/objective": np.mean(scores) - 0.3 * kl,
            "ppo/entropy": -np.mean(logprobs),
            "ppo/length": len(logprobs) / 12,
            "ppo/eos_rate": np.mean([episode.finished for episode in expected]),
            "ppo/value": np.mean(values),
            "ppo/return": np.mean(returns),
            "ppo/return_std": np.std(returns),
            "ppo/explained_variance": 1 - np.var(returns - values) / np.var(returns),
            "ppo/episodes": 12,
            "ppo/kl_target": 2.0,
            "ppo/kl_error": np.clip(kl / 2 - 1, -0.2, 0.2),
        },
        abs=1e-4,
    )
    first_batch(algorithm, algorithm.period)
    assert algorithm.notes["ppo/episodes"] == 24


def test_a_coefficient_of_zero_is_no_penalty() -> None:
    algorithm = make(ppo_run(target_kl=None, gamma=0.0, kl_coefficient=0.0), coefficient=0.0)
    expected = episodes(algorithm, 0, 0.0)
    batch = first_batch(algorithm)
    close(rollout_of(algorithm).returns, [[0.0] * (len(e.completion) - 1) + [e.score] for e in expected])
    assert all(math.isfinite(value) for value in batch.notes.values())


def test_prompts_come_equally_often() -> None:
    algorithm = make(ppo_run(episodes=48))
    seen: list[tuple[int, ...]] = []
    for number in range(4):
        first_batch(algorithm, number * algorithm.period)
        rollout = rollout_of(algorithm)
        seen += [tuple(ids[: int(start)].tolist()) for ids, start in zip(rollout.ids, rollout.starts, strict=True)]
    passes = [seen[at : at + 8] for at in range(0, 48, 8)]
    assert all(sorted(one) == sorted(map(tuple, PROMPTS)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


# --- the loss


def run_batch(algorithm: PPO, batch: Minibatch, limit: int | None = None) -> tuple[float, dict[str, float]]:
    """Mean loss and mean metrics of a minibatch; gradients are left in the model."""
    total, sums = 0.0, dict[str, float]()
    for part in batch.parts(0, 1, limit):
        loss, metrics = algorithm.loss(algorithm.module, part)
        (loss / batch.size).backward()
        total += float(loss.detach()) / batch.size
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach()) / batch.size
    return total, sums


@pytest.mark.parametrize("network", list(ValueNetwork))
def test_every_ratio_is_1_at_first(network: ValueNetwork) -> None:
    algorithm = make(ppo_run(value=network, temperature=0.7))
    batch = first_batch(algorithm)
    loss, metrics = run_batch(algorithm, batch)
    assert metrics["ppo/ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["ppo/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["ppo/clip_fraction"] == metrics["ppo/value_clip_fraction"] == 0
    # the mean of whitened advantages is 0; values are what they were: half the mean square of advantages
    assert metrics["ppo/policy_loss"] == pytest.approx(0, abs=1e-5)
    rollout = batch.rollout
    residual = (rollout.value - rollout.returns)[rollout.mask]
    assert metrics["ppo/value_loss"] == pytest.approx(float(residual.square().mean()) / 2, rel=1e-4)
    assert loss == pytest.approx(0.1 * metrics["ppo/value_loss"], abs=1e-5)


def naive_loss(algorithm: PPO, rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    """Mean over tokens, one at a time."""
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


@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize(("network", "temperature"), [(ValueNetwork.shared, 0.7), (ValueNetwork.own, 1.0)])
def test_the_loss_and_its_gradient_are_the_naive_ones(
    network: ValueNetwork, temperature: float, limit: int | None
) -> None:
    algorithm = make(ppo_run(value=network, temperature=temperature, value_coefficient=0.5))
    batches = algorithm.batches(0)
    next(batches)
    disturb(algorithm)
    batch = next(batches)
    expected, numbers = naive_loss(algorithm, batch.rollout)
    expected.backward()
    truth = gradients(algorithm)
    loss, metrics = run_batch(algorithm, batch, limit)
    assert 0 < numbers["ppo/clip_fraction"] < 1 and 0 < numbers["ppo/value_clip_fraction"] < 1
    assert batch.size == sum(map(len, batch.rollout.mask.nonzero().tolist())) / 2
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert metrics == pytest.approx(numbers, rel=1e-3, abs=1e-5)
    assert (gradients(algorithm) - truth).norm() < 1e-3 * truth.norm()


def test_dropout_is_off_and_all_weights_are_trained() -> None:
    lm = gpt2(1, dropout=0.5).train().requires_grad_(False)
    algorithm = PPO(policy_of(lm), gpt2(2).train(), PROMPTS, score, ppo_run(value=ValueNetwork.own), make_runtime(), 1)
    batch = first_batch(algorithm)
    assert run_batch(algorithm, batch) == run_batch(algorithm, batch)
    assert not any(module.training for module in [*algorithm.module.modules(), *algorithm.reference.modules()])
    assert all(parameter.requires_grad for parameter in algorithm.module.parameters())


def test_it_is_made_from_inputs() -> None:
    policy = policy_of(gpt2(1))
    made = FixedInputs(policy, gpt2(2), make_runtime(), Path(), PROMPTS, score, 0.7)
    algorithm = PPO.from_inputs(made, ppo_run())
    assert (algorithm.coefficient, algorithm.steps, algorithm.period) == (0.7, 12, 6)
    assert algorithm.actor_critic.lm is policy.lm
    assert algorithm.summary_line() == (
        "2 batches of 12 episodes, 12 steps; ground_truth reward; KL coefficient 0.7 to begin with, target 2 nats"
    )
    assert "coefficient 0.7 fixed" in PPO.from_inputs(made, ppo_run(target_kl=None, kl_coefficient=0.7)).summary_line()


# --- what is random


def test_batches_are_functions_of_the_seed() -> None:
    found = [list(make(ppo_run(seed)).batches(0)) for seed in (0, 0, 1)]
    for mine, again, other in zip(*found, strict=True):
        assert same(mine.rollout, again.rollout) and mine.notes == again.notes
        assert not same(mine.rollout, other.rollout)
    assert not same(found[0][0].rollout, found[0][6].rollout)


def test_an_episode_does_not_depend_on_those_sampled_with_it() -> None:
    found = []
    for size in (1, 5, 100):
        algorithm = make(ppo_run(rollout_batch_size=size))
        first_batch(algorithm)
        found.append(rollout_of(algorithm))
    for rollout in found[1:]:
        assert rollout.ids.equal(found[0].ids)
        for name in ("logprob", "value", "advantage", "returns"):
            torch.testing.assert_close(getattr(rollout, name), getattr(found[0], name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", list(Whitening))
def test_minibatches_of_a_pass_are_a_partition(scope: Whitening) -> None:
    algorithm = make(ppo_run(epochs=3, advantage_whitening=scope))
    random = np.random.default_rng(0)
    algorithm.score = lambda prompts, completions: random.normal(size=len(prompts))  # equal episodes are told apart
    orders = []
    batches = algorithm.batches(0)
    for _ in range(2):
        every = [next(batches) for _ in range(9)]
        assert [batch.first for batch in every] == [True] + [False] * 8
        rollout = rollout_of(algorithm)
        for part in (every[:3], every[3:6], every[6:]):
            assert [len(batch.rollout.ids) for batch in part] == [4, 4, 4]
            order = []
            for batch in part:
                owners = [int((rollout.returns == row).all(1).nonzero()) for row in batch.rollout.returns]
                for name in ("ids", "starts", "lengths", "mask", "logprob", "value"):
                    assert getattr(batch.rollout, name).equal(getattr(rollout, name)[owners])
                order += owners
            assert sorted(order) == list(range(12))
            orders.append(tuple(order))
    assert len(set(orders)) == 6


def test_steps_may_begin_anywhere() -> None:
    whole = list(make(ppo_run()).batches(0))
    later = list(make(ppo_run()).batches(7))  # in the second batch
    assert len(whole) == 12 and len(later) == 5
    # nothing was trained, and the coefficient of the second batch is not that of a run from the start
    for mine, theirs in zip(later, whole[7:], strict=True):
        assert mine.rollout.ids.equal(theirs.rollout.ids)
        assert mine.rollout.logprob.equal(theirs.rollout.logprob)


# --- training and going on


class Crash(Exception):
    pass


def train(
    algorithm: PPO, wanted: loop.Settings, folder: Path, advance: Callable[[dict[str, float]], None] | None = None
) -> list[dict[str, Any]]:
    """Logged rows without times."""
    rows: list[dict[str, Any]] = []
    hooks = loop.Hooks(log=rows.append, advance=advance or (lambda values: None))
    loop.train(algorithm, wanted, algorithm.runtime, folder, hooks)
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def crash_at(step: int) -> Callable[[dict[str, float]], None]:
    """In the middle of the loop, before a checkpoint of that step."""
    calls: Iterator[int] = iter(range(1, step + 1))

    def advance(values: dict[str, float]) -> None:
        if next(calls) == step:
            raise Crash

    return advance


def same_after_a_crash(run: PPORun, steps: list[int], folder: Path, every: int = 1, log_every: int = 4) -> PPO:
    """Train straight on, and again with a crash at each of `steps`; all must be one."""
    wanted = settings(checkpoint_every=every, log_every=log_every)
    straight = make(run)
    rows = train(straight, wanted, folder / "straight")
    for step in steps:
        place = folder / str(step)
        stopped = make(run)
        with pytest.raises(Crash):
            train(stopped, wanted, place, crash_at(step))
        found = checkpoint.load(place)
        assert found is not None
        assert found.step == (step - 1) // every * every
        resumed = make(run, coefficient=77.0)  # what is not restored would be seen
        disturb(resumed)
        again = train(resumed, wanted, place)
        assert again == [row for row in rows if row["step"] > found.step]
        assert weights(resumed).equal(weights(straight))
        assert resumed.history == straight.history
        assert resumed.coefficient == straight.coefficient
        assert resumed.report() == straight.report()
    return straight


@pytest.mark.parametrize(("network", "steps"), [(ValueNetwork.shared, [3, 7, 11]), (ValueNetwork.own, [8])])
def test_a_run_goes_on_bit_for_bit(network: ValueNetwork, steps: list[int], tmp_path: Path) -> None:
    # in the first batch, between the two, in the second
    straight = same_after_a_crash(ppo_run(value=network, target_kl=0.5), steps, tmp_path)
    assert len(straight.history) == 2
    assert len({coefficient for _, coefficient in straight.history} | {straight.coefficient}) == 3
    assert not weights(straight).equal(weights(make(straight.run)))


def test_a_run_goes_on_from_an_old_checkpoint(tmp_path: Path) -> None:
    # a checkpoint at 4 and a crash at 8: the second batch is sampled again
    same_after_a_crash(ppo_run(target_kl=0.5), [8], tmp_path, every=4)


def test_bf16_trains(tmp_path: Path) -> None:
    algorithm = make(ppo_run(), make_runtime(Precision.bf16))
    rows = train(algorithm, settings(), tmp_path)
    assert len(rows) == 12
    assert {p.dtype for p in algorithm.module.parameters()} == {torch.float32}
    exact = train(make(ppo_run()), settings(), tmp_path)
    assert rows[0]["ppo/value_loss"] == pytest.approx(exact[0]["ppo/value_loss"], rel=0.1)
    assert rows[0]["ppo/value_loss"] != exact[0]["ppo/value_loss"]  # bf16 it was


def test_it_learns(tmp_path: Path) -> None:
    run = ppo_run(target_kl=None, kl_coefficient=0.01, episodes=640, batch_size=64, minibatch_size=32, gamma=1.0)
    algorithm = make(run, coefficient=0.01, trained=False)
    # the share of a token
    algorithm.score = lambda prompts, completions: np.array([row.count(3) / len(row) for row in completions])
    rows = train(algorithm, settings(log_every=algorithm.period), tmp_path)
    assert rows[-1]["ppo/score"] > rows[0]["ppo/score"] + 0.3


# --- early stop


def test_a_policy_that_moved_far_skips_the_rest_of_the_batch(tmp_path: Path) -> None:
    algorithm = make(ppo_run(early_stop_kl=1e-6))
    seen = [weights(algorithm)]
    values: list[dict[str, float]] = []

    def advance(shown: dict[str, float]) -> None:
        seen.append(weights(algorithm))
        values.append(shown)

    rows = train(algorithm, settings(log_every=1), tmp_path, advance)
    # the first step of a batch finds ratios of 1, the second the first's work; then nothing moves
    moved = [not before.equal(after) for before, after in zip(seen, seen[1:], strict=False)]
    assert moved == [True, True, False, False, False, False] * 2
    assert [row["step"] for row in rows] == [1, 2, 7, 8]
    assert ["loss" in shown for shown in values] == moved
    assert rows[0]["ppo/approx_kl"] < 1e-6 < rows[1]["ppo/approx_kl"]
    # skipped steps count for the schedule
    assert [row["train/lr"] for row in rows] == pytest.approx([0.01 * (1 - step / 12) for step in (0, 1, 6, 7)])
    assert algorithm.skipped_steps == algorithm.report()["ppo"]["skipped_steps"] == 8

    whole = make(ppo_run(early_stop_kl=1e-6))
    means = train(whole, settings(log_every=6), tmp_path / "whole")
    assert [row["step"] for row in means] == [6, 12]
    for mean, pair in zip(means, (rows[:2], rows[2:]), strict=True):
        for key in ("train/loss", "ppo/ratio", "ppo/kl", "train/lr"):
            assert mean[key] == pytest.approx((pair[0][key] + pair[1][key]) / 2, rel=1e-6)


def test_without_a_limit_nothing_is_skipped(tmp_path: Path) -> None:
    for limit in (None, 1e9):
        algorithm = make(ppo_run(early_stop_kl=limit))
        assert len(train(algorithm, settings(), tmp_path / str(limit))) == 12
        assert algorithm.report()["ppo"]["skipped_steps"] == 0


def test_a_run_goes_on_among_skipped_steps(tmp_path: Path) -> None:
    # after the step that stopped it, in the skipped ones, at the end of the batch
    straight = same_after_a_crash(ppo_run(early_stop_kl=1e-6, target_kl=0.5), [3, 5, 7], tmp_path)
    assert straight.skipped_steps == 8


# --- the controller


def coefficients(algorithm: PPO) -> list[float]:
    """Of every batch, and the one after the last; nothing is trained."""
    firsts = [batch.notes["ppo/kl_coefficient"] for batch in algorithm.batches(0) if batch.first]
    return [*firsts, algorithm.coefficient]


def test_the_controller_by_hand() -> None:
    kl = float(np.mean([episode.kl for episode in episodes(make(ppo_run()), 0, BETA)]))
    # 10 % above the target; the first of 2 batches of 12 and a range of 2: horizon 0.2 x 24 / 2, clipped at a batch
    algorithm = make(ppo_run(target_kl=kl / 1.1, coefficient_range=2.0))
    assert algorithm.horizon == 12
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * 1.1, rel=1e-4)
    # 10 % below it, with a horizon that is given
    algorithm = make(ppo_run(target_kl=kl / 0.9, horizon=60.0))
    assert algorithm.horizon == 60
    first_batch(algorithm)
    assert algorithm.coefficient == pytest.approx(BETA * (1 - 0.1 * 12 / 60), rel=1e-4)
    assert algorithm.history == [[pytest.approx(kl, abs=1e-4), BETA]]


@pytest.mark.parametrize(("target", "sign"), [(1e-3, 1), (1e3, -1)])
def test_a_run_can_move_the_coefficient_by_its_range(target: float, sign: int) -> None:
    algorithm = make(ppo_run(target_kl=target, coefficient_range=3.0, episodes=240, epochs=1, rollout_batch_size=12))
    assert algorithm.horizon == pytest.approx(0.2 * 240 / 3)
    found = coefficients(algorithm)
    # each of 20 batches by the factor 1 +- 3/20
    assert found == pytest.approx([BETA * (1 + sign * 3 / 20) ** number for number in range(21)])
    assert sign * math.log(found[-1] / BETA) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("target", "ends"), [(1e-3, "ceiling"), (1e3, "floor")])
def test_the_coefficient_has_a_floor_and_a_ceiling(target: float, ends: str) -> None:
    run = ppo_run(target_kl=target, episodes=72, epochs=1, min_kl_coefficient=0.2, max_kl_coefficient=0.5)
    algorithm = make(run)
    found = coefficients(algorithm)
    assert found[-3:] == [0.5 if ends == "ceiling" else 0.2] * 3
    assert 0.2 <= min(found) <= max(found) <= 0.5
    report = algorithm.report()["ppo"]
    assert (report["at_floor"], report["at_ceiling"]) == (ends == "floor", ends == "ceiling")


def test_a_fixed_coefficient_stays() -> None:
    algorithm = make(ppo_run(target_kl=None, kl_coefficient=BETA, episodes=36))
    assert coefficients(algorithm) == [BETA] * 4
    assert "ppo/kl_target" not in algorithm.notes and "ppo/kl_error" not in algorithm.notes
    report = algorithm.report()["ppo"]
    assert (report["target_kl"], report["on_target"]) == (None, None)
    assert not report["at_floor"] and not report["at_ceiling"]


@pytest.mark.parametrize(("last", "on_target"), [(2.4, True), (1.6, True), (2.6, False), (1.4, False)])
def test_what_the_summary_says(last: float, on_target: bool) -> None:
    algorithm = make(ppo_run(target_kl=2.0))
    history = [[9.0, 0.3 + 0.1 * number] for number in range(8)] + [[last - 0.5, 0.9], [last + 0.5, 0.8]]
    algorithm.restore(algorithm.state() | {"history": history, "skipped_steps": 5, "coefficient": 0.7})
    assert algorithm.report() == {
        "ppo": {
            "target_kl": 2.0,
            "kl_last_fifth": pytest.approx(last),
            "on_target": on_target,
            "kl_coefficient": 0.8,
            "first_kl_coefficient": 0.3,
            "at_floor": False,
            "at_ceiling": False,
            "episodes": 120,
            "skipped_steps": 5,
        }
    }


def test_a_state_is_restored_whole() -> None:
    algorithm = make(ppo_run())
    assert algorithm.state()["rollout"] is None
    fresh = make(ppo_run())
    fresh.restore(algorithm.state())
    assert fresh.rollout is None
    first_batch(algorithm)
    algorithm.stopped, algorithm.skipped_steps = True, 4
    fresh.restore(algorithm.state())
    assert same(rollout_of(fresh), rollout_of(algorithm))
    for name in ("number", "coefficient", "stopped", "skipped_steps", "notes", "history"):
        assert getattr(fresh, name) == getattr(algorithm, name), name


# --- what must not be


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_score_that_is_not_finite_changes_no_weight(batch: int, value: float, tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    calls = 0

    def broken(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        nonlocal calls
        calls += len(prompts)
        found = score(prompts, completions)
        found[-1] = value if calls == 12 * (batch + 1) else found[-1]
        return found

    algorithm.score = broken
    before = [weights(algorithm)]
    with pytest.raises(RunError, match=f"ppo: a score of batch {batch} is not finite"):
        train(algorithm, settings(), tmp_path, lambda values: before.append(weights(algorithm)))
    assert len(before) == 1 + 6 * batch
    assert weights(algorithm).equal(before[-1])


class Broken(nn.Module):
    """Log-probs of which one is not a number, or is of what cannot be."""

    def __init__(self, inner: nn.Module, value: float) -> None:
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        found = self.inner(ids, starts, lengths)
        found[-1, starts[-1]] = self.value
        return found


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_kl_that_is_not_finite_changes_no_weight(value: float, tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    algorithm.reference = cast(Any, Broken(algorithm.reference, value))
    before = weights(algorithm)
    with pytest.raises(RunError, match="ppo: a KL of batch 0 is not finite"):
        train(algorithm, settings(), tmp_path)
    assert weights(algorithm).equal(before)
    assert algorithm.history == []


def moved(batch: Minibatch, by: float, tokens: int | None = None) -> Minibatch:
    """Old log-probs off by so much, of some tokens."""
    logprob = batch.rollout.logprob.clone()
    which = batch.rollout.mask.nonzero()[:tokens]
    logprob[which[:, 0], which[:, 1]] += by
    return replace(batch, rollout=replace(batch.rollout, logprob=logprob))


@pytest.mark.parametrize(
    ("precision", "by", "tokens", "refused"),
    [
        (Precision.float32, 0.0011, 1, True),
        (Precision.float32, -0.0011, 1, True),
        (Precision.float32, 0.0005, None, True),
        (Precision.float32, 0.0005, 1, False),
        (Precision.bf16, 0.6, 1, True),
        (Precision.bf16, 0.1, None, True),
        (Precision.bf16, 0.1, 1, False),
    ],
)
def test_a_rollout_that_was_scored_otherwise_is_refused(
    precision: Precision, by: float, tokens: int | None, refused: bool
) -> None:
    algorithm = make(ppo_run(), make_runtime(precision))
    batches = algorithm.batches(0)
    off = moved(next(batches), by, tokens)

    def run(batch: Minibatch) -> None:
        with algorithm.runtime.autocast():
            algorithm.loss(algorithm.module, batch.parts(0, 1, None)[0])

    if refused:
        with pytest.raises(RunError, match="ppo: before the first step on batch 0 a log-ratio is"):
            run(off)
    else:
        run(off)
    run(moved(next(batches), by, tokens))  # later the policy may have moved


def test_another_temperature_than_that_of_the_rollout_is_refused(tmp_path: Path) -> None:
    algorithm = make(ppo_run(temperature=0.7))
    batch = first_batch(algorithm)
    algorithm.actor_critic.temperature = 1.0
    with pytest.raises(RunError, match="before the first step on batch 0"):
        run_batch(algorithm, batch)


def test_a_policy_that_scores_otherwise_than_it_samples_stops_before_a_step(tmp_path: Path) -> None:
    algorithm = make(ppo_run())
    algorithm.module = make(
        ppo_run()
    ).module  # another copy is trained: it is one at first, and not at the second batch
    seen: list[Tensor] = []
    with pytest.raises(RunError, match="before the first step on batch 1"):
        train(algorithm, settings(), tmp_path, lambda values: seen.append(weights(algorithm)))
    assert len(seen) == 6
    assert weights(algorithm).equal(seen[-1])
