"""Decoders feed a causal LM token by token, cache its keys and values, and return the next token's logits.

`open_decoder` picks the GPT-2 decoder where it computes what the model would, and transformers' cache for other models.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from imdb_rlhf.models import gpt2
from imdb_rlhf.models.attention import split_heads
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.products import Product, float32_laid_out, fuses, laid_out

# Numbers of each parameter that are summed plainly beside the sum of all squares, to notice a change of sign.
SIGNED = 1 << 12
# A CPU's attention of one token reads a multiple of these: oneDNN compiles a program per size.
COLUMNS = 64


class Decoder(Protocol):
    """The interface between a sampling loop and a model."""

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Take (rows, longest) right-padded prompts of (rows,) lengths.

        Returns:
            (rows, time) tokens to read first, and (rows,) the column of each row's first new token. The caller feeds
            the prompt's tokens in between one column at a time.
        """
        ...

    def read(self, ids: Tensor) -> Tensor:
        """Read tokens: first those that `begin` returned, then (rows, 1) at a time.

        Returns:
            (rows, vocabulary) float32 logits of the next token.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Continue with these (n,) rows alone, in this order."""
        ...


def open_decoder(lm: PreTrainedModel, rows: int, time: int) -> Decoder:
    """Open a decoder, in autocast's precision where autocast is on, without gradients.

    Args:
        lm: the policy; its weights must not change while the decoder is used.
        rows: number of sequences decoded together.
        time: largest number of tokens per row.
    """
    if gpt2.is_plain(lm.base_model):
        return GPT2Decoder(lm, rows, time)
    return CachedDecoder(lm, rows)


