"""The training of the action value: bins by hand, its loss token by token."""

from typing import cast

import numpy as np
import pytest
import torch

from imdb_rlhf.algos.value import Rewarded, ValueBatch, ValueLearning, bins_of, centres_of, held_out_loss
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.value import ActionValue, make_value
from tests import tiny
from tests.models.test_value import scattered

PROMPTS, COMPLETIONS = [[3], [4, 5, 6], [2, 1]], [[7, 8, 0], [9], [5, 5]]
BINS = np.array([0, 3, 1])


def learning(batch_size: int = 3, epochs: float = 1.0) -> ValueLearning:
    network = make_value(tiny.gpt2(spread=0.3), torch.linspace(0, 1, 4), 3, 0, own=True)
    scattered(network.head)
    return ValueLearning(network, Rewarded(PROMPTS, COMPLETIONS, BINS), batch_size, epochs, 0)


def test_bins_are_even_over_the_range_of_the_rewards() -> None:
    rewards = np.array([-1.0, 3.0, 0.99, 1.0, 2.0])
    centres = centres_of(rewards, 4)
    assert centres == pytest.approx([-0.5, 0.5, 1.5, 2.5])
    assert bins_of(rewards, centres).tolist() == [0, 3, 1, 2, 3]
    assert bins_of(np.array([-9.0, 9.0]), centres).tolist() == [0, 3]  # others' rewards may be beyond
    with pytest.raises(RunError, match="all completions have the same reward"):
        centres_of(np.array([0.5, 0.5]), 4)


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_the_loss_is_a_mean_over_completion_tokens(limit: int | None) -> None:
    algorithm = learning()
    network = cast(ActionValue, algorithm.module)
    batch = next(algorithm.batches(0))
    assert isinstance(batch, ValueBatch) and batch.size == 6
    losses = []
    for prompt, completion, number in zip(PROMPTS, COMPLETIONS, BINS, strict=True):
        states = network.lm.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        for at, token in enumerate(completion):
            logits = network.head(states[len(prompt) - 1 + at][None], torch.tensor([token]))[0]
            losses.append(-logits.log_softmax(-1)[number])
    expected = torch.stack(losses).mean()
    expected.backward()
    gradient = tiny.gradients(network)
    loss, _ = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(network) - gradient).norm() < 1e-4 * gradient.norm()


def test_every_pass_takes_each_completion_once() -> None:
    algorithm = learning(batch_size=1, epochs=2.0)
    assert algorithm.steps == 6
    chosen = [int(batch.chosen[0]) for batch in algorithm.batches(0)]
    assert sorted(chosen[:3]) == sorted(chosen[3:]) == [0, 1, 2]


def test_the_held_out_loss_is_beside_that_of_a_histogram() -> None:
    algorithm = learning()
    loss, constant = held_out_loss(cast(ActionValue, algorithm.module), algorithm.data, 2)
    assert loss == pytest.approx(tiny.run_batch(algorithm, next(algorithm.batches(0)))[0], rel=1e-5)
    law = np.array([3, 2, 1]) / 6  # tokens of the bins 0, 1 and 3
    assert constant == pytest.approx(-(law * np.log(law)).sum())
