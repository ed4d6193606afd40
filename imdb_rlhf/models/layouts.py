"""Layouts: a model's weights as its decoder multiplies by them, kept from batch to batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.products import Product, float32_laid_out

# Numbers of each parameter that are summed plainly beside the sum of all squares, to notice a change of sign.
SIGNED = 1 << 12
Layout = TypeVar("Layout")
# Sampling runs many batches with the same weights, so a layout is kept as long as its model lives, with the fingerprint
# of the weights that it was made from.
_LAYOUTS: WeakKeyDictionary[PreTrainedModel, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


def layout_of(
    lm: PreTrainedModel, rows: int, dtype: torch.dtype, make: Callable[[PreTrainedModel, int, torch.dtype], Layout]
) -> Layout:
    """The layout of the model's present weights."""
    with torch.autocast(lm.device.type, enabled=False):
        layer = output_layer(lm)
        logits = (layer.scale, layer.cap, lm.config._attn_implementation)
        fingerprint = (make, dtype, logits, _structure(lm), *_fingerprint(list(lm.parameters())))
        entry = _LAYOUTS.get(lm)
        if entry is None or entry[0] != fingerprint:
            entry = _LAYOUTS[lm] = fingerprint, make(lm, rows, dtype)
    return cast(Layout, entry[1])


def logits(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> Product:
    """From (rows, width) states of a precision to (rows, vocabulary) float32 logits."""
    layer = output_layer(lm)
    layer = replace(layer, weight=layer.weight.detach(), bias=None if layer.bias is None else layer.bias.detach())
    multiply = float32_laid_out(layer.weight, rows, dtype)
    return lambda x: layer.finish(multiply(x), layer.bias)


def _structure(lm: PreTrainedModel) -> tuple[Any, ...]:
    """What a copy of a model's layers takes along besides weights, to notice a change."""
    return tuple(
        (id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in lm.modules()
    )


def _fingerprint(parameters: list[Tensor]) -> tuple[Any, ...]:
    """A model's weights in a few numbers, to notice a change: each one's address, shape and two sums.

    Torch's own version counters do not notice every change: neither fused AdamW nor edits through `.data` raise them.
    """
    flats = [parameter.detach().flatten() for parameter in parameters]
    flats = [flat if flat.dtype.itemsize > 2 else flat.float() for flat in flats]  # or small changes are rounded away
    sums = torch.stack([part.float() for flat in flats for part in (torch.dot(flat, flat), flat[:SIGNED].sum())])
    return tuple((parameter.data_ptr(), parameter.shape) for parameter in parameters), tuple(sums.tolist())


def precision_of(lm: PreTrainedModel) -> torch.dtype:
    """The precision of products: autocast's where autocast is on, else the weights'."""
    kind = lm.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else lm.dtype