class CachedDecoder:
    """Decodes any model by its own forward and transformers' growing cache, with its linear layers laid out once."""

    def __init__(self, lm: PreTrainedModel, rows: int) -> None:
        self.cache, self.dtype = DynamicCache(), _precision(lm)
        self.layout = _layout_of(lm, rows, self.dtype, _BaseLayout.of)
        # transformers is renaming the argument
        names = signature(self.layout.base.forward).parameters
        self.arguments: dict[str, Any] = {"cache" if "cache" in names else "past_key_values": self.cache}

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`; reads as many tokens as the shortest prompt has, so that no row is padded."""
        return prompts[:, : int(lengths.min())], lengths

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        output = self.layout.base(input_ids=ids, use_cache=True, **self.arguments)
        state = output.last_hidden_state[:, -1].to(self.dtype)
        with torch.autocast(ids.device.type, enabled=False):
            return self.layout.output(state)

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)


def _precision(lm: PreTrainedModel) -> torch.dtype:
    """The precision of products: autocast's where autocast is on, else the weights'."""
    kind = lm.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else lm.dtype


class GPT2Decoder:
    """Decodes GPT-2, with weights laid out once per completion, and keys and values written into a cache of full size.

    All prompts are read at once. The cache holds them right-aligned, and columns before a shorter prompt are masked.
    """

    def __init__(self, lm: PreTrainedModel, rows: int, time: int) -> None:
        model = cast(GPT2Model, lm.base_model)
        weight, self.dtype = output_layer(lm).weight, _precision(lm)
        self.model, self.heads, self.column = model, model.config.n_head, 0
        self.lengths: Tensor | None = None  # (rows,) tokens of the prompts, until they are read
        self.shift: Tensor | None = None  # (rows, 1) columns before each prompt, if the prompts differ in length
        # (rows or 1, 1, 1, time), added to attention scores: columns before a prompt and columns to come are closed
        self.mask: Tensor | None = None
        self.added: Tensor | None = None  # on a CPU, its part of this step, as `attend_once` reads it
        width = weight.shape[1] // self.heads
        # in float32 on a CPU, where attention scores are computed in the precision of what is cached
        self.cached = torch.float32 if weight.device.type == "cpu" else self.dtype
        blank = torch.zeros(rows, self.heads, time, width, dtype=self.cached, device=weight.device)
        self.cache = DynamicCache([(blank, blank) for _ in model.h])  # copies `blank`, so layers do not share it
        self.layout = _layout_of(lm, rows, self.dtype, _GPT2Layout.of)

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`."""
        longest, time = prompts.shape[1], self.cache.layers[0].keys.shape[2]
        self.lengths = lengths
        if int(lengths.min()) < longest:
            self.shift = (longest - lengths)[:, None]
        if self.shift is not None or lengths.device.type == "cpu":
            columns = torch.arange(time, device=lengths.device)
            closed = columns >= longest
            closed = closed[None] if self.shift is None else closed | (columns < self.shift)
            self.mask = torch.zeros(closed.shape, dtype=self.cached, device=lengths.device)
            self.mask = self.mask.masked_fill_(closed, float("-inf"))[:, None, None]
        return prompts, torch.full_like(lengths, longest)

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        rows, time = ids.shape
        first, self.column = self.column, self.column + time
        if first and self.mask is not None:
            self.mask[..., first : self.column] = 0
        if first and self.mask is not None and self.mask.device.type == "cpu":
            columns = min(self.mask.shape[3], -(-self.column // COLUMNS) * COLUMNS)
            added = self.mask[..., :columns]
            # one for all heads, and where the prompts have one length for all rows
            self.added = added[0] if len(added) == 1 else added.expand(-1, self.heads, -1, -1).reshape(-1, 1, columns)
        with torch.autocast(ids.device.type, enabled=False):
            if first and self.shift is not None:
                positions = self.model.wpe.weight[first - self.shift]
            else:
                positions = self.model.wpe.weight[first : self.column]
            x = (F.embedding(ids, self.model.wte.weight) + positions).view(rows * time, -1)
            for index, block in enumerate(self.model.h):
                x = self._step(index, cast(GPT2Block, block), x, rows)
            ends = self.lengths - 1 if self.lengths is not None else torch.zeros_like(ids[:, 0])
            self.lengths = None
            last = x.view(rows, time, -1)[torch.arange(rows, device=ids.device), ends]
            return self.layout.output(gpt2.layer_norm(self.model.ln_f, last).to(self.dtype))

    def _step(self, index: int, block: GPT2Block, x: Tensor, rows: int) -> Tensor:
        products = self.layout.layers[index]
        qkv = products.qkv(gpt2.layer_norm(block.ln_1, x).to(self.dtype))
        mixed = self._attend(index, *split_heads(qkv, rows, self.heads))
        x = x + products.mixed(mixed.transpose(1, 2).reshape(len(x), -1)).to(x.dtype)
        inner = products.inner(gpt2.layer_norm(block.ln_2, x).to(self.dtype))
        return x + products.outer(inner).to(x.dtype)

    def _attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (rows, heads, time, width) queries to every token read so far, their own included."""
        cache, time = self.cache.layers[index], query.shape[2]
        new, read = slice(self.column - time, self.column), slice(0, self.column)
        if self.lengths is not None:  # the prompts: nothing is before them, and they are still left-aligned
            for table, states in ((cache.keys, key), (cache.values, value)):
                table[:, :, new] = states if self.shift is None else self._right_aligned(states, self.shift)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        cache.keys[:, :, new], cache.values[:, :, new] = key, value
        if self.added is not None:
            return attend_once(query, cache.keys, cache.values, self.added)
        mask = None if self.mask is None else self.mask[..., read]
        return F.scaled_dot_product_attention(query, cache.keys[:, :, read], cache.values[:, :, read], attn_mask=mask)

    @staticmethod
    def _right_aligned(table: Tensor, shift: Tensor) -> Tensor:
        """Move (rows, heads, time, width) right by (rows, 1) columns; the freed columns are masked, and stay finite."""
        time = torch.arange(table.shape[2], device=table.device)
        source = (time - shift).clamp(min=0)[:, None, :, None]
        return table.gather(2, source.expand(-1, table.shape[1], -1, table.shape[3]))

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)
        if self.shift is not None and self.mask is not None:
            self.shift, self.mask = self.shift[rows], self.mask[rows]


