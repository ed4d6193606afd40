"""Decoders feed a causal LM token by token, cache its keys and values, and return the next token's logits.

`open_decoder` picks the GPT-2 decoder where it computes what the model would, and transformers' cache for other models.
"""

from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from imdb_rlhf.models import gpt2
from imdb_rlhf.models.gpt2_decoder import GPT2Decoder
from imdb_rlhf.models.layouts import layout_of, logits, precision_of
from imdb_rlhf.models.products import Product, fuses, laid_out


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

    def read_states(self, ids: Tensor) -> Tensor:
        """As `read`, up to the (rows, width) states that the output layer reads, in the decoder's precision."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) float32 logits of the states that `read_states` returned."""
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
        self.cache, self.dtype = DynamicCache(), precision_of(lm)
        self.layout = layout_of(lm, rows, self.dtype, _BaseLayout.of)
        # transformers is renaming the argument
        names = signature(self.layout.base.forward).parameters
        self.arguments: dict[str, Any] = {"cache" if "cache" in names else "past_key_values": self.cache}

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Decoder`; reads as many tokens as the shortest prompt has, so that no row is padded."""
        return prompts[:, : int(lengths.min())], lengths

    def read(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        return self.logits(self.read_states(ids))

    def read_states(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        output = self.layout.base(input_ids=ids, use_cache=True, **self.arguments)
        return cast(Tensor, output.last_hidden_state[:, -1].to(self.dtype))

    def logits(self, states: Tensor) -> Tensor:
        """As in `Decoder`."""
        with torch.autocast(states.device.type, enabled=False):
            return self.layout.output(states)

    def keep(self, rows: Tensor) -> None:
        """As in `Decoder`."""
        self.cache.batch_select_indices(rows)


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
        return _BaseLayout(logits(lm, rows, dtype), base)


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
