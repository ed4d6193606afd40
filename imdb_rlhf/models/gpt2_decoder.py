"""GPT-2's decoder: weights laid out once per completion, a cache of full size, attention of one token by itself."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from imdb_rlhf.models import gpt2
from imdb_rlhf.models.attention import split_heads
from imdb_rlhf.models.layouts import layout_of, logits, precision_of
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.products import Product, laid_out

# A CPU's attention of one token reads a multiple of these: oneDNN compiles a program per size.
COLUMNS = 64


class GPT2Decoder:
    """Decodes GPT-2, with weights laid out once per completion, and keys and values written into a cache of full size.

    All prompts are read at once. The cache holds them right-aligned, and columns before a shorter prompt are masked.
    """

    def __init__(self, lm: PreTrainedModel, rows: int, time: int) -> None:
        model = cast(GPT2Model, lm.base_model)
        weight, self.dtype = output_layer(lm).weight, precision_of(lm)
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
        self.layout = layout_of(lm, rows, self.dtype, _GPT2Layout.of)

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `decoding.Decoder`."""
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
        """As in `decoding.Decoder`."""
        return self.logits(self.read_states(ids))

    def logits(self, states: Tensor) -> Tensor:
        """As in `decoding.Decoder`."""
        with torch.autocast(states.device.type, enabled=False):
            return self.layout.output(states)

    def read_states(self, ids: Tensor) -> Tensor:
        """As in `decoding.Decoder`."""
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
            return gpt2.layer_norm(self.model.ln_f, last).to(self.dtype)

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
        """As in `decoding.Decoder`."""
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
        return _GPT2Layout(logits(lm, rows, dtype), layers)


def _layer_products(block: GPT2Block, rows: int, dtype: torch.dtype) -> _LayerProducts:
    inner = block.mlp.c_fc
    qkv, mixed, outer = (
        laid_out(layer.weight.t(), layer.bias, rows, dtype)
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj)
    )
    return _LayerProducts(qkv, mixed, laid_out(inner.weight.t(), inner.bias, rows, dtype, gelu=True), outer)
