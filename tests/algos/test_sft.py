"""SFT against a plain cross-entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from imdb_rlhf.algos.sft import SFT, held_out_loss
from imdb_rlhf.config.stages import SFTConfig
from imdb_rlhf.models.policy import Policy
from tests import tiny


def make_policy(dropout: float = 0.0) -> Policy:
    return tiny.policy(tiny.gpt2(0, layers=1, spread=0.3, dropout=dropout))


def make_rows(count: int = 7) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(1, 19, size=2 + i % 5).astype(np.int32) for i in range(count)]


def config(seed: int = 3) -> SFTConfig:
    return tiny.sft(seed=seed, epochs=2.0, batch_size=3)


def plain(lm: PreTrainedModel, row: np.ndarray) -> torch.Tensor:
    """Summed loss of one row."""
    ids = torch.as_tensor(row.astype(np.int64))[None]
    return F.cross_entropy(lm(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_the_loss_of_a_batch_is_the_mean_over_its_predicted_tokens(limit: int | None) -> None:
    policy, rows = make_policy(), make_rows()
    algorithm = SFT(policy, rows, config())
    batch = next(algorithm.batches(0))
    chosen = [rows[i] for i in batch.chosen]
    assert len(chosen) == 3 and len({len(row) for row in chosen}) > 1
    tokens = sum(len(row) - 1 for row in chosen)
    assert batch.size == tokens
    expected = sum(plain(policy.lm, row) for row in chosen) / tokens
    torch.as_tensor(expected).backward()
    expected_gradient = tiny.gradients(policy.lm)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert metrics == {}
    assert loss == pytest.approx(float(torch.as_tensor(expected).detach()), abs=1e-5)
    assert all(parameter.grad is not None for parameter in policy.lm.parameters())
    torch.testing.assert_close(tiny.gradients(policy.lm), expected_gradient, atol=1e-5, rtol=1e-4)


def test_every_row_is_seen_once_an_epoch_and_batches_can_be_had_from_any_step() -> None:
    rows = make_rows(9)
    algorithm = SFT(make_policy(), rows, config())
    assert algorithm.steps == 6
    every = [batch.chosen.tolist() for batch in algorithm.batches(0)]
    assert sorted(sum(every[:3], [])) == sorted(sum(every[3:], [])) == list(range(9))
    assert every[:3] != every[3:]
    assert [batch.chosen.tolist() for batch in algorithm.batches(4)] == every[4:]
    again = SFT(make_policy(), rows, config())
    assert [batch.chosen.tolist() for batch in again.batches(0)] == every
    other = SFT(make_policy(), rows, config(seed=4))
    assert [batch.chosen.tolist() for batch in other.batches(0)] != every


def test_dropout_is_off() -> None:
    algorithm = SFT(make_policy(dropout=0.5), make_rows(), config())
    part = next(algorithm.batches(0)).parts(0, 1, None)[0]
    first, second = (float(algorithm.loss(algorithm.module, part)[0].detach()) for _ in range(2))
    assert first == second


def test_held_out_loss_is_the_mean_over_all_tokens_whatever_the_batch() -> None:
    policy, rows = make_policy(), make_rows()
    with torch.no_grad():
        expected = float(sum(plain(policy.lm, row) for row in rows)) / sum(len(row) - 1 for row in rows)
    for batch_size in (1, 3, 100):
        assert held_out_loss(policy, rows, batch_size) == pytest.approx(expected, abs=1e-5)


def test_a_frozen_policy_is_thawed() -> None:
    policy = make_policy()
    policy.lm.requires_grad_(False)
    SFT(policy, make_rows(), config())
    assert all(p.requires_grad for p in policy.lm.parameters())
