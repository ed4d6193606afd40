"""GPT-2's own forward against transformers': values, the gradient of every parameter, and what may not take it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model, GPTJConfig, GPTJModel
from transformers.pytorch_utils import Conv1D

from imdb_rlhf.models import attention as rows_attention
from imdb_rlhf.models import gpt2
from imdb_rlhf.models.logprobs import hidden_states
from tests import tiny

SIZES = {"vocab_size": 23, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
# Rows, time, and what differs from SIZES.
SHAPES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "usual": (5, 9, {}),
    "one token": (1, 1, {}),
    "rows of one token": (5, 1, {}),
    "one row": (1, 9, {}),
    "a full context": (3, 16, {}),
    "one head and one layer": (3, 7, {"n_head": 1, "n_layer": 1}),
    "heads of width 1": (3, 7, {"n_embd": 5, "n_head": 5}),
    "an odd width of 3 heads of 5": (3, 7, {"n_embd": 15}),
    "prime sizes": (7, 11, {"n_embd": 13, "n_head": 1, "n_inner": 17, "n_layer": 3}),
    "an inner layer narrower than the state": (3, 7, {"n_inner": 5}),
    "a vocabulary of 1": (3, 7, {"vocab_size": 1}),
    "a vocabulary of 2": (3, 7, {"vocab_size": 2}),
    "another epsilon": (3, 7, {"layer_norm_epsilon": 0.3}),
    "longer than a block of 32": (2, 33, {"n_positions": 40}),
    "as long as a block of 32": (2, 32, {"n_positions": 40}),
    "the activation's other name": (3, 7, {"activation_function": "gelu_pytorch_tanh"}),
}


make = partial(tiny.scattered_gpt2, attention="eager", **SIZES, dropout=0.1)


def tokens(rows: int, time: int, vocabulary: int, seed: int = 1) -> Tensor:
    return torch.randint(vocabulary, (rows, time), generator=torch.Generator().manual_seed(seed))


def incoming(states: Tensor, seed: int = 2) -> Tensor:
    """A gradient of the states, in float64."""
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def collect(model: nn.Module, states: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """The states, and each parameter's gradient given that of the states, in float64."""
    model.zero_grad()
    states.backward(gradient.to(states.dtype))
    actual = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return actual | {"states": states.detach().double()}


def transformers_states(model: GPT2Model, ids: Tensor) -> Tensor:
    """The states that calling the model gives."""
    states = model(input_ids=ids, use_cache=False).last_hidden_state
    assert isinstance(states, Tensor)
    return states


