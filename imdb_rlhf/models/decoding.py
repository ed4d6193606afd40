"""A causal LM that is read token by token: the states of what was read are kept, and the next token's logits returned.

`open_decoder` picks GPT-2's own decoder where it computes the same, and transformers' cache for any other model.
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

# Numbers of a parameter whose plain sum is taken beside the sum of all squares: it tells a change of sign.
SIGNED = 1 << 12


class Decoder(Protocol):
    """What a sampling loop needs of a model."""

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Take (rows, longest) right-padded prompts of (rows,) lengths.

        Returns:
            The tokens to read first, (rows, time), and (rows,) the column from which on a row's tokens are new. What
            stands between is to be read from the prompt, a column at a time.
        """
        ...

    def read(self, ids: Tensor) -> Tensor:
        """Read what `begin` said to, at first, and then (rows, 1) tokens at a time.

        Returns:
            (rows, vocabulary) logits of the token that follows.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these (n,) rows alone, in this order."""
        ...


def open_decoder(lm: PreTrainedModel, rows: int, time: int) -> Decoder:
    """A decoder with nothing read yet, in the autocast precision where one is on, without gradients.

    Args:
        lm: the policy; its weights must stay as they are while the decoder is used.
        rows: how many sequences are read side by side.
        time: tokens at most.
    """
    if gpt2.is_plain(lm.base_model):
        return GPT2Decoder(lm, rows, time)
    return CachedDecoder(lm)


class CachedDecoder:
    """Any model, by its own forward and transformers' growing cache."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm, self.cache = lm, DynamicCache()

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`: no row waits for another length, and nothing is padded."""
        return prompts[:, : int(lengths.min())], lengths

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        found = self.lm.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        state = found.last_hidden_state[:, -1]
        weight, bias = output_layer(self.lm)
        logits = state @ weight.to(state.dtype).t()
        return logits if bias is None else logits + bias

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)


