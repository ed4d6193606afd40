"""PPO's batches and loss against a naive PPO that takes an episode and a token at a time."""

import math

import numpy as np
import pytest
import torch

from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.config.ppo import ValueNetwork, Whitening
from tests import tiny
from tests.algos.naive_ppo import (
    BETA,
    MAX_NEW_TOKENS,
    PROMPTS,
    Episode,
    assert_close,
    disturb,
    episodes,
    first_batch,
    make,
    naive_loss,
    ppo_run,
    rollout_of,
    same,
    score,
    small,
    whitened,
)

# --- the rollout


@pytest.mark.parametrize(
    ("network", "temperature", "shortest_limit"),
    [(ValueNetwork.shared, 1.0, None), (ValueNetwork.own, 0.7, None), (ValueNetwork.shared, 0.7, 1)],
)
def test_a_rollout_holds_the_sampled_completions_and_their_scores(
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
        assert_close(rollout.logprob, [episode.logprob for episode in expected])
        assert_close(rollout.value, [episode.value for episode in expected])
        assert rollout.value[rollout.mask].std() > 0.05
        # some sampled their EOS and some were cut
        assert 0 < algorithm.notes["ppo/eos_rate"] < 1
        assert len({len(episode.completion) for episode in expected}) > 2


@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("scope", list(Whitening))
def test_advantages_and_returns_are_the_naive_ones(scope: Whitening, whiten_rewards: bool, penalty: float) -> None:
    config = tiny.ppo(advantage_whitening=scope, whiten_rewards=whiten_rewards, missing_eos_penalty=penalty)
    algorithm = make(ppo_run(temperature=0.7, **vars(config)))
    expected = episodes(algorithm, 0, BETA)
    batches = algorithm.batches(0)
    minibatches = [next(batches) for _ in range(3)]
    rollout = rollout_of(algorithm)
    assert_close(rollout.returns, [episode.returns for episode in expected])
    assert_close(rollout.advantage, [episode.advantage for episode in expected])
    for minibatch in minibatches:
        owners = [int((rollout.returns == row).all(1).nonzero()) for row in minibatch.rollout.returns]
        advantages = [expected[owner].advantage for owner in owners]
        if scope == Whitening.minibatch:
            advantages = whitened(advantages, bessel=False)
        assert_close(minibatch.rollout.advantage, advantages, 1e-3)
        assert_close(minibatch.rollout.returns, [expected[owner].returns for owner in owners])


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_without_a_future_returns_are_the_rewards(whiten_rewards: bool) -> None:
    algorithm = make(ppo_run(gamma=0.0, whiten_rewards=whiten_rewards, missing_eos_penalty=2.0))
    expected = episodes(algorithm, 0, BETA)
    first_batch(algorithm)
    assert_close(rollout_of(algorithm).returns, [episode.rewards for episode in expected])


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
    assert any(token == 0 and int(rollout.mask[row].sum()) == MAX_NEW_TOKENS for row, token in enumerate(last))


def control_variate_kl(batch: list[Episode]) -> float:
    """k1 less its regression on the sum of ref / pi - 1, by least squares."""
    control = np.array([sum(math.expm1(r - p) for p, r in zip(e.logprob, e.ref_logprob, strict=True)) for e in batch])
    k1 = np.array([episode.kl for episode in batch])
    (intercept, _), *_ = np.linalg.lstsq(np.stack([np.ones(len(batch)), control], 1), k1, rcond=None)
    return float(intercept)


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
            "ppo/kl_cv": control_variate_kl(expected),
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
    assert_close(rollout_of(algorithm).returns, [[0.0] * (len(e.completion) - 1) + [e.score] for e in expected])
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


@pytest.mark.parametrize("network", list(ValueNetwork))
def test_every_ratio_is_1_at_first(network: ValueNetwork) -> None:
    algorithm = make(ppo_run(value=network, temperature=0.7))
    batch = first_batch(algorithm)
    loss, metrics = tiny.run_batch(algorithm, batch)
    assert metrics["ppo/ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["ppo/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["ppo/clip_fraction"] == metrics["ppo/value_clip_fraction"] == 0
    # the mean of whitened advantages is 0; values are what they were: half the mean square of advantages
    assert metrics["ppo/policy_loss"] == pytest.approx(0, abs=1e-5)
    rollout = batch.rollout
    residual = (rollout.value - rollout.returns)[rollout.mask]
    assert metrics["ppo/value_loss"] == pytest.approx(float(residual.square().mean()) / 2, rel=1e-4)
    assert loss == pytest.approx(0.1 * metrics["ppo/value_loss"], abs=1e-5)


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
    truth = tiny.gradients(algorithm.module)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert 0 < numbers["ppo/clip_fraction"] < 1 and 0 < numbers["ppo/value_clip_fraction"] < 1
    assert batch.size == sum(map(len, batch.rollout.mask.nonzero().tolist())) / 2
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert metrics == pytest.approx(numbers, rel=1e-3, abs=1e-5)
    assert (tiny.gradients(algorithm.module) - truth).norm() < 1e-3 * truth.norm()


def test_dropout_is_off_and_all_weights_are_trained() -> None:
    lm = small(1, dropout=0.5).train().requires_grad_(False)
    algorithm = PPO(
        tiny.policy(lm), small(2).train(), PROMPTS, score, ppo_run(value=ValueNetwork.own), tiny.runtime(), 1
    )
    batch = first_batch(algorithm)
    assert tiny.run_batch(algorithm, batch) == tiny.run_batch(algorithm, batch)
    assert not any(module.training for module in [*algorithm.module.modules(), *algorithm.reference.modules()])
    assert all(parameter.requires_grad for parameter in algorithm.module.parameters())


def test_it_is_made_from_inputs() -> None:
    policy = tiny.policy(small(1))
    inputs = tiny.FixedInputs(policy, small(2), tiny.runtime(), prompts=PROMPTS, scores=score, kl_coefficient=0.7)
    algorithm = PPO.from_inputs(inputs, ppo_run())
    assert (algorithm.coefficient, algorithm.steps, algorithm.period) == (0.7, 12, 6)
    assert algorithm.actor_critic.lm is policy.lm
    assert algorithm.summary_line() == (
        "2 batches of 12 episodes, 12 steps; ground_truth reward; KL coefficient 0.7 to begin with, target 2 nats"
    )
    assert (
        "coefficient 0.7 fixed" in PPO.from_inputs(inputs, ppo_run(target_kl=None, kl_coefficient=0.7)).summary_line()
    )


# --- the seed


def test_batches_are_functions_of_the_seed() -> None:
    runs = [list(make(ppo_run(seed)).batches(0)) for seed in (0, 0, 1)]
    for first, again, other in zip(*runs, strict=True):
        assert same(first.rollout, again.rollout) and first.notes == again.notes
        assert not same(first.rollout, other.rollout)
    assert not same(runs[0][0].rollout, runs[0][6].rollout)


def test_an_episode_does_not_depend_on_those_sampled_with_it() -> None:
    rollouts = []
    for size in (1, 5, 100):
        algorithm = make(ppo_run(rollout_batch_size=size))
        first_batch(algorithm)
        rollouts.append(rollout_of(algorithm))
    for rollout in rollouts[1:]:
        assert rollout.ids.equal(rollouts[0].ids)
        for name in ("logprob", "value", "advantage", "returns"):
            torch.testing.assert_close(getattr(rollout, name), getattr(rollouts[0], name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", list(Whitening))
def test_minibatches_of_a_pass_are_a_partition(scope: Whitening) -> None:
    algorithm = make(ppo_run(epochs=3, advantage_whitening=scope))
    random = np.random.default_rng(0)
    # so that equal episodes can be told apart
    algorithm.score = lambda prompt_ids, completion_ids: random.normal(size=len(prompt_ids))
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
    for batch, expected in zip(later, whole[7:], strict=True):
        assert batch.rollout.ids.equal(expected.rollout.ids)
        assert batch.rollout.logprob.equal(expected.rollout.logprob)
