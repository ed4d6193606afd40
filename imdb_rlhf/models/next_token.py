"""What a policy says of the next token: the one interface of sampling, scoring and the exact KL.

A plain causal LM says it by its own logits. Policies that are decoded from several models (`mixtures.py`) say it by a
sum of what each of them says; nothing else knows the difference.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.models.blocks import Blocks
from imdb_rlhf.models.decoding import open_decoder
from imdb_rlhf.models.logprobs import output_layer, states_before


class Reader(Protocol):
    """Reads rows token by token; arguments and results as in `decoding.Decoder`."""

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Take right-padded prompts."""
        ...

    def read(self, ids: Tensor) -> Tensor:
        """(rows, vocabulary) float32 logits of the next token."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows alone."""
        ...


class LogitBlocks(Protocol):
    """Logits of many states, block by block; see `blocks.Blocks`."""

    def logits(self, part: slice, entries: slice) -> Tensor:
        """(tokens, entries) float32 logits divided by the temperature; the next call may overwrite them."""
        ...


class NextToken(Protocol):
    """A policy's distribution over the next token, given what is before it."""

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """Its models; the first says how long a row may be."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its models are."""
        ...

    def open(self, rows: int, time: int) -> Reader:
        """Open a reader for so many rows of at most `time` tokens, in autocast's precision, without gradients."""
        ...

    def states(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """(n, width) float32 states to the left of the n tokens of a mask; arguments as in `logprobs.states_before`."""
        ...

    def blocks(self, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float) -> LogitBlocks:
        """The logits of such states, in these blocks of tokens and of the vocabulary."""
        ...


class CausalLM:
    """A causal LM's own distribution."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm = lm

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """The model."""
        return [self.lm]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return output_layer(self.lm).vocabulary

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.lm.device

    def open(self, rows: int, time: int) -> Reader:
        """As in `NextToken`."""
        return open_decoder(self.lm, rows, time)

    def states(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """As in `NextToken`."""
        return states_before(self.lm.base_model, ids, lengths, mask).float()

    def blocks(self, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float) -> LogitBlocks:
        """As in `NextToken`."""
        return Blocks(states, output_layer(self.lm), parts, blocks, temperature)


def next_token(model: PreTrainedModel | NextToken) -> NextToken:
    """The distribution of a causal LM; one that is given already is returned."""
    return CausalLM(model) if isinstance(model, PreTrainedModel) else model


def all_logprobs(policy: NextToken, states: Tensor, temperature: float) -> Tensor:
    """(n, vocabulary) float32 log-probs of the whole vocabulary after (n, width) `NextToken.states`."""
    parts, entries = [slice(0, len(states))], [slice(0, policy.vocabulary)]
    return policy.blocks(states, parts, entries, temperature).logits(parts[0], entries[0]).log_softmax(-1)
