"""What the package takes for granted about a causal LM, held against the model itself when it comes from outside.

Scoring pads on the right and passes no mask, sampling reads one token at a time through a cache, and log-probs multiply
states with the output layer in blocks. A model that works otherwise would give wrong numbers in silence.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.errors import RunError, first_line
from imdb_rlhf.models.decoding import open_decoder
from imdb_rlhf.models.logprobs import hidden_states, output_layer

# The largest logit that an output layer is checked with.
LARGEST = 200.0
# Rows that a model is checked on: at most this many tokens; the lengths of rows and prompts as parts of it.
TOKENS, ROWS, PROMPTS = 128, (1.0, 0.6, 0.3, 0.1), (0.25, 0.5, 0.25, 0.1)
# The largest difference between two ways to read the same row, in standard deviations of the logits. Rounding in
# float32 makes 1e-5 to 1e-4, a token that is not remembered 0.1 and more.
TOLERANCE = 2e-3

# What older versions of transformers stored beside weights: masks, positions and frequencies, which models make anew.
MADE_ANEW = re.compile(r"(inv_freq|masked_bias|(attn|attention)\.bias|position_ids|token_type_ids)$")


def check_weights(model: PreTrainedModel, loaded: Mapping[str, Any], folder: Path, key: str, kind: str) -> None:
    """Refuse a folder whose weights and configuration are of different models.

    transformers draws weights that are missing at random, and leaves out those that a configuration has no place for: a
    layer, a bias, an adapter. A whole part that the model does not have, such as another task's head, may be there.

    Args:
        model: as loaded.
        loaded: transformers' loading info.
        folder: of both, for messages.
        key: config key that messages name.
        kind: what the model is to be, for messages.

    Raises:
        RunError: naming weights that are missing or left out.
    """
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise RunError(f"{key}={folder} has no weights for {missing}; give a model that was saved as a {kind}")
    outer = dict(model.named_modules())
    inner = dict(model.base_model.named_modules())  # files may name its parts alone

    def left_out(name: str) -> bool:
        parts = name.split(".")
        places = [".".join(parts[:at]) for at in range(len(parts) - 1, 0, -1)]
        deepest = next((found[place] for found in (outer, inner) for place in places if place in found), None)
        return deepest is not None and deepest is not model.base_model and not MADE_ANEW.search(name)

    unused = sorted(filter(left_out, loaded["unexpected_keys"]))
    if unused:
        raise RunError(
            f"{key}={folder} holds weights that its config.json has no place for ({', '.join(unused[:3])}); give the "
            "configuration that they were trained with, or merge the adapter that they are"
        )


def check_finite(lm: PreTrainedModel, folder: Path, key: str) -> None:
    """Refuse a model with a stored number that is nan or infinite.

    Raises:
        RunError: naming the first such tensor.
    """
    for name, tensor in lm.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            kind = "nan" if torch.isnan(tensor).any() else "infinite"
            raise RunError(
                f"{key}={folder}: {name} holds weights that are {kind}; give a model whose weights are finite"
            )


@torch.no_grad()
def check_output_layer(lm: PreTrainedModel, key: str) -> None:
    """Refuse a model that makes logits otherwise than `OutputLayer` does: its log-probs would be wrong in silence.

    The model's own forward is run with the products replaced by known ones, as large as a trained model's: a soft cap
    does next to nothing to small ones.
    """
    lm.eval()
    ids, layer = torch.arange(4, device=lm.device)[None], output_layer(lm)
    products = torch.linspace(-LARGEST, LARGEST, 4 * layer.vocabulary, device=lm.device).view(1, 4, -1)
    states: list[Tensor] = []

    def replaced(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        states.append(inputs[0])
        return products.clone()

    hook = lm.get_output_embeddings().register_forward_hook(replaced)
    try:
        logits = lm(input_ids=ids).logits
    finally:
        hook.remove()
    expected = layer.finish(products, None)
    same = len(states) == 1 and torch.allclose(states[0], hidden_states(lm, ids), atol=1e-3, rtol=1e-3)
    if not same or not torch.allclose(logits.float(), expected, atol=1e-3, rtol=1e-3):
        raise RunError(
            f"{key}: {type(lm).__name__} makes its logits in a way that is not supported (beyond a scale and a soft "
            "cap); give another model"
        )


@torch.no_grad()
def check_reading(lm: PreTrainedModel, longest: int, key: str) -> None:
    """Refuse a model that is not causal, that padding changes, or whose decoder reads otherwise than its own forward.

    Random rows of several lengths are read whole and alone by the model's own forward; then with other tokens at their
    ends, padded together as in scoring, and token by token as in sampling. Every way must give the same logits.

    Args:
        lm: in float32, in evaluation mode.
        longest: the longest row that it is to read, in tokens; more than `TOKENS` are not checked.
        key: config key that messages name.

    Raises:
        RunError: naming the model's class and what it does otherwise.
    """
    name, time = f"{key}: {type(lm).__name__}", min(TOKENS, longest)
    vocabulary = output_layer(lm).vocabulary
    ids = torch.randint(vocabulary, (len(PROMPTS), time), generator=torch.Generator().manual_seed(0)).to(lm.device)
    with or_refuse(f"{name} cannot be read as a causal LM"):
        truth = _own_logits(lm, ids)
        half = time // 2
        changed = torch.cat([ids[:, :half], (ids[:, half:] + 1) % vocabulary], 1)
        seen_ahead = _largest([_own_logits(lm, changed)[:, :half] - truth[:, :half]])
    with or_refuse(f"{name} cannot be read without its output layer"):
        padded = _largest([logits - truth[row, : len(logits)] for row, logits in _padded(lm, ids)])
    with or_refuse(f"{name} cannot be read token by token through transformers' cache"):
        decoded = _largest([logits - truth[rows, at] for rows, at, logits in _decoded(lm, ids)])
    largest = TOLERANCE * max(float(truth.std()), torch.finfo(truth.dtype).tiny)
    if not seen_ahead <= largest:  # nan is not
        raise RunError(
            f"{name} is not causal: a later token changes the logits before it by up to {seen_ahead:.2g}; "
            "give a model that reads from left to right"
        )
    if not padded <= largest:
        raise RunError(
            f"{name} gives a row beside longer rows other logits than alone (by up to {padded:.2g}); give another model"
        )
    if not decoded <= largest:
        raise RunError(
            f"{name} gives other logits token by token through transformers' cache than to a whole row (by up to "
            f"{decoded:.2g}), so its samples would not be its own; give another model"
        )


@contextmanager
def or_refuse(message: str) -> Iterator[None]:
    """Turn an error of a model's own code into one line."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{message} ({first_line(error)}); give another model") from error


