"""REINFORCE, RLOO, GRPO and online DPO an episode at a time, and trained by the loop: crashes, refusals, bf16."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.config.machine import Precision
from imdb_rlhf.config.online_algos import Baseline, KLPlace, LengthNorm
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.seeds import generator
from imdb_rlhf.training import checkpoint
from tests import tiny
from tests.algos.naive_ppo import MAX_NEW_TOKENS, PROMPTS, disturb, draw_completion, next_logprobs, reward
from tests.algos.online_methods import BETA, KINDS, make, run_of, train

every_method = pytest.mark.parametrize("name", list(KINDS))
GROUPED = [name for name in KINDS if name != "reinforce"]


@torch.no_grad()
def episodes(algorithm: Any, number: int) -> list[dict[str, Any]]:
    """Batch `number` under the present weights, an episode at a time, its random numbers drawn as the seeds say."""
    run, stage, group = algorithm.run, algorithm.stage, algorithm.group
    batch = []
    for position in range(number * 12, number * 12 + 12):
        turn = position // group
        order = generator(run.seed, f"{stage}/prompts", turn // len(PROMPTS)).permutation(len(PROMPTS))
        prompt = PROMPTS[order[turn % len(PROMPTS)]]
        completion, finished = draw_completion(algorithm.policy.lm, prompt, run, position, stage)
        logprob, ref_logprob = (
            [
                float(next_logprobs(lm, prompt + completion[:at], run.generation.temperature)[token])
                for at, token in enumerate(completion)
            ]
            for lm in (algorithm.policy.lm, algorithm.reference.lm)
        )
        total = reward(prompt, completion) - (0 if finished else run.online.missing_eos_penalty)
        batch.append({"prompt": prompt, "completion": completion, "logprob": logprob, "ref": ref_logprob, "r": total})
    return batch


def penalised(episode: dict[str, Any]) -> float:
    return episode["r"] - BETA * (sum(episode["logprob"]) - sum(episode["ref"]))


def in_groups(values: list[Any], size: int = 4) -> list[list[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


# --- the batch


@every_method
def test_a_batch_holds_the_sampled_completions(name: str) -> None:
    algorithm = make(name, temperature=0.7, missing_eos_penalty=0.5)
    for number in (0, 1):
        expected = episodes(algorithm, number)
        next(algorithm.batches(number * algorithm.period))
        rollout = algorithm.rollout
        for row, episode in enumerate(expected):
            start, length = int(rollout.starts[row]), int(rollout.lengths[row])
            assert rollout.ids[row, :start].tolist() == episode["prompt"]
            assert rollout.ids[row, start:length].tolist() == episode["completion"]
            tokens = len(episode["completion"])
            assert rollout.logprob[row, :tokens].tolist() == pytest.approx(episode["logprob"], abs=1e-4)
            assert rollout.ref_logprob[row, :tokens].tolist() == pytest.approx(episode["ref"], abs=1e-4)
        kl = np.mean([sum(episode["logprob"]) - sum(episode["ref"]) for episode in expected])
        scores = [episode["r"] for episode in expected]
        notes = algorithm.notes
        assert notes["rollout/kl"] == pytest.approx(kl, abs=1e-4)
        assert notes["rollout/score"] == pytest.approx(np.mean(scores), abs=1e-4)
        assert notes["rollout/objective"] == pytest.approx(np.mean(scores) - BETA * kl, abs=1e-4)
        assert notes["rollout/episodes"] == 12 * (number + 1)
        if algorithm.group > 1:  # neighbours have one prompt
            prompts = in_groups([episode["prompt"] for episode in expected], algorithm.group)
            assert all(len({tuple(prompt) for prompt in group}) == 1 for group in prompts)


def test_reinforce_subtracts_the_mean_of_the_others() -> None:
    algorithm = make("reinforce")
    rewards = [penalised(episode) for episode in episodes(algorithm, 0)]
    batch = next(algorithm.batches(0))
    wanted = [own - (sum(rewards) - own) / 11 for own in rewards]
    assert algorithm.rollout.advantage.tolist() == pytest.approx(wanted, abs=1e-4)
    assert batch.size == 12 and algorithm.steps == 2


def test_the_moving_average_is_that_of_all_batches_before() -> None:
    algorithm = make("reinforce", baseline=Baseline.moving_average, episodes=36)
    means: list[float] = []
    for number in range(3):
        rewards = [penalised(episode) for episode in episodes(algorithm, number)]
        next(algorithm.batches(number))
        baseline = np.mean(means) if means else None
        wanted = [own - ((sum(rewards) - own) / 11 if baseline is None else baseline) for own in rewards]
        assert algorithm.rollout.advantage.tolist() == pytest.approx(wanted, abs=1e-4)
        means.append(float(np.mean(rewards)))


def test_rloo_subtracts_the_mean_of_the_prompt_s_others() -> None:
    algorithm = make("rloo")
    groups = in_groups([penalised(episode) for episode in episodes(algorithm, 0)])
    next(algorithm.batches(0))
    wanted = [own - (sum(group) - own) / 3 for group in groups for own in group]
    assert algorithm.rollout.advantage.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("kl_in", list(KLPlace))
def test_grpo_s_advantages(kl_in: KLPlace, scale: bool) -> None:
    algorithm = make("grpo", kl_in=kl_in, scale_advantages=scale)
    batch = episodes(algorithm, 0)
    groups = in_groups([penalised(one) if kl_in == KLPlace.reward else one["r"] for one in batch])
    next(algorithm.batches(0))
    wanted = [
        (own - np.mean(group)) / (np.std(group, ddof=1) + 1e-4 if scale else 1) for group in groups for own in group
    ]
    assert algorithm.rollout.advantage.tolist() == pytest.approx(wanted, abs=1e-3)


def test_online_dpo_prefers_the_better_one() -> None:
    algorithm = make("online_dpo")
    batch = episodes(algorithm, 0)
    next(algorithm.batches(0))
    for first, second in combinations(range(12), 2):
        if first // 4 != second // 4:
            continue
        gap = batch[first]["r"] - batch[second]["r"]
        same = batch[first]["completion"] == batch[second]["completion"]
        wins = algorithm.rollout.wins
        assert bool(wins[first, second % 4]) == (gap > 0 and not same)
        assert bool(wins[second, first % 4]) == (gap < 0 and not same)


def test_bradley_terry_labels_have_their_chances() -> None:
    """Two completions with rewards 1 and 0: the better one wins with chance sigmoid(1 / tau)."""
    algorithm = make(
        "online_dpo", labels=Labels.bradley_terry, tau=0.5, k=2, episodes=600, batch_size=600, minibatch_size=600
    )
    algorithm.score = lambda prompt_ids, completion_ids: np.array([float(row[0] > 4) for row in completion_ids])
    next(algorithm.batches(0))
    rollout = algorithm.rollout
    first = rollout.ids.gather(1, rollout.starts[:, None])[:, 0] > 4
    better, worse = first[::2] & ~first[1::2], ~first[::2] & first[1::2]
    won = torch.where(better, rollout.wins[::2, 1], rollout.wins[1::2, 0])[better | worse]
    chance, count = 1 / (1 + math.exp(-2)), len(won)
    assert count > 100
    assert abs(float(won.double().mean()) - chance) < 4 * math.sqrt(chance * (1 - chance) / count)
    # of each pair of different completions exactly one wins
    wins = rollout.wins.reshape(-1, 2, 2)
    assert not wins.diagonal(dim1=1, dim2=2).any()
    assert ((wins[:, 0, 1] ^ wins[:, 1, 0]) | ~(wins[:, 0, 1] | wins[:, 1, 0])).all()


# --- the loss


def naive_logprobs(algorithm: Any, prompt: list[int], completion: list[int]) -> list[torch.Tensor]:
    lm, temperature = algorithm.policy.lm, algorithm.run.generation.temperature
    return [next_logprobs(lm, prompt + completion[:at], temperature)[token] for at, token in enumerate(completion)]


def naive_loss(name: str, algorithm: Any, rollout: Any) -> torch.Tensor:
    """The mean loss of a minibatch, an episode and a token at a time."""
    rows = []
    for row in range(len(rollout.ids)):
        start, length = int(rollout.starts[row]), int(rollout.lengths[row])
        prompt, completion = rollout.ids[row, :start].tolist(), rollout.ids[row, start:length].tolist()
        old, ref = (table[row, : length - start].tolist() for table in (rollout.logprob, rollout.ref_logprob))
        rows.append((naive_logprobs(algorithm, prompt, completion), old, ref))

    def clipped(ratio: torch.Tensor, advantage: float) -> torch.Tensor:
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)

    losses: list[torch.Tensor] = []
    if name == "online_dpo":
        margins = [sum(new) - sum(ref) for new, _, ref in rows]
        for row in range(len(rows)):
            for other in range(4):
                if rollout.wins[row, other]:
                    h = margins[row] - margins[row // 4 * 4 + other]
                    losses.append(-torch.log(1 / (1 + torch.exp(-BETA * h))))
        return torch.stack(losses).mean()
    for (new, old, ref), advantage in zip(rows, rollout.advantage.tolist(), strict=True):
        if name == "reinforce":
            losses.append(-advantage * sum(new))
        elif name == "rloo":
            losses.append(clipped(torch.exp(sum(new) - sum(old)), advantage))
        else:
            config = algorithm.run.grpo
            tokens = []
            for logprob, before, reference in zip(new, old, ref, strict=True):
                tokens.append(clipped(torch.exp(logprob - before), advantage))
                gap, ratio = reference - logprob, torch.exp(logprob - before)
                if config.kl_in != KLPlace.reward:
                    weight = ratio if config.kl_in == KLPlace.loss_corrected else 1
                    tokens[-1] = tokens[-1] + BETA * (torch.exp(gap) - gap - 1) * weight
            divisor = len(tokens) if config.length_norm == LengthNorm.completion else MAX_NEW_TOKENS
            losses.append(torch.stack(tokens).sum() / divisor)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("limit", [pytest.param(None, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("reinforce", {}),
        ("rloo", {}),
        ("grpo", {}),
        ("grpo", {"kl_in": KLPlace.loss_corrected}),
        ("grpo", {"kl_in": KLPlace.reward, "scale_advantages": False, "length_norm": LengthNorm.constant}),
        ("online_dpo", {}),
    ],
)
def test_the_loss_and_its_gradient_are_the_naive_ones(name: str, changes: dict[str, Any], limit: int | None) -> None:
    groups: dict[str, Any] = {} if name == "reinforce" else {"minibatch_size": 12}
    algorithm = make(name, temperature=0.7, **groups, **changes)
    batches = algorithm.batches(0)
    batch = next(batches)
    if name != "reinforce":  # its second batch is sampled from the weights that have moved
        disturb(algorithm)
        batch = next(batches)
    expected = naive_loss(name, algorithm, batch.rollout)
    expected.backward()
    truth = tiny.gradients(algorithm.module)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-5)
    assert (tiny.gradients(algorithm.module) - truth).norm() < 1e-3 * truth.norm()
    if name in ("rloo", "grpo"):
        assert 0 < metrics["train/clip_fraction"] < 1


@pytest.mark.parametrize("name", GROUPED)
def test_minibatches_hold_whole_groups(name: str) -> None:
    algorithm = make(name)
    batches = algorithm.batches(0)
    for _ in range(2):  # two passes
        seen: list[tuple[int, ...]] = []
        for _ in range(3):
            batch = next(batches)
            prompts = {
                tuple(row[: int(start)])
                for row, start in zip(batch.rollout.ids.tolist(), batch.rollout.starts, strict=True)
            }
            assert len(batch.rollout.ids) == 4 and len(prompts) == 1
            seen += prompts
        assert len(set(seen)) == 3
    assert algorithm.period == 6 and algorithm.steps == 12


def test_a_step_without_a_pair_changes_nothing(tmp_path: Path) -> None:
    algorithm = make("online_dpo")
    algorithm.score = lambda prompt_ids, completion_ids: np.zeros(len(prompt_ids))  # all tie
    before = tiny.weights(algorithm.module)
    assert train(algorithm, tmp_path) == []
    assert tiny.weights(algorithm.module).equal(before)


# --- training


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("reinforce", {"baseline": Baseline.moving_average, "episodes": 48}),
        ("rloo", {}),
        pytest.param("grpo", {}, marks=pytest.mark.slow),
        ("online_dpo", {"labels": Labels.bradley_terry}),
    ],
)
def test_a_run_goes_on_bit_for_bit(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    straight = make(name, **changes)
    rows = train(straight, tmp_path / "straight")
    for step in (3, 4) if name == "reinforce" else (3, 7):  # in a batch, between two
        place = tmp_path / str(step)
        with pytest.raises(tiny.Crash):
            train(make(name, **changes), place, tiny.crash_at(step), checkpoint_every=step - 1)
        last = checkpoint.load(place)
        assert last is not None and last.step == step - 1
        resumed = make(name, **changes)
        disturb(resumed)
        assert train(resumed, place, checkpoint_every=step - 1) == [row for row in rows if row["step"] > last.step]
        assert tiny.weights(resumed.module).equal(tiny.weights(straight.module))
        assert resumed.report() == straight.report()
    assert not tiny.weights(straight.module).equal(tiny.weights(make(name, **changes).module))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "grpo" else ()) for name in KINDS]
)
def test_bf16_trains(name: str, tmp_path: Path) -> None:
    algorithm = make(name, tiny.runtime(Precision.bf16))
    before = tiny.weights(algorithm.module)
    assert train(algorithm, tmp_path)
    assert {p.dtype for p in algorithm.module.parameters()} == {torch.float32}
    assert not tiny.weights(algorithm.module).equal(before)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "rloo" else ()) for name in KINDS]
)
def test_it_learns(name: str, tmp_path: Path) -> None:
    groups: dict[str, Any] = {} if name == "reinforce" else {"minibatch_size": 64, "epochs": 1}
    algorithm = make(name, beta=0.01, episodes=960, batch_size=64, **groups)
    # the score is the share of token 3
    algorithm.score = lambda prompt_ids, completion_ids: np.array([row.count(3) / len(row) for row in completion_ids])
    rows = train(algorithm, tmp_path)
    assert rows[-1]["rollout/score"] > rows[0]["rollout/score"] + 0.2
    report = algorithm.report()["online"]
    assert report["episodes"] == 960
    assert report["kl_last_fifth"] == pytest.approx(np.mean([row["rollout/kl"] for row in rows[-3:]]))


@every_method
def test_a_score_that_is_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    algorithm = make(name)
    algorithm.score = lambda prompt_ids, completion_ids: np.full(len(prompt_ids), math.nan)
    with pytest.raises(RunError, match=f"^{name}: a score of batch 0 is not finite"):
        train(algorithm, tmp_path)


@every_method
def test_a_rollout_that_was_scored_otherwise_is_refused(name: str) -> None:
    algorithm = make(name)
    batch = next(algorithm.batches(0))
    disturb(algorithm)
    with pytest.raises(RunError, match=f"^{name}: before the first step on batch 0 .* set {name}.precision=float32"):
        tiny.run_batch(algorithm, batch)


# --- the run


@every_method
def test_it_is_made_from_inputs(name: str) -> None:
    algorithm = make(name)
    inputs = tiny.FixedInputs(algorithm.policy, algorithm.reference.lm, tiny.runtime(), prompts=PROMPTS)
    other = ALGOS[name].from_inputs(inputs, algorithm.run)
    assert type(other) is type(algorithm) is KINDS[name].method
    each = "" if name == "reinforce" else " (4 per prompt)"
    steps = 2 if name == "reinforce" else 12
    assert other.summary_line() == f"2 batches of 12 episodes{each}, {steps} steps; ground_truth reward; beta 0.3"
    assert algorithm.run.knob == ("beta", 0.3) and algorithm.run.variant == "ground_truth"


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("reinforce", {}, "REINFORCE-GT"),
        ("rloo", {"reward": RewardSource.learned}, "RLOO"),
        ("grpo", {}, "GRPO-GT"),
        ("grpo", {"scale_advantages": False}, "GRPO-GT"),
        ("grpo", {"scale_advantages": False, "length_norm": LengthNorm.constant}, "Dr. GRPO-GT"),
        ("online_dpo", {"reward": RewardSource.learned}, "Online DPO"),
    ],
)
def test_its_name_in_figures(name: str, changes: dict[str, Any], wanted: str) -> None:
    run = run_of(name, **changes)
    assert KINDS[name].method.method_name({name: vars(getattr(run, name))}, run.variant) == wanted


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rloo", {"minibatch_size": 5}, "rloo.minibatch_size=5 does not divide rloo.batch_size=12; choose a divisor"),
        ("grpo", {"minibatch_size": 6}, "grpo.minibatch_size=6 is not a multiple of grpo.k=4, the completions per"),
        ("rloo", {"k": 1}, "rloo.k=1 is out of range; give a number of at least 2"),
        ("reinforce", {"batch_size": 1}, "reinforce.batch_size=1 leaves a baseline of no episode; give at least 2"),
        ("reinforce", {"episodes": 11}, "reinforce.episodes=11 is less than one batch (reinforce.batch_size=12)"),
        (
            "rloo",
            {"scale": "logit", "reward": RewardSource.learned},
            "rloo.scale=logit is a scale of the true reward, and rloo.reward=learned has its own",
        ),
        ("online_dpo", {"tau": 0.5}, "online_dpo.tau=0.5 is used by online_dpo.labels=bradley_terry alone"),
        ("online_dpo", {"labels": Labels.noisy}, "online_dpo.labels=noisy flips pairs that are stored"),
        ("online_dpo", {"beta": 0.0}, "beta=0.0 gives DPO's loss no slope"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(name, **changes)
    assert str(caught.value).startswith(message)


@every_method
def test_a_minibatch_that_processes_cannot_share_is_refused(name: str) -> None:
    run = run_of(name)
    with pytest.raises(ConfigError, match="cannot be shared among trainer.processes=8 by whole groups of"):
        type(run)(**{**vars(run), "trainer": tiny.trainer(processes=8), "sft": tiny.sft(batch_size=8)})
