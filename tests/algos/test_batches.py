"""The examples of a step, and their share per process."""

import numpy as np
import pytest

from imdb_rlhf.algos.batches import Stream, share, steps_for


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "steps"),
    [(64, 64, 1.0, 1), (65, 64, 1.0, 2), (100, 10, 0.3, 3), (100, 10, 0.31, 4), (3, 64, 1.0, 1), (7, 2, 2.0, 7)],
)
def test_steps_of_so_many_passes(examples: int, batch_size: int, epochs: float, steps: int) -> None:
    assert steps_for(examples, batch_size, epochs) == steps


def test_a_stream_reads_epochs_one_after_the_other() -> None:
    orders = {0: np.array([2, 0, 1]), 1: np.array([1, 2, 0]), 2: np.array([0, 1, 2])}
    stream = Stream(3, 2, lambda epoch: orders[epoch])
    assert [stream.at(step).tolist() for step in range(4)] == [[2, 0], [1, 1], [2, 0], [0, 1]]
    assert stream.at(1).tolist() == [1, 1]  # any step, without those before it


def test_a_batch_may_span_several_epochs() -> None:
    stream = Stream(2, 5, lambda epoch: np.array([0, 1]) if epoch % 2 == 0 else np.array([1, 0]))
    assert stream.at(0).tolist() == [0, 1, 1, 0, 0]


def test_an_epoch_holds_every_example_once() -> None:
    stream = Stream(12, 4, lambda epoch: np.random.default_rng(epoch).permutation(12))
    for epoch in range(3):
        seen = np.concatenate([stream.at(3 * epoch + step) for step in range(3)])
        assert sorted(seen.tolist()) == list(range(12))


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_and_pieces_share_a_batch_out_whole(world: int, limit: int | None) -> None:
    items = np.arange(24).reshape(12, 2)
    pieces = [share(items, rank, world, limit) for rank in range(world)]
    assert np.array_equal(np.concatenate([piece for own in pieces for piece in own]), items)
    for own in pieces:
        assert sum(map(len, own)) == 12 // world
        assert max(map(len, own)) <= (limit or 12)
    # all ranks have equally many pieces; otherwise gradient averaging would wait for ever
    assert len({len(own) for own in pieces}) == 1