def in_float64(model: GPT2Model, ids: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Transformers' states and gradients in double precision, the model's parameters taken as they are."""
    double = deepcopy(model).double()
    double.set_attn_implementation("eager")
    return collect(double, transformers_states(double, ids), gradient)


def assert_near(actual: dict[str, Tensor], truth: dict[str, Tensor], share: float) -> None:
    """Each tensor differs from the true one by at most a share of the true one's largest number."""
    assert actual.keys() == truth.keys()
    for name, tensor in truth.items():
        error, largest = float((actual[name] - tensor).abs().max()), float(tensor.abs().max())
        assert error <= share * largest, f"{name}: {error} of {largest}"


# --- values and gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_gradients_are_those_of_transformers(shape: str, attention: str) -> None:
    rows, time, changes = SHAPES[shape]
    model = make(attention=attention, **changes).transformer
    ids = tokens(rows, time, model.config.vocab_size)
    assert gpt2.is_plain(model)
    states = gpt2.states(model, ids)
    assert states.shape == (rows, time, model.config.n_embd)
    assert states.dtype == torch.float32
    gradient = incoming(states)
    truth = in_float64(model, ids, gradient)
    assert len(truth) == 1 + 4 + 12 * model.config.n_layer  # states; embeddings and last norm; layers
    assert_near(collect(model, states, gradient), truth, 1e-5)
    double = deepcopy(model).double()
    assert_near(collect(double, gpt2.states(double, ids), gradient), truth, 1e-12)


class Scores(TorchDispatchMode):
    """How many numbers each softmax gives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if "_softmax.default" in str(function):
            self.sizes.append(out.numel())
        return out


# The rows whose scores are allowed at once, what rows are filled up to multiples of, and those read together.
@pytest.mark.parametrize(
    ("allowed", "filled", "blocks"),
    [
        *[(0.001, 1, [1] * 5), (1, 1, [1] * 5), (2.5, 1, [2, 2, 1]), (4, 1, [4, 1]), (5, 1, [5]), (99, 1, [5])],
        *[(3, 4, [3, 2]), (4.5, 4, [4, 1]), (5, 4, [4, 1]), (7, 4, [4, 1]), (8, 4, [5])],
    ],
)
def test_attention_reads_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, allowed: float, filled: int, blocks: list[int]
) -> None:
    model, ids, row = make(n_positions=32).transformer, tokens(5, 32, 23), 3 * 32 * 32
    monkeypatch.setattr(rows_attention, "SCORES", int(allowed * row))
    monkeypatch.setattr(rows_attention, "ROWS", filled)
    with Scores() as forward:
        states = gpt2.states(model, ids)
    gradient = incoming(states)
    with Scores() as backward:
        actual = collect(model, states, gradient)
    assert forward.sizes == [-(-size // filled) * filled * row for size in blocks] * 2  # two layers
    assert backward.sizes == forward.sizes
    assert_near(actual, in_float64(model, ids, gradient), 1e-5)


# Heads of 12: weights of 32 columns are smaller than 3 * 12 numbers of each of 32 tokens, those of 64 larger.
@pytest.mark.parametrize("time", [9, 32, 33, 64])
def test_weights_are_kept_where_they_are_smaller_than_what_they_are_made_of(time: int) -> None:
    model, ids = make(n_positions=64, n_embd=36).transformer, tokens(5, time, 23)
    with Scores() as forward:
        states = gpt2.states(model, ids)
    gradient = incoming(states)
    with Scores() as backward:
        actual = collect(model, states, gradient)
    assert backward.sizes == ([] if time <= 32 else forward.sizes)
    assert_near(actual, in_float64(model, ids, gradient), 1e-5)


class Shapes(TorchDispatchMode):
    """The shapes of the factors of every product."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(function) for name in ("mm", "linear_pointwise")):
            factors = [x for x in args if isinstance(x, Tensor)]
            self.products.add((str(function), *(tuple(x.shape) for x in factors)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_many_lengths_make_products_of_rounded_up(dtype: torch.dtype) -> None:
    model, random = make(n_positions=64).transformer, torch.Generator().manual_seed(0)
    counts = []
    with Shapes() as shapes, torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        for _ in range(40):
            lengths = torch.randint(20, 64, (24,), generator=random)
            states, _ = gpt2.packed_states(model, tokens(24, 64, 23), lengths)
            states.float().sum().backward()
            counts.append(len(shapes.products))
    # 40 batches with as many numbers of tokens; the last 20 bring hardly a size that was not there
    assert counts[-1] < 1.25 * counts[19]
    assert counts[-1] < 200


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bf16_errs_at_most_twice_as_much_as_transformers(attention: str, parameters: torch.dtype) -> None:
    """Over every tensor's relative error, in three models: those of the states and of 28 parameters' gradients."""
    errors = {"own": 0.0, "transformers": 0.0}
    values = dict(errors)
    for seed in range(3):
        model = make(seed=seed, attention=attention, spread=0.15, n_embd=48, n_head=3).transformer.to(parameters)
        ids = tokens(12, 15, 23, seed)
        gradient = incoming(torch.empty(12, 15, 48), seed)
        truth = in_float64(model, ids, gradient)
        for which, forward in (("own", gpt2.states), ("transformers", transformers_states)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=parameters == torch.float32):
                states = forward(model, ids)
            assert states.dtype == parameters
            actual = collect(model, states, gradient)
            assert actual.keys() == truth.keys()
            relative = {name: float((actual[name] - t).norm() / t.norm()) for name, t in truth.items()}
            values[which] += relative.pop("states")
            errors[which] += sum(relative.values())
    assert values["transformers"] > 3 * 1e-3 and errors["transformers"] > 28 * 3 * 1e-3  # bf16 it was
    assert values["own"] <= 2 * values["transformers"]
    assert errors["own"] <= 2 * errors["transformers"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_stands_behind_a_row_changes_nothing(attention: str) -> None:
    model, ids, others = make(attention=attention).transformer, tokens(4, 9, 23), tokens(4, 9, 23, seed=9)
    inside = torch.arange(9) < torch.tensor([9, 1, 4, 6])[:, None]
    garbage = torch.where(inside, ids, others)
    assert not garbage.equal(ids)
    actual = []
    for given in (ids, garbage):
        states = gpt2.states(model, given)
        actual.append(collect(model, states, incoming(states) * inside[:, :, None]))
    actual[1]["states"], actual[0]["states"] = actual[1]["states"][inside], actual[0]["states"][inside]
    assert_near(actual[1], actual[0], 1e-7)
    for row, length in enumerate([9, 1, 4, 6]):
        alone = gpt2.states(model, ids[row : row + 1, :length])[0].double()
        together = collect(model, gpt2.states(model, garbage), incoming(states))["states"][row, :length]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


# --- rows of different lengths

RAGGED = [9, 1, 4, 16, 1, 6, 4, 15]


def cost(times: list[int], overhead: int, cuts: tuple[int, ...]) -> int:
    """Tokens read, and the overhead of blocks, where sorted rows are cut at these places."""
    edges = [0, *cuts, len(times)]
    return sum((end - begin) * times[end - 1] + overhead for begin, end in pairwise(edges))


@pytest.mark.parametrize("overhead", [0, 1, 7, 20, 1000])
@pytest.mark.parametrize(
    "lengths", [[5], [5, 5, 5], [1, 2], RAGGED, [20, 1, 1, 1], [1, 9, 2, 8, 3, 7, 4, 6], [30, 29, 2, 1]], ids=str
)
def test_rows_are_packed_at_the_least_cost(monkeypatch: pytest.MonkeyPatch, lengths: list[int], overhead: int) -> None:
    monkeypatch.setattr(gpt2, "BLOCK", overhead)
    blocks = gpt2.pack(lengths)
    assert sorted(row for rows, _ in blocks for row in rows) == list(range(len(lengths)))
    assert all(time == max(lengths[row] for row in rows) for rows, time in blocks)
    times = sorted(lengths)
    ways = (cuts for size in range(len(times)) for cuts in combinations(range(1, len(times)), size))
    assert sum(len(rows) * time + overhead for rows, time in blocks) == min(
        cost(times, overhead, cuts) for cuts in ways
    )


def test_long_rows_are_packed_with_little_padding_in_few_blocks() -> None:
    lengths = torch.randint(1, 1025, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    blocks = gpt2.pack(lengths)
    assert sorted(row for rows, _ in blocks for row in rows) == list(range(400))
    assert all(time == max(lengths[row] for row in rows) for rows, time in blocks)
    assert len(blocks) <= 17
    assert sum(len(rows) * time for rows, time in blocks) < 1.1 * sum(lengths)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("overhead", [0, 12, 10**6])
@pytest.mark.parametrize("lengths", [RAGGED, [1], [7], [1, 1, 1], [16, 1], [5, 5, 5]], ids=str)
def test_packed_states_and_gradients_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], overhead: int, attention: str
) -> None:
    monkeypatch.setattr(gpt2, "BLOCK", overhead)
    monkeypatch.setattr(rows_attention, "SCORES", 2 * 3 * 16 * 16)
    model, ids = make(attention=attention).transformer, tokens(len(lengths), max(lengths), 23)
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    gradient = incoming(torch.empty(*ids.shape, 12)) * inside[:, :, None]
    truth = in_float64(model, ids, gradient)
    truth["states"] = truth["states"][inside]
    states, first = gpt2.packed_states(model, ids, torch.tensor(lengths))
    assert states.dtype == torch.float32
    assert len(states) == sum(len(rows) * time for rows, time in gpt2.pack(lengths))
    places = torch.cat([begin + torch.arange(length) for begin, length in zip(first.tolist(), lengths, strict=True)])
    assert len(places.unique()) == sum(lengths)
    assert_near(collect(model, states[places], gradient[inside]), truth, 1e-5)


@pytest.mark.parametrize("columns", [1, 4, 32])
def test_what_scores_are_filled_up_with_changes_nothing(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(rows_attention, "COLUMNS", columns)
    model, ids = make().transformer, tokens(3, 9, 23)
    states = gpt2.states(model, ids)
    gradient = incoming(states)
    assert_near(collect(model, states, gradient), in_float64(model, ids, gradient), 1e-5)


# --- gradients, one by one and summed


def test_frozen_parameters_have_no_gradient_and_the_others_have_theirs() -> None:
    ids, free = tokens(3, 7, 23), ("h.1.mlp.c_fc.bias", "h.1.attn.c_attn.weight", "h.1.ln_2.weight", "wpe.weight")
    for names in [(name,) for name in free] + [free]:
        model = make().transformer
        gradient = incoming(torch.empty(3, 7, 12))
        truth = in_float64(model, ids, gradient)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        actual = collect(model, gpt2.states(model, ids), gradient)
        assert_near(actual, {name: truth[name] for name in (*names, "states")}, 1e-5)


def test_gradients_add_up_over_batches() -> None:
    model, ids = make().transformer, tokens(6, 7, 23)
    gradient = incoming(torch.empty(6, 7, 12))
    truth = in_float64(model, ids, gradient)
    for part in (slice(0, 2), slice(2, 6)):
        gpt2.states(model, ids[part]).backward(gradient[part].float())
    actual = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    truth.pop("states")
    assert_near(actual, truth, 1e-5)


# --- what it may be used for


def test_a_published_gpt2_is_plain_whatever_stands_on_it() -> None:
    lm = make()
    assert gpt2.is_plain(lm.transformer)
    assert gpt2.is_plain(lm.base_model)
    scored = GPT2ForSequenceClassification(GPT2Config(**SIZES, num_labels=1, pad_token_id=0))
    assert gpt2.is_plain(scored.eval().base_model)
    assert gpt2.is_plain(GPT2Model(GPT2Config(**SIZES)).eval())
    undropped = make(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    assert gpt2.is_plain(undropped.transformer)


class Low(nn.Module):
    """What adapters do to a layer: its own output and that of a product of low rank."""

    def __init__(self, layer: Conv1D) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.down, self.up = (nn.Linear(a, b, bias=False) for a, b in ((layer.nx, 2), (2, layer.nf)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) + self.up(self.down(x))
        assert isinstance(out, Tensor)
        return out


class Half(Conv1D):
    """A layer of a type derived from the published one."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x) / 2
        assert isinstance(out, Tensor)
        return out


class Shifted(GPT2Model):
    """A model of a type derived from the published one."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 1
        return output


def derived(model: GPT2Model) -> GPT2Model:
    other = Shifted(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


def adapted(place: str, layer: str) -> Callable[[GPT2Model], GPT2Model]:
    """A change that puts an adapter on one of the second block's layers."""

    def change(model: GPT2Model) -> GPT2Model:
        part = model.h[1].get_submodule(place)
        setattr(part, layer, Low(getattr(part, layer)))
        return model

    return change


def halved(model: GPT2Model) -> GPT2Model:
    model.h[0].mlp.c_fc.__class__ = Half
    return model


def hooked_after(model: GPT2Model) -> GPT2Model:
    model.h[1].mlp.register_forward_hook(lambda module, args, out: out * 2)
    return model


def hooked_before(model: GPT2Model) -> GPT2Model:
    model.h[0].mlp.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def configured(**changes: Any) -> Callable[[GPT2Model], GPT2Model]:
    """A change that makes the model another one of the same parameters."""

    def change(model: GPT2Model) -> GPT2Model:
        config = GPT2Config(**(model.config.to_dict() | changes))
        config._attn_implementation = model.config._attn_implementation
        other = GPT2Model(config).eval()
        other.load_state_dict(model.state_dict(), strict=False)
        return other

    return change


CHANGES: dict[str, Callable[[GPT2Model], GPT2Model]] = {
    "a derived type": derived,
    "a derived layer": halved,
    "an adapter on c_attn": adapted("attn", "c_attn"),
    "an adapter on attention's c_proj": adapted("attn", "c_proj"),
    "an adapter on c_fc": adapted("mlp", "c_fc"),
    "an adapter on the mlp's c_proj": adapted("mlp", "c_proj"),
    "a hook after a part": hooked_after,
    "a hook before a part": hooked_before,
    "exact gelu": configured(activation_function="gelu"),
    "relu": configured(activation_function="relu"),
    "scores that are not scaled": configured(scale_attn_weights=False),
    "scores scaled by the layer": configured(scale_attn_by_inverse_layer_idx=True),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_gpt2_goes_through_transformers(change: str, attention: str) -> None:
    lm, ids = make(attention=attention), tokens(3, 7, 23)
    with torch.no_grad():
        before = gpt2.states(lm.transformer, ids)
        lm.transformer = CHANGES[change](lm.transformer)
        assert not gpt2.is_plain(lm.transformer)
        actual, expected = hidden_states(lm, ids), transformers_states(lm.transformer, ids)
        # where it matters: the published function gives something else
        assert (before - expected).abs().max() > 1e-4 * expected.abs().max()
    assert actual.equal(expected)


class Twice(nn.Module):
    """Any part, wrapped as adapters and shards do: its attributes are the part's, its output is not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("part"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.part(*args, **kwargs)
        return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out


@pytest.mark.parametrize(
    "place", ["wte", "wpe", "drop", "ln_f", "h.0", "h.0.ln_1", "h.0.ln_2", "h.1.attn", "h.1.mlp", "h.1.mlp.act"]
)
def test_a_gpt2_with_any_part_wrapped_goes_through_transformers(place: str) -> None:
    lm, ids = make(), tokens(3, 7, 23)
    *path, name = place.split(".")
    parent = lm.transformer.get_submodule(".".join(path))
    wrapped = Twice(lm.transformer.get_submodule(place))
    parent.register_module(name, wrapped)
    assert not gpt2.is_plain(lm.transformer)
    assert hidden_states(lm, ids).equal(transformers_states(lm.transformer, ids))


@pytest.mark.parametrize("place", ["", "h.0", "h.1.attn", "h.0.mlp.c_fc"])
def test_a_forward_replaced_on_one_module_is_called(place: str) -> None:
    """As offloading does it."""
    lm, calls = make(), []
    module = lm.transformer.get_submodule(place)
    forward = module.forward

    def replaced(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = replaced
    assert not gpt2.is_plain(lm.transformer)
    hidden_states(lm, tokens(3, 7, 23))
    assert calls == [1]


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_hook_on_gradients_is_called(kind: str) -> None:
    lm, calls = make(), []
    getattr(lm.transformer.h[0].mlp, kind)(lambda *args: calls.append(1))
    assert not gpt2.is_plain(lm.transformer)
    hidden_states(lm, tokens(3, 7, 23)).sum().backward()
    assert calls == [1]


def test_dropout_is_a_layers_own() -> None:
    lm = make(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0).train()
    lm.transformer.h[1].mlp.dropout.p = 0.5
    assert not gpt2.is_plain(lm.transformer)
    lm.eval()
    assert gpt2.is_plain(lm.transformer)
    lm.transformer.h[1].mlp.dropout.train()
    assert not gpt2.is_plain(lm.transformer)


def test_an_embedding_that_renormalises_goes_through_transformers() -> None:
    lm, ids = make(), tokens(3, 7, 23)
    lm.transformer.wte.max_norm = 0.5
    assert not gpt2.is_plain(lm.transformer)
    assert hidden_states(lm, ids).equal(transformers_states(lm.transformer, ids))


@pytest.mark.parametrize(("option", "value"), [("padding_idx", 3), ("scale_grad_by_freq", True), ("sparse", True)])
def test_an_embedding_with_gradients_of_its_own_goes_through_transformers(option: str, value: object) -> None:
    model = make().transformer
    setattr(model.wte, option, value)
    assert not gpt2.is_plain(model)


def test_a_hook_on_all_modules_is_called() -> None:
    lm, ids = make(), tokens(3, 7, 23)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: 2 * out if isinstance(module, nn.Embedding) else None
    )
    try:
        assert not gpt2.is_plain(lm.transformer)
        assert hidden_states(lm, ids).equal(transformers_states(lm.transformer, ids))
    finally:
        handle.remove()
    assert gpt2.is_plain(lm.transformer)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("under", [False, True])
def test_gradients_are_the_same_where_backward_is_under_autocast(attention: str, under: bool) -> None:
    model, ids = make(attention=attention).transformer, tokens(3, 7, 23)
    gradient, actual = incoming(torch.empty(3, 7, 12)), []
    for backward_too in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=under):
            states = gpt2.states(model, ids)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward_too):
            actual.append(collect(model, states, gradient))
    assert all(tensor.equal(actual[0][name]) for name, tensor in actual[1].items())


@pytest.mark.parametrize("options", [{"reorder_and_upcast_attn": True}, {"add_cross_attention": True}])
def test_other_attention_is_not_plain(options: dict[str, bool]) -> None:
    model = configured(**options)(make().transformer)
    assert not gpt2.is_plain(model)


def test_a_forward_that_a_library_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, ids, calls = make(), tokens(3, 7, 23), []
    forward = GPT2Model.forward

    def replaced(self: GPT2Model, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"])
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GPT2Model, "forward", replaced)
        assert not gpt2.is_plain(lm.transformer)
        hidden_states(lm, ids)
    assert len(calls) == 1 and calls[0].equal(ids)
    assert gpt2.is_plain(lm.transformer)
    hidden_states(lm, ids)
    assert len(calls) == 1


def test_another_architecture_goes_through_transformers() -> None:
    torch.manual_seed(0)
    model = GPTJModel(GPTJConfig(**SIZES, rotary_dim=4, bos_token_id=0, eos_token_id=0)).eval()
    assert not gpt2.is_plain(model)
    ids = tokens(3, 7, 23)
    assert hidden_states(model, ids).equal(transformers_states(model, ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rate", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_dropout_drops_in_training_alone(rate: str, attention: str) -> None:
    rates: dict[str, Any] = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0) | {rate: 0.4}
    lm, ids = make(attention=attention, **rates), tokens(3, 7, 23)
    assert gpt2.is_plain(lm.transformer)
    calm = hidden_states(lm, ids)
    lm.train()
    assert not gpt2.is_plain(lm.transformer)
    torch.manual_seed(5)
    first, second = hidden_states(lm, ids), hidden_states(lm, ids)
    assert not first.equal(second) and not first.equal(calm)
    torch.manual_seed(5)
    assert first.equal(transformers_states(lm.transformer, ids))
    lm.eval()
    assert hidden_states(lm, ids).equal(calm)


@pytest.mark.parametrize("amx", [False, True])
def test_what_backward_computes_again_or_keeps_is_the_same(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    """With AMX GELU's product is computed again, and one factor is copied; both kinds of processor run it here."""
    monkeypatch.setattr("imdb_rlhf.models.gpt2.has_amx", lambda: amx)
    lm = tiny.scattered_gpt2(seed=2, spread=0.15, vocabulary=61, width=48, context=32)
    ids = torch.randint(61, (9, 20), generator=torch.Generator().manual_seed(2))
    exact = deepcopy(lm).double()
    for model, dtype in ((lm, torch.bfloat16), (exact, None)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            gpt2.states(model.transformer, ids).double().square().sum().backward()
    for (name, parameter), other in zip(lm.transformer.named_parameters(), exact.transformer.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert (parameter.grad - other.grad).norm() <= 0.05 * other.grad.norm() + 1e-3, name