def attend_once(query: Tensor, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
    """Attention of one token per row, on a CPU, where torch's own kernel spends most of its time on preparing.

    Args:
        query: (rows, heads, 1, width).
        keys: (rows, heads, time, width), and
        values: of the same shape.
        added: (rows * heads or 1, 1, columns), added to the scores of the first columns; those beyond are not read.

    Returns:
        (rows, heads, 1, width) in the queries' precision. Scores are computed in that of keys and values.
    """
    rows, heads, time, width = keys.shape
    key, value = (table.view(rows * heads, time, width)[:, : added.shape[2]] for table in (keys, values))
    queries = query.reshape(rows * heads, 1, width).to(keys.dtype)
    weights = torch.baddbmm(added, queries, key.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    return torch.bmm(weights, value).view(rows, heads, 1, width).to(query.dtype)


@dataclass(frozen=True)
class _LayerProducts:
    """The four products of a layer: to queries, keys and values, from attention, into the MLP, and out of it."""

    qkv: Product
    mixed: Product
    inner: Product
    outer: Product


@dataclass(frozen=True)
class _GPT2Layout:
    """A GPT-2's products with their weights laid out."""

    output: Product
    layers: list[_LayerProducts]

    @staticmethod
    def of(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> "_GPT2Layout":
        """Lay out for about `rows` rows."""
        layers = [_layer_products(cast(GPT2Block, block), rows, dtype) for block in cast(GPT2Model, lm.base_model).h]
        return _GPT2Layout(_logits(lm, rows, dtype), layers)


@dataclass(frozen=True)
class _BaseLayout:
    """Any model's layers, those that are plain linear with their weights laid out."""

    output: Product
    base: nn.Module

    @staticmethod
    def of(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> "_BaseLayout":
        """Lay out for about `rows` rows; where no product gains from it, the model's own layers serve."""
        base: Any = lm.base_model
        if fuses(torch.empty(0, dtype=dtype, device=lm.device)):
            shared = {id(table): table for table in (*base.parameters(), *base.buffers())}
            base = deepcopy(base, shared)
            for parent in base.modules():
                for name, child in parent.named_children():
                    if type(child) is nn.Linear and not (child._forward_hooks or child._forward_pre_hooks):
                        setattr(parent, name, _LaidOutLinear(child, rows, dtype))
            if base.config._attn_implementation == "sdpa":
                base.config._attn_implementation = ONE_TOKEN
        return _BaseLayout(_logits(lm, rows, dtype), base)


class _LaidOutLinear(nn.Module):
    """A linear layer whose weight is cast and laid out once, and not for every token as under autocast."""

    def __init__(self, layer: nn.Linear, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.dtype = layer.weight, layer.bias, dtype
        self.product = laid_out(layer.weight, layer.bias, rows, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) in the layout's precision, of (..., in)."""
        return self.product(x.reshape(-1, self.in_features).to(self.dtype)).view(*x.shape[:-1], self.out_features)


def _one_token_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' "sdpa", but for one token per row as `attend_once` does it; heads may share keys and values."""
    if query.shape[2] > 1 or others.get("position_bias") is not None:
        sdpa = AttentionInterface()["sdpa"]
        return cast(tuple[Tensor, None], sdpa(module, query, key, value, attention_mask, scaling=scaling, **others))
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    keys, values = (table.reshape(rows * shared, -1, table.shape[3]) for table in (key, value))
    queries = query.reshape(rows * shared, heads // shared, width)
    # float32 scores: softmax does not see what is common to them, bf16 does
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.bmm(queries.float(), keys.transpose(1, 2).float()).view(rows, heads, 1, -1)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1).view(rows * shared, heads // shared, -1).to(values.dtype)
    mixed = torch.bmm(weights, values)
    return mixed.view(rows, 1, heads, -1), None


# The name under which transformers finds it.
ONE_TOKEN = "imdb_rlhf_one_token"
AttentionInterface.register(ONE_TOKEN, _one_token_attention)
AttentionMaskInterface.register(ONE_TOKEN, AttentionMaskInterface()["sdpa"])

Layout = TypeVar("Layout")
# Sampling runs many batches with the same weights, so a layout is kept as long as its model lives, with the fingerprint
# of the weights that it was made from.
_LAYOUTS: WeakKeyDictionary[PreTrainedModel, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


def _layout_of(
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


def _logits(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> Product:
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


def _layer_products(block: GPT2Block, rows: int, dtype: torch.dtype) -> _LayerProducts:
    inner = block.mlp.c_fc
    qkv, mixed, outer = (
        laid_out(layer.weight.t(), layer.bias, rows, dtype)
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj)
    )
    return _LayerProducts(qkv, mixed, laid_out(inner.weight.t(), inner.bias, rows, dtype, gelu=True), outer)
