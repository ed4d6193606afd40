"""Rollouts and minibatches by hand: a choice of episodes, pieces of similar length, aligned and padded values."""

import numpy as np
import pytest
import torch

from imdb_rlhf.algos.rollout import Minibatch, Rollout, aligned, padded


def rollout(lengths: list[tuple[int, int]]) -> Rollout:
    """A rollout of episodes with so many tokens of prompt and completion; row i holds i + 1, or its quarters."""
    time, tokens = max(sum(pair) for pair in lengths) + 2, max(new for _, new in lengths) + 1
    starts, news = (torch.tensor(column) for column in zip(*lengths, strict=True))
    numbers = torch.arange(1, len(lengths) + 1)
    mask = torch.arange(tokens) < news[:, None]
    ids = (torch.arange(time) < (starts + news)[:, None]) * numbers[:, None]
    quarters = [mask * numbers[:, None] / divisor for divisor in (1, 2, 3, 4)]
    return Rollout(ids, starts, starts + news, mask, *quarters)


def minibatch(lengths: list[tuple[int, int]], *, first: bool = False, skipped: bool = False) -> Minibatch:
    return Minibatch(rollout(lengths), {}, first, skipped)


def test_some_episodes_without_the_columns_that_none_of_them_reaches() -> None:
    some = rollout([(2, 1), (5, 4), (1, 3)]).at(torch.tensor([2, 0])).trimmed()
    assert some.ids.tolist() == [[3, 3, 3, 3], [1, 1, 1, 0]]
    assert (some.starts.tolist(), some.lengths.tolist()) == ([1, 2], [4, 3])
    assert some.mask.tolist() == [[True, True, True], [True, False, False]]
    assert some.logprob.tolist() == [[3, 3, 3], [1, 0, 0]]
    assert some.value.tolist() == [[1.5, 1.5, 1.5], [0.5, 0, 0]]
    assert some.advantage.tolist() == [[1, 1, 1], [pytest.approx(1 / 3), 0, 0]]
    assert some.returns.tolist() == [[0.75, 0.75, 0.75], [0.25, 0, 0]]


def test_a_minibatch_is_as_large_as_its_tokens() -> None:
    assert minibatch([(2, 1), (5, 4), (1, 3)]).size == 8


@pytest.mark.parametrize(
    ("episodes", "world", "limit", "sizes"),
    [
        (40, 1, None, [32, 8]),  # pieces of at least 32
        (200, 1, None, [50, 50, 50, 50]),  # and at most four of them
        (202, 1, None, [51, 51, 51, 49]),
        (200, 2, None, [32, 32, 32, 4]),
        (40, 2, 7, [7, 7, 6]),  # unless a piece may only be smaller
    ],
)
def test_processes_share_the_episodes_in_pieces_of_similar_length(
    episodes: int, world: int, limit: int | None, sizes: list[int]
) -> None:
    random = np.random.default_rng(0)
    batch = minibatch([(int(random.integers(2, 9)), int(random.integers(1, 25))) for _ in range(episodes)], first=True)
    seen: list[int] = []
    for rank in range(world):
        pieces = batch.parts(rank, world, limit)
        assert [len(piece.ids) for piece, _ in pieces] == sizes
        assert all(first for _, first in pieces)
        lengths = [piece.lengths.tolist() for piece, _ in pieces]
        assert sum(lengths, []) == sorted(sum(lengths, []))
        assert [piece.ids.shape[1] for piece, _ in pieces] == [max(row) for row in lengths]
        own = [int(row[0]) - 1 for piece, _ in pieces for row in piece.ids]
        assert sorted(own) == list(range(rank * episodes // world, (rank + 1) * episodes // world))
        seen += own
    assert sorted(seen) == list(range(episodes))


def test_a_skipped_step_computes_nothing() -> None:
    assert minibatch([(2, 1), (5, 4)], skipped=True).parts(0, 1, None) == []


def test_values_are_shifted_to_begin_at_the_completion() -> None:
    values = torch.arange(1.0, 11.0).reshape(2, 5)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert aligned(values, torch.tensor([2, 4]), mask).tolist() == [[3, 4, 5], [10, 0, 0]]


def test_rows_of_different_lengths_are_padded_with_zeros() -> None:
    table = padded([np.array([1.5, 2.5]), np.array([]), np.array([3.0])], 3)
    assert table.dtype == torch.float32
    assert table.tolist() == [[1.5, 2.5, 0], [0, 0, 0], [3, 0, 0]]