def _largest(differences: list[Tensor]) -> float:
    """The largest absolute value; nan if one is nan."""
    return float(torch.cat([torch.zeros(1), *(difference.abs().flatten().cpu() for difference in differences)]).amax())


def _own_logits(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """(rows, time, vocabulary) float32 logits by the model's own forward, each row alone."""
    return torch.cat([cast(Tensor, lm(input_ids=row[None], use_cache=False).logits) for row in ids]).float()


def _padded(lm: PreTrainedModel, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each row with its logits as scoring computes them: rows of several lengths in one table."""
    rows, time = ids.shape
    lengths = [max(1, int(part * time)) for part in ROWS]
    table = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        table[row, :length] = ids[row, :length]
    states, layer = hidden_states(lm, table), output_layer(lm)
    for row, length in enumerate(lengths):
        yield row, layer.finish(states[row, :length].float() @ layer.weight.float().t(), layer.bias)


def _decoded(lm: PreTrainedModel, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows, the positions of the token that each has just read, and the decoder's logits; rows leave on the way."""
    (rows, time), device = ids.shape, ids.device
    lengths = torch.tensor([max(1, int(part * time)) for part in PROMPTS], device=device)
    longest = int(lengths.max())
    prompts = torch.where(torch.arange(longest, device=device) < lengths[:, None], ids[:, :longest], 0)
    decoder = open_decoder(lm, rows, time)
    reading, starts = decoder.begin(prompts, lengths)
    alive = torch.arange(rows, device=device)
    first = reading.shape[1]
    for column in range(first, time + 1):
        logits = decoder.read(reading)
        # a row whose prompt was read whole has read its prompt and one token per column since
        at = torch.where(column < starts, torch.full_like(starts, column), lengths + column - starts)[alive] - 1
        yield alive, at, logits
        if column == time or int(at.max()) + 1 == time:
            return
        if column == first + 2 and rows > 1:
            decoder.keep(torch.arange(len(alive) - 1, 0, -1, device=device))
            alive, at = alive[1:].flip(0), at[1:].flip(0)
        reading = ids[alive, at + 1][:, None]
