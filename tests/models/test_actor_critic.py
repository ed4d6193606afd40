"""Log-probs and values of PPO's policy, a row at a time; what its own and a shared value network share."""

from functools import partial

import pytest
import torch
from torch import Tensor

from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.models.actor_critic import ActorCritic
from imdb_rlhf.models.logprobs import LogProbs, Rows
from tests import tiny

BOTH = list(ValueNetwork)


gpt2 = partial(tiny.gpt2, context=24, spread=0.3)


def actor_critic(network: ValueNetwork, temperature: float = 1.0) -> ActorCritic:
    """One that has been trained, so to speak: the head is not zero, and an own network is no copy any more."""
    model = ActorCritic(gpt2(), temperature, network).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        model.head.weight.normal_()
        model.head.bias.fill_(0.3)
        if model.critic is not None:
            for parameter in model.critic.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def rows() -> Rows:
    """Prompts of one token and more; completions of one token, of many and of none."""
    random = torch.Generator().manual_seed(5)
    sizes = [(1, 1), (4, 9), (8, 0), (1, 12), (3, 1), (6, 5)]
    prompts, completions = (
        [torch.randint(19, (pair[side],), generator=random).tolist() for pair in sizes] for side in (0, 1)
    )
    return Rows.of(prompts, completions)


def naive(model: ActorCritic, batch: Rows) -> tuple[Tensor, Tensor]:
    """Log-probs and values, a row and a token at a time, without padding."""
    logprobs, values = torch.zeros(batch.ids.shape), torch.zeros(batch.ids.shape)
    trunk = model.lm.transformer if model.critic is None else model.critic
    for row, (ids, start, length) in enumerate(zip(batch.ids, batch.starts, batch.lengths, strict=True)):
        alone = ids[None, : int(length)]
        logits, states = model.lm(input_ids=alone).logits[0], trunk(input_ids=alone).last_hidden_state[0]
        for at in range(int(start), int(length)):
            logprobs[row, at] = (logits[at - 1] / model.temperature).log_softmax(-1)[ids[at]]
            values[row, at] = (states[at - 1] * model.head.weight[0]).sum() + model.head.bias[0]
    return logprobs, values


def gradients(model: ActorCritic) -> dict[str, Tensor]:
    """Of the parameters that have any, but for those that are all 0."""
    parts = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    return parts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("network", BOTH)
def test_both_are_the_naive_ones(network: ValueNetwork, temperature: float) -> None:
    model, batch = actor_critic(network, temperature), rows()
    outputs, expected = model(batch.ids, batch.starts, batch.lengths), naive(model, batch)
    for output, target in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, target, atol=1e-5, rtol=1e-5)
    values = outputs[1][1, 4:13]
    assert values.std() > 0.1  # one position further would be seen
    torch.testing.assert_close(
        outputs[0], LogProbs(model.lm, temperature)(batch.ids, batch.starts, batch.lengths), atol=0, rtol=0
    )


@pytest.mark.parametrize("network", BOTH)
def test_gradients_are_those_of_the_naive_ones(network: ValueNetwork) -> None:
    model, batch = actor_critic(network, 0.7), rows()
    weights = torch.randn(2, *batch.ids.shape, generator=torch.Generator().manual_seed(3))
    outputs = model(batch.ids, batch.starts, batch.lengths)
    (torch.stack(outputs) * weights).sum().backward()
    actual = gradients(model)
    (torch.stack(naive(model, batch)) * weights).sum().backward()
    truths = gradients(model)
    assert actual.keys() == truths.keys()
    for name, truth in truths.items():
        assert (actual[name] - truth).norm() < 1e-4 * truth.norm(), name


@pytest.mark.parametrize("network", BOTH)
def test_values_begin_at_zero(network: ValueNetwork) -> None:
    batch = rows()
    _, values = ActorCritic(gpt2(), 1.0, network)(batch.ids, batch.starts, batch.lengths)
    assert not values.any()


@pytest.mark.parametrize("network", BOTH)
def test_the_value_loss_moves_the_policy_only_where_they_share_a_network(network: ValueNetwork) -> None:
    model, batch = actor_critic(network), rows()
    _, values = model(batch.ids, batch.starts, batch.lengths)
    values.square().sum().backward()
    by_value = set(gradients(model))
    logprobs, _ = model(batch.ids, batch.starts, batch.lengths)
    logprobs.sum().backward()
    by_policy = set(gradients(model))
    assert {"head.weight", "head.bias"} <= by_value
    assert not {"head.weight", "head.bias"} & by_policy
    assert all(name.startswith("lm.") for name in by_policy)
    if network == ValueNetwork.own:
        assert all(name.startswith(("critic.", "head.")) for name in by_value)
        assert any(name.startswith("critic.h.0") for name in by_value)
    else:
        assert model.critic is None
        assert any(name.startswith("lm.transformer.h.0") for name in by_value)


def test_an_own_network_is_a_copy() -> None:
    lm = gpt2()
    model = ActorCritic(lm, 1.0, ValueNetwork.own)
    assert model.critic is not None
    policy, copy = lm.transformer.state_dict(), model.critic.state_dict()
    assert policy.keys() == copy.keys()
    assert all(copy[name].equal(weight) for name, weight in policy.items())
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    with torch.no_grad():
        for parameter in [*model.critic.parameters(), *model.head.parameters()]:
            parameter += 1
    assert all(lm.state_dict()[name].equal(weight) for name, weight in before.items())


@pytest.mark.parametrize("network", BOTH)
def test_padding_changes_nothing(network: ValueNetwork) -> None:
    model, batch = actor_critic(network), rows()
    expected = model(batch.ids, batch.starts, batch.lengths)
    random = torch.Generator().manual_seed(1)
    time = torch.arange(20)
    wide = torch.randint(19, (6, 20), generator=random)
    wide[:, : batch.ids.shape[1]] = torch.where(
        time[: batch.ids.shape[1]] < batch.lengths[:, None], batch.ids, wide[:, : batch.ids.shape[1]]
    )
    outputs = model(wide, batch.starts, batch.lengths)
    for output, target in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output[:, : target.shape[1]], target, atol=1e-5, rtol=1e-5)
        assert not output[:, target.shape[1] :].any()
    alone = model(batch.ids[1:2], batch.starts[1:2], batch.lengths[1:2])
    for output, target in zip(alone, expected, strict=True):
        torch.testing.assert_close(output, target[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", BOTH)
def test_bf16_is_near_float32_and_gives_float32(network: ValueNetwork) -> None:
    model, batch = actor_critic(network), rows()
    expected = model(batch.ids, batch.starts, batch.lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch.ids, batch.starts, batch.lengths)
    for output, target in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float32
        assert 0 < (output - target).abs().max() < 0.2
