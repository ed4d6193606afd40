"""The action value's head against its formula, state by state, and its tilt against a plain mean of exponentials."""

from pathlib import Path

import numpy as np
import pytest
import torch

from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.value import HELD, ActionValue, ValueHead, load_value, make_value, save_value
from tests import tiny

CENTRES = torch.linspace(-1, 2, 7)


def scattered(head: ValueHead, seed: int = 1) -> ValueHead:
    """A head whose states' map is not 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.3, generator=random)
    return head


def network(own: bool = True) -> ActionValue:
    made = make_value(tiny.gpt2(spread=0.3), CENTRES, 3, 0, own=own)
    scattered(made.head)
    return made.eval()


def logits_by_hand(head: ValueHead, state: np.ndarray, token: int) -> np.ndarray:
    """(A_b s + a_b) . e_v + c_b s + d_b, bin by bin, in float64."""
    weight, bias = (part.detach().double().numpy() for part in (head.of_state.weight, head.of_state.bias))
    table = head.of_token.detach().double().numpy()
    values = []
    for number in range(len(CENTRES)):
        rows = slice(number * (head.rank + 1), (number + 1) * (head.rank + 1))
        factors = weight[rows] @ state + bias[rows]
        values.append(factors[:-1] @ table[token] + factors[-1])
    return np.array(values)


def test_the_logits_are_bilinear_in_state_and_token() -> None:
    head = scattered(ValueHead(16, 19, CENTRES, 3, 0))
    states, tokens = torch.randn(5, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 18, 3, 3, 7])
    logits = head(states, tokens).detach().numpy()
    for at, token in enumerate(tokens.tolist()):
        assert logits[at] == pytest.approx(logits_by_hand(head, states[at].double().numpy(), token), abs=1e-5)


def test_a_fresh_head_gives_every_token_the_same_law() -> None:
    head = ValueHead(16, 19, CENTRES, 3, 0)
    logits = head(torch.ones(4, 1) * torch.randn(16), torch.tensor([1, 2, 3, 4])).detach()
    assert torch.equal(logits, logits[:1].expand(4, -1)) and not logits[0, 3].abs() > 1e-5  # the middle bin
    # linear in the bins' rewards: odds of the form of a reward head's
    assert torch.allclose(logits[0], (CENTRES - CENTRES[3]) * (logits[0, 6] / (CENTRES[6] - CENTRES[3])), atol=1e-5)
    assert not torch.equal(head.of_token, ValueHead(16, 19, CENTRES, 3, 1).of_token)
    assert torch.equal(head.of_token, ValueHead(16, 19, CENTRES, 3, 0).of_token)
    tilts = head.log_tilt(torch.randn(4, 16), 0.5, slice(0, 19))
    assert torch.allclose(tilts, tilts[:, :1].expand(-1, 19)) and tilts[:, 0].unique().numel() == 4


@pytest.mark.parametrize("held", [1, 1 << 19])
@pytest.mark.parametrize("beta", [1e-3, 0.3, 5.0])
def test_the_tilt_is_the_log_of_the_mean_exponential(beta: float, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a beta where exp(r / beta) has no float32, too; a token or many at once."""
    monkeypatch.setitem(HELD, "cpu", held)
    head = scattered(ValueHead(16, 19, CENTRES, 3, 0))
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    tilts = head.log_tilt(states, beta, slice(4, 19))
    assert tilts.shape == (5, 15)
    for at in range(5):
        for token in range(4, 19):
            logs = logits_by_hand(head, states[at].double().numpy(), token)
            logs -= np.logaddexp.reduce(logs)
            wanted = np.logaddexp.reduce(logs + CENTRES.double().numpy() / beta)
            assert float(tilts[at, token - 4]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_padding_and_company_change_no_logit() -> None:
    value = network()
    prompts, completions = [[3], [4, 5, 6]], [[7, 8, 0], [9]]
    rows = Rows.of(prompts, completions)
    together = value(rows.ids, rows.starts, rows.lengths)
    alone = []
    for prompt, completion in zip(prompts, completions, strict=True):
        states = value.lm.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        for at, token in enumerate(completion):
            state = states[len(prompt) - 1 + at].detach().double().numpy()
            alone.append(logits_by_hand(value.head, state, token))
    assert together.detach().numpy() == pytest.approx(np.stack(alone), abs=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_only_what_is_its_own_is_trained(own: bool) -> None:
    value = network(own)
    rows = Rows.of([[3]], [[7, 8]])
    value(rows.ids, rows.starts, rows.lengths).square().sum().backward()
    assert value.head.of_state.weight.grad is not None and value.head.of_token.grad is not None
    gradients = [parameter.grad is not None for parameter in value.lm.base_model.parameters()]
    assert all(gradients) if own else not any(gradients)


@pytest.mark.parametrize("own", [True, False])
def test_it_is_loaded_as_it_was_saved(own: bool, tmp_path: Path) -> None:
    value, reference = network(own), tiny.gpt2(spread=0.3)
    with torch.no_grad():
        if own:
            value.lm.base_model.wte.weight.add_(0.1)
    save_value(value, tmp_path / "value")
    again = load_value(tmp_path / "value", reference, "eager")
    assert again.own is own and again.head.centres.equal(CENTRES)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    rows = Rows.of([[3], [4, 5, 6]], [[7, 8, 0], [9]])
    first, second = (each(rows.ids, rows.starts, rows.lengths) for each in (value, again))
    assert torch.allclose(first, second, atol=1e-6)
    (tmp_path / "value" / "head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="cannot be loaded as a value network"):
        load_value(tmp_path / "value", reference, "eager")
