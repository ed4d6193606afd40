"""The reward model's split, and its losses against naive sums over pairs and groups."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from imdb_rlhf.algos.reward_model import RewardModel, choice_accuracy, held_out
from imdb_rlhf.config.families import LearnedRun
from imdb_rlhf.config.reward import Objective
from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import draw_pairs
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.heads import RewardHead
from tests import tiny

EOS = 0


def table(rewards: list[list[float]], seed: int = 0) -> pd.DataFrame:
    """A group per list of rewards; prompts and completions are random and hardly ever equal."""
    random = np.random.default_rng(seed)
    rows = []
    for prompt, group in enumerate(rewards):
        prompt_ids = [1 + prompt % 18, *random.integers(1, 19, size=1 + prompt % 3).tolist()]
        for sample, reward in enumerate(group):
            completion_ids = [*random.integers(1, 19, size=2 + sample).tolist(), EOS]
            rows.append(
                dict.fromkeys(COLUMNS, "")
                | {"prompt_id": prompt, "sample_id": sample, "prompt_ids": prompt_ids}
                | {
                    "completion_ids": completion_ids,
                    "finished": True,
                    "reward": reward,
                    "reward_logit": reward,
                    "ref_logprob": 0.0,
                }
            )
    return pd.DataFrame(rows)


def run_of(**changes: Any) -> LearnedRun:
    return tiny.run(LearnedRun, reward_model=tiny.reward_model(seed=3, **changes))


def make(folder: Path, groups: pd.DataFrame, run: LearnedRun) -> RewardModel:
    """The reward model on the artifact of these groups."""
    groups.to_parquet(folder / "groups.parquet", index=False)
    head = RewardHead(tiny.gpt2_scorer(0, layers=1, spread=0.3))
    return RewardModel.from_artifacts(head, folder, EOS, run)


def alone(network: RewardHead, groups: pd.DataFrame, row: int) -> torch.Tensor:
    """The score of one row of the table without padding."""
    ids = [*groups["prompt_ids"][row], *groups["completion_ids"][row]]
    return network(torch.tensor([ids]), torch.tensor([len(ids)]))[0]


@pytest.mark.parametrize("objective", list(Objective))
def test_nothing_to_learn_from_is_one_line(tmp_path: Path, objective: Objective) -> None:
    with pytest.raises(RunError) as caught:
        make(tmp_path, table([[1.0, 1.0]] * 5), run_of(objective=objective))
    message = str(caught.value)
    assert message.startswith("reward_model: no ") and "5 equal rewards" in message and "another reward" in message
    assert "\n" not in message


# --- the split

PREFIXES = [(at, at % 7) for at in range(1000)]


def test_a_prefix_is_on_one_side() -> None:
    repeated = [prefix for prefix in PREFIXES for _ in range(3)]
    sides = held_out(repeated, np.ones(3000, bool), 0.3, 0).reshape(1000, 3)
    assert (sides == sides[:, :1]).all()
    assert abs(sides[:, 0].mean() - 0.3) < 4 * math.sqrt(0.21 / 1000)


def test_the_side_is_a_function_of_seed_and_prefix() -> None:
    usable = np.ones(1000, bool)
    sides = held_out(PREFIXES, usable, 0.3, 0)
    assert held_out(PREFIXES[::-1], usable, 0.3, 0)[::-1].tolist() == sides.tolist()
    assert held_out(PREFIXES[500:], usable[500:], 0.3, 0).tolist() == sides[500:].tolist()
    other = held_out(PREFIXES, usable, 0.3, 1)
    assert 0.32 < (other != sides).mean() < 0.52  # independent: 2 x 0.3 x 0.7
    larger = held_out(PREFIXES, usable, 0.5, 0)
    assert (larger | ~sides).all()


def test_both_sides_have_a_usable_prefix() -> None:
    for seed in range(40):
        for portion in (0.01, 0.5):
            usable = np.array([True, False, True, False])
            sides = held_out([(1,), (2,), (3,), (4,)], usable, portion, seed)
            assert sides[usable].sum() == 1


def test_two_prefixes_are_needed() -> None:
    with pytest.raises(RunError, match="only one prompt has completions with distinct rewards"):
        held_out([(1,), (1,), (2,)], np.array([True, True, False]), 0.3, 0)


def test_prompts_with_the_same_tokens_stay_together(tmp_path: Path) -> None:
    groups = table([[0.0, 1.0, 2.0, 3.0]] * 40)
    groups["prompt_ids"] = [[2, 1 + prompt // 2] if prompt < 30 else [3, prompt] for prompt in groups["prompt_id"]]
    groups["prompt_ids"] = [[token % 19 for token in ids] for ids in groups["prompt_ids"]]
    algorithm = make(tmp_path, groups, run_of())
    sides = [
        {tuple(groups["prompt_ids"][row]) for row in np.unique(choices.rows)}
        for choices in (algorithm.training, algorithm.validation)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(algorithm.training.rows) + len(algorithm.validation.rows) == 240
    held = {tuple(groups["prompt_ids"][row]) for row in np.flatnonzero(algorithm.held_out)}
    assert held == sides[1]


# --- accuracy


def test_the_accuracy_of_a_choice() -> None:
    scores = np.array([[2.0, 1.0, 9.0], [1.0, 2.0, 0.0], [3.0, 3.0, 9.0], [1.0, 1.0, 1.0]])
    mask = np.array([[True, True, False], [True] * 3, [True, True, False], [True] * 3])
    assert choice_accuracy(scores, mask).tolist() == pytest.approx([1, 0, 1 / 2, 1 / 3])


# --- the loss

REWARDS = [[0.0, 1.0, 2.0, 3.0], [3.0, 0.0, 2.0], [1.0, 5.0, 2.0, 0.5], [0.0, 2.0], [4.0, 1.0, 0.0, 7.0]] * 2


def naive(network: RewardHead, groups: pd.DataFrame, batch: Any, objective: Objective) -> torch.Tensor:
    """The mean of -log softmax over each choice, every completion scored alone and as often as it occurs."""
    losses = []
    for row, mask in zip(batch.rankings, batch.mask, strict=True):
        scores = torch.stack([alone(network, groups, int(at)) for at in row[mask]])
        best = scores.detach().new_tensor([groups["reward_logit"][int(at)] for at in row[mask]])
        assert int(best.argmax()) == 0
        losses.append(scores.logsumexp(0) - scores[0])
        if objective == Objective.pairs:
            assert len(scores) == 2
            # -log sigmoid(r_w - r_l) = log(1 + exp(r_l - r_w))
            torch.testing.assert_close(losses[-1], torch.log1p((scores[1] - scores[0]).exp()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("objective", list(Objective))
def test_loss_and_gradient_are_those_of_choices_one_by_one(
    tmp_path: Path, objective: Objective, limit: int | None
) -> None:
    groups = table(REWARDS)
    algorithm = make(tmp_path, groups, run_of(objective=objective))
    network = cast(RewardHead, algorithm.module)
    batch = next(algorithm.batches(0))
    assert batch.size == 5
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    gradient = tiny.gradients(network)
    expected = naive(network, groups, batch, objective)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, tiny.gradients(network), atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        wins = [
            all(alone(network, groups, int(row[0])) > alone(network, groups, int(at)) for at in row[1:][mask[1:]])
            for row, mask in zip(batch.rankings, batch.mask, strict=True)
        ]
    assert metrics == {"train/accuracy": pytest.approx(np.mean(wins))}


def test_a_completion_of_several_pairs_is_scored_once(tmp_path: Path) -> None:
    algorithm = make(tmp_path, table([[0.0, 1.0, 2.0, 3.0]] * 12), run_of(batch_size=12))
    (part,) = next(algorithm.batches(0)).parts(0, 1, None)
    assert len(part.rankings) == 12 and len(part.rows.ids) == 8  # two prompts


def test_processes_share_a_batch(tmp_path: Path) -> None:
    groups = table(REWARDS)
    algorithm = make(tmp_path, groups, run_of(objective=Objective.best_of_k, batch_size=4))
    batch = next(algorithm.batches(0))
    with torch.no_grad():
        whole = sum(float(algorithm.loss(algorithm.module, part)[0]) for part in batch.parts(0, 1, None))
        shared = [float(algorithm.loss(algorithm.module, p)[0]) for rank in (0, 1) for p in batch.parts(rank, 2, None)]
    assert len(shared) == 2 and sum(shared) == pytest.approx(whole, rel=1e-5)


def test_each_pass_has_every_pair_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    groups = table([[0.0, 1.0, 2.0, 3.0]] * 12)
    algorithm = make(tmp_path, groups, run_of(batch_size=6))
    count = len(algorithm.training.rows)
    assert count % 6 == 0 and algorithm.steps == 2 * count // 6
    seen = [tuple(row) for batch in algorithm.batches(0) for row in batch.rankings.tolist()]
    assert seen[:count] != seen[count:] and sorted(seen[:count]) == sorted(seen[count:])
    assert [b.rankings.tolist() for b in algorithm.batches(3)] == [b.rankings.tolist() for b in algorithm.batches(0)][
        3:
    ]
    # the pairs are all of each training group, the higher reward first
    rows = draw_pairs(groups, tiny.pairs(), 3).rows
    assert len(rows) == 72
    expected = sorted(tuple(row) for row in rows.tolist() if not algorithm.held_out[row[0]])
    assert sorted(seen[:count]) == expected
    assert all(best > worst for best, worst in expected)
    prompts = {best // 4 for best, _ in expected}
    assert set(expected) == {(b, a) for p in prompts for a, b in combinations(range(4 * p, 4 * p + 4), 2)}


@pytest.mark.parametrize("objective", list(Objective))
def test_validation_is_over_the_held_out_choices(tmp_path: Path, objective: Objective) -> None:
    groups = table(REWARDS)
    algorithm = make(tmp_path, groups, run_of(objective=objective))
    network = cast(RewardHead, algorithm.module)
    losses, right = [], []
    with torch.no_grad():
        for row, mask in zip(algorithm.validation.rows, algorithm.validation.mask, strict=True):
            scores = torch.stack([alone(network, groups, int(at)) for at in row[mask]])
            losses.append(float(scores.logsumexp(0) - scores[0]))
            right.append(float(scores.argmax() == 0))
    assert algorithm.validate(3) == pytest.approx(
        {"eval/accuracy": np.mean(right), "eval/loss": np.mean(losses)}, rel=1e-5
    )


def test_pairs_of_a_preference_file_are_taken_as_they_are(tmp_path: Path) -> None:
    groups = table([[0.0, 1.0]] * 10)
    rows = np.array([[2 * at, 2 * at + 1] for at in range(10)])  # the lower reward was preferred
    np.savez(tmp_path / "pairs.npz", rows=rows, prompts=np.arange(10))
    (tmp_path / "report.json").write_text('{"dropped": {}}')
    algorithm = make(tmp_path, groups, run_of())
    choices = np.concatenate([algorithm.training.rows, algorithm.validation.rows])
    assert sorted(choices.tolist()) == rows.tolist()
