"""The scalar head: its score of a row is that of the row alone, wherever padding stands and whatever it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from imdb_rlhf.models.heads import RewardHead, make_reward_head, score_rows
from tests import tiny

PAD = 0  # the end of text pads, and may be sampled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lm")
    tiny.gpt2(spread=0.3).save_pretrained(place)
    return place


def by_hand(head: RewardHead, row: list[int]) -> float:
    """The weights' product with the last state of a row without padding."""
    with torch.no_grad():
        state = head.model.transformer(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        return float(state @ head.model.score.weight[0])


ROWS = [[3, 4, 5, 6, 7], [8, 0], [0], [9, 1, 0, 0]]  # 0 at the end was sampled


def test_the_score_is_read_at_the_last_token_of_each_row(folder: Path) -> None:
    head = make_reward_head(folder, "eager", 0, PAD)
    for padding in (0, 7):
        ids = torch.full((4, 8), padding)
        for at, row in enumerate(ROWS):
            ids[at, : len(row)] = torch.tensor(row)
        scores = head(ids, torch.tensor([len(row) for row in ROWS]))
        assert scores.shape == (4,) and scores.dtype == torch.float32
        assert scores.tolist() == pytest.approx([by_hand(head, row) for row in ROWS], abs=1e-5)


def test_a_head_is_drawn_from_its_seed_on_the_layers_of_the_folder(folder: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (make_reward_head(folder, "eager", seed, PAD) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    assert first.layer.weight.equal(again.layer.weight)
    assert not first.layer.weight.equal(other.layer.weight)
    body = GPT2LMHeadModel.from_pretrained(folder).transformer.state_dict()
    assert all(first.model.transformer.state_dict()[name].equal(weight) for name, weight in body.items())


def test_the_heads_weights_have_variance_one_over_width_plus_one(folder: Path) -> None:
    drawn = torch.cat([make_reward_head(folder, "eager", seed, PAD).layer.weight[0].detach() for seed in range(60)])
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * (1 / 17 / 960) ** 0.5)
    # the variance of n draws has the relative standard deviation sqrt(2 / n)
    assert float(drawn.var()) == pytest.approx(1 / 17, rel=4 * (2 / 960) ** 0.5)


def test_dropout_is_off_and_weights_can_be_trained(folder: Path) -> None:
    head = make_reward_head(folder, "eager", 0, PAD)
    assert not any(module.training for module in head.modules())
    head(torch.tensor([[3, 4]]), torch.tensor([2])).sum().backward()
    assert all(p.grad is not None for p in (head.layer.weight, head.model.transformer.wte.weight))


def test_a_gain_multiplies_all_scores(folder: Path) -> None:
    head = make_reward_head(folder, "eager", 0, PAD)
    before = score_rows(head, ROWS, [[]] * 4, 4)
    head.scale(2.5)
    np.testing.assert_allclose(score_rows(head, ROWS, [[]] * 4, 4), 2.5 * before, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_rows_are_scored_in_their_order_whatever_the_batches(folder: Path, batch_size: int) -> None:
    head = make_reward_head(folder, "eager", 0, PAD)
    scores = score_rows(head, [row[:1] for row in ROWS], [row[1:] for row in ROWS], batch_size)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [by_hand(head, row) for row in ROWS], atol=1e-5)
    assert score_rows(head, [], [], batch_size).shape == (0,)


def test_bf16_rounds_the_layers_and_not_the_score(folder: Path) -> None:
    head = make_reward_head(folder, "eager", 0, PAD)
    exact = score_rows(head, ROWS, [[]] * 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = score_rows(head, ROWS, [[]] * 4, 4)
    assert (rounded != exact).any()
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    as_bf16 = torch.tensor(rounded, dtype=torch.float64).bfloat16().double().numpy()
    assert (as_bf16 != rounded).any()
