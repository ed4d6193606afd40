"""Decoders feed a causal LM token by token, cache its keys and values, and return the next token's logits.

`open_decoder` picks the GPT-2 decoder where it computes what the model would, and transformers' cache for other models.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from imdb_rlhf.models import gpt2
from imdb_rlhf.models.attention import split_heads
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.products import Product, laid_out

# Numbers of each parameter that are summed plainly beside the sum of all squares, to notice a change of sign.
SIGNED = 1 << 12


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
            (rows, vocabulary) logits of the next token.
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
    return CachedDecoder(lm)


class CachedDecoder:
    """Decodes any model by its own forward and transformers' growing cache."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm, self.cache = lm, DynamicCache()

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`; reads as many tokens as the shortest prompt has, so that no row is padded."""
        return prompts[:, : int(lengths.min())], lengths

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        output = self.lm.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        state = output.last_hidden_state[:, -1]
        weight, bias = output_layer(self.lm)
        logits = state @ weight.to(state.dtype).t()
        return logits if bias is None else logits + bias

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)


class GPT2Decoder:
    """Decodes GPT-2, with weights laid out once per completion, and keys and values written into a cache of full size.

    All prompts are read at once. The cache holds them right-aligned, and columns before a shorter prompt are masked.
    """

    def __init__(self, lm: PreTrainedModel, rows: int, time: int) -> None:
        model = cast(GPT2Model, lm.base_model)
        weight, bias = output_layer(lm)
        kind = weight.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.model, self.heads, self.column = model, model.config.n_head, 0
        self.lengths: Tensor | None = None  # (rows,) tokens of the prompts, until they are read
        self.shift: Tensor | None = None  # (rows, 1) columns before each prompt, if the prompts differ in length
        self.mask: Tensor | None = None  # (rows, 1, 1, time), added to attention scores
        width = weight.shape[1] // self.heads
        blank = torch.zeros(rows, self.heads, time, width, dtype=self.dtype, device=weight.device)
        self.cache = DynamicCache([(blank, blank) for _ in model.h])  # copies `blank`, so layers do not share it
        with torch.autocast(kind, enabled=False):
            self.layout = _layout(lm, rows, self.dtype)

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`."""
        longest, time = prompts.shape[1], self.cache.layers[0].keys.shape[2]
        self.lengths = lengths
        if int(lengths.min()) < longest:
            self.shift = (longest - lengths)[:, None]
            empty = torch.arange(time, device=lengths.device) < self.shift
            self.mask = torch.zeros(empty.shape, dtype=self.dtype, device=lengths.device)
            self.mask = self.mask.masked_fill_(empty, float("-inf"))[:, None, None]
        return prompts, torch.full_like(lengths, longest)

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        rows, time = ids.shape
        first, self.column = self.column, self.column + time
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


@dataclass(frozen=True)
class _LayerProducts:
    """The four products of a layer: to queries, keys and values, from attention, into the MLP, and out of it."""

    qkv: Product
    mixed: Product
    inner: Product
    outer: Product


@dataclass(frozen=True)
class _Layout:
    """A model's products with their weights laid out, and the fingerprint of the weights they were made from."""

    fingerprint: tuple[Any, ...]
    output: Product
    layers: list[_LayerProducts]


# Sampling runs many batches with the same weights, so a layout is kept as long as its model lives.
_LAYOUTS: WeakKeyDictionary[PreTrainedModel, _Layout] = WeakKeyDictionary()


def _layout(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> _Layout:
    """The layout of the model's present weights."""
    fingerprint = (dtype, *_fingerprint(list(lm.parameters())))
    layout = _LAYOUTS.get(lm)
    if layout is None or layout.fingerprint != fingerprint:
        weight, bias = output_layer(lm)
        layers = [_layer_products(cast(GPT2Block, block), rows, dtype) for block in cast(GPT2Model, lm.base_model).h]
        layout = _LAYOUTS[lm] = _Layout(fingerprint, laid_out(weight, bias, rows, dtype), layers)
    return layout


def _fingerprint(parameters: list[Tensor]) -> tuple[Any, ...]:
    """A model's weights in a few numbers, to notice a change: each one's address, shape and two sums.

    Torch's own version counters do not notice every change: neither fused AdamW nor edits through `.data` raise them.
    """
    flats = [parameter.detach().flatten() for parameter in parameters]
    sums = torch.stack([part.float() for flat in flats for part in (torch.dot(flat, flat), flat[:SIGNED].sum())])
    return tuple((parameter.data_ptr(), parameter.shape) for parameter in parameters), tuple(sums.tolist())


def _layer_products(block: GPT2Block, rows: int, dtype: torch.dtype) -> _LayerProducts:
    inner = block.mlp.c_fc
    qkv, mixed, outer = (
        laid_out(layer.weight.t(), layer.bias, rows, dtype)
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj)
    )
    return _LayerProducts(qkv, mixed, laid_out(inner.weight.t(), inner.bias, rows, dtype, gelu=True), outer)