class GPT2Decoder:
    """GPT-2 with matrices laid out once for the whole completion and keys and values written in their places.

    Prompts are read at once and end in the same column; what stands before a shorter one is masked.
    """

    def __init__(self, lm: PreTrainedModel, rows: int, time: int) -> None:
        model = cast(GPT2Model, lm.base_model)
        weight, bias = output_layer(lm)
        kind = weight.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.model, self.heads, self.column = model, model.config.n_head, 0
        self.lengths: Tensor | None = None  # of the prompts, until they are read
        self.shift: Tensor | None = None  # (rows, 1) columns before a prompt, where they differ
        self.mask: Tensor | None = None  # (rows, 1, 1, time), added to attention scores
        width = weight.shape[1] // self.heads
        blank = torch.zeros(rows, self.heads, time, width, dtype=self.dtype, device=weight.device)
        self.cache = DynamicCache([(blank, blank) for _ in model.h])  # copied as it is taken in
        with torch.autocast(kind, enabled=False):
            self.layout = _layout(lm, rows, self.dtype)

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`."""
        longest, time = prompts.shape[1], self.cache.layers[0].keys.shape[2]
        self.lengths = lengths
        if int(lengths.min()) < longest:
            self.shift = (longest - lengths)[:, None]
            before = torch.arange(time, device=lengths.device) < self.shift
            self.mask = torch.zeros(before.shape, dtype=self.dtype, device=lengths.device)
            self.mask = self.mask.masked_fill_(before, float("-inf"))[:, None, None]
        return prompts, torch.full_like(lengths, longest)

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        rows, time = ids.shape
        first, self.column = self.column, self.column + time
        with torch.autocast(ids.device.type, enabled=False):
            if first and self.shift is not None:
                places = self.model.wpe.weight[first - self.shift]
            else:
                places = self.model.wpe.weight[first : self.column]
            x = (F.embedding(ids, self.model.wte.weight) + places).view(rows * time, -1)
            for index, block in enumerate(self.model.h):
                x = self._step(index, cast(GPT2Block, block), x, rows)
            ends = self.lengths - 1 if self.lengths is not None else torch.zeros_like(ids[:, 0])
            self.lengths = None
            last = x.view(rows, time, -1)[torch.arange(rows, device=ids.device), ends]
            return self.layout.output(gpt2.layer_norm(self.model.ln_f, last).to(self.dtype))

    def _step(self, index: int, block: GPT2Block, x: Tensor, rows: int) -> Tensor:
        qkv_of, mixed_of, inner_of, outer_of = self.layout.layers[index]
        qkv = qkv_of(gpt2.layer_norm(block.ln_1, x).to(self.dtype))
        mixed = self._attend(index, *split_heads(qkv, rows, self.heads))
        x = x + mixed_of(mixed.transpose(1, 2).reshape(len(x), -1)).to(x.dtype)
        inner = inner_of(gpt2.layer_norm(block.ln_2, x).to(self.dtype))
        return x + outer_of(inner).to(x.dtype)

    def _attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (rows, heads, time, width) queries to all that was read, themselves included."""
        kept, time = self.cache.layers[index], query.shape[2]
        at, seen = slice(self.column - time, self.column), slice(0, self.column)
        if self.lengths is not None:  # prompts: they have nothing before them, and lie to the left as yet
            for table, new in ((kept.keys, key), (kept.values, value)):
                table[:, :, at] = new if self.shift is None else self._to_the_right(new, self.shift)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        kept.keys[:, :, at], kept.values[:, :, at] = key, value
        mask = None if self.mask is None else self.mask[..., seen]
        return F.scaled_dot_product_attention(query, kept.keys[:, :, seen], kept.values[:, :, seen], attn_mask=mask)

    @staticmethod
    def _to_the_right(table: Tensor, shift: Tensor) -> Tensor:
        """Move (rows, heads, time, width) by (rows, 1) columns; what comes in on the left is masked, and finite."""
        time = torch.arange(table.shape[2], device=table.device)
        source = (time - shift).clamp(min=0)[:, None, :, None]
        return table.gather(2, source.expand(-1, table.shape[1], -1, table.shape[3]))

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)
        if self.shift is not None and self.mask is not None:
            self.shift, self.mask = self.shift[rows], self.mask[rows]


@dataclass(frozen=True)
class _Layout:
    """A model's products with their weights laid out, and what tells that the weights are still those."""

    sign: tuple[Any, ...]
    output: Product
    layers: list[tuple[Product, Product, Product, Product]]


# Sampling goes through many batches with the same weights. A layout lives as long as its model.
_LAYOUTS: WeakKeyDictionary[PreTrainedModel, _Layout] = WeakKeyDictionary()


def _layout(lm: PreTrainedModel, rows: int, dtype: torch.dtype) -> _Layout:
    """The layout of the model's weights as they are now."""
    sign = (dtype, *_sign(list(lm.parameters())))
    found = _LAYOUTS.get(lm)
    if found is None or found.sign != sign:
        weight, bias = output_layer(lm)
        layers = [_layer_layout(cast(GPT2Block, block), rows, dtype) for block in cast(GPT2Model, lm.base_model).h]
        found = _LAYOUTS[lm] = _Layout(sign, laid_out(weight, bias, rows, dtype), layers)
    return found


def _sign(parameters: list[Tensor]) -> tuple[Any, ...]:
    """What tells the weights of a model from those that it had: their places and two sums over each.

    The counts that torch keeps of changes are not enough: neither its fused AdamW nor edits through `.data` raise them.
    """
    flats = [parameter.detach().flatten() for parameter in parameters]
    sums = torch.stack([part.float() for flat in flats for part in (torch.dot(flat, flat), flat[:SIGNED].sum())])
    return tuple((parameter.data_ptr(), parameter.shape) for parameter in parameters), tuple(sums.tolist())


def _layer_layout(block: GPT2Block, rows: int, dtype: torch.dtype) -> tuple[Product, Product, Product, Product]:
    inner = block.mlp.c_fc
    qkv, mixed, outer = (
        laid_out(layer.weight.t(), layer.bias, rows, dtype)
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj)
    )
    return qkv, mixed, laid_out(inner.weight.t(), inner.bias, rows, dtype, gelu=True), outer
