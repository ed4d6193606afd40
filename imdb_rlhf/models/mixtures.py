"""Policies that are decoded from several models: value-guided sampling and decoding-time realignment.

Each is a distribution over the next token made of what its models say of it, so it is sampled, scored and compared with
its reference as a causal LM is (`next_token.py`). Its models read every token once each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.models import gpt2
from imdb_rlhf.models.blocks import Blocks
from imdb_rlhf.models.decoding import CachedDecoder, Decoder, open_decoder
from imdb_rlhf.models.logprobs import output_layer, states_before
from imdb_rlhf.models.next_token import LogitBlocks, NextToken, Reader
from imdb_rlhf.models.value import ActionValue


@dataclass(frozen=True)
class DecodedPolicy:
    """A policy that is a distribution over the next token, with its tokenizer; a causal LM is a `policy.Policy`."""

    next_token: NextToken
    tokenizer: PreTrainedTokenizerBase

    @property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return int(self.tokenizer.eos_token_id)


class Guided:
    """Value-guided sampling: pi(v | s) in proportion to ref(v | s) exp(V(s, v) / beta).

    With V(s, v) = beta log E_ref[exp(r / beta) | s, v] it is the optimum of reward - beta KL, exactly. Learned from
    samples of the reference, V is a distribution over the final reward: one network serves every beta (FUDGE, arXiv
    2104.05218; controlled decoding, arXiv 2310.17022; Q#, arXiv 2502.20548).
    """

    def __init__(self, reference: PreTrainedModel, value: ActionValue, beta: float, temperature: float) -> None:
        """Guide a reference.

        Args:
            reference: the model that is tilted.
            value: its action value; one that is not `own` reads the reference's states.
            beta: reward per nat, above 0.
            temperature: of the reference that is tilted; logits are as a sampler expects them that divides by it.
        """
        self.reference, self.value, self.beta, self.temperature = reference, value, beta, temperature

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return output_layer(self.reference).vocabulary

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.reference.device

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """The models that read a row."""
        return [self.reference, self.value.lm] if self.value.own else [self.reference]

    def open(self, rows: int, time: int) -> Reader:
        """As in `NextToken`."""
        return _GuidedReader(self, _together(self.models, rows, time))

    def states(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """As in `NextToken`: the states of both networks, side by side."""
        return _side_by_side(self.models, ids, lengths, mask)

    def blocks(self, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float) -> LogitBlocks:
        """As in `NextToken`."""
        return _GuidedBlocks(self, states, parts, blocks, temperature)


class Realigned:
    """Decoding-time realignment (arXiv 2402.02992): pi(v | s) in proportion to ref(v | s)^(1 - l) policy(v | s)^l.

    At l = 0 it is the reference, at 1 the policy; a policy that is optimal at beta gives that of beta / l, if the
    mixture were taken over sequences.
    """

    def __init__(self, reference: PreTrainedModel, policy: PreTrainedModel, lam: float) -> None:
        """Mix two models of one vocabulary, `lam` being l, at least 0."""
        self.reference, self.policy, self.weights = reference, policy, [1 - lam, lam]

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """The models that read a row."""
        return [self.reference, self.policy]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return output_layer(self.reference).vocabulary

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.reference.device

    def open(self, rows: int, time: int) -> Reader:
        """As in `NextToken`."""
        return _RealignedReader(self.weights, _together(self.models, rows, time))

    def states(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """As in `NextToken`: the states of both models, side by side."""
        return _side_by_side(self.models, ids, lengths, mask)

    def blocks(self, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float) -> LogitBlocks:
        """As in `NextToken`."""
        return _RealignedBlocks(self, states, parts, blocks, temperature)


def _together(models: Sequence[PreTrainedModel], rows: int, time: int) -> list[Decoder]:
    """Decoders that read the same columns: of one kind, since each kind has its own way with prompts."""
    if all(gpt2.is_plain(lm.base_model) for lm in models):
        return [open_decoder(lm, rows, time) for lm in models]
    return [CachedDecoder(lm, rows) for lm in models]


def _side_by_side(models: Sequence[PreTrainedModel], ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([states_before(lm.base_model, ids, lengths, mask).float() for lm in models], 1)


def _apart(models: Sequence[PreTrainedModel], states: Tensor) -> Sequence[Tensor]:
    return states.split([output_layer(lm).weight.shape[1] for lm in models], 1)


class _Together:
    """What reads with several decoders."""

    def __init__(self, decoders: list[Decoder]) -> None:
        self.decoders = decoders

    def begin(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Reader`."""
        return [decoder.begin(prompts, lengths) for decoder in self.decoders][0]

    def keep(self, rows: Tensor) -> None:
        """As in `Reader`."""
        for decoder in self.decoders:
            decoder.keep(rows)


class _GuidedReader(_Together):
    def __init__(self, guided: Guided, decoders: list[Decoder]) -> None:
        super().__init__(decoders)
        self.guided = guided

    def read(self, ids: Tensor) -> Tensor:
        """As in `Reader`."""
        states, guided = [decoder.read_states(ids) for decoder in self.decoders], self.guided
        tilts = guided.value.head.log_tilt(states[-1], guided.beta, slice(0, guided.vocabulary))
        return self.decoders[0].logits(states[0]) + guided.temperature * tilts


class _RealignedReader(_Together):
    def __init__(self, weights: list[float], decoders: list[Decoder]) -> None:
        super().__init__(decoders)
        self.weights = weights

    def read(self, ids: Tensor) -> Tensor:
        """As in `Reader`."""
        reference, policy = (decoder.read(ids) for decoder in self.decoders)
        return self.weights[0] * reference + self.weights[1] * policy


class _GuidedBlocks:
    def __init__(
        self, guided: Guided, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float
    ) -> None:
        own = _apart(guided.models, states)
        self.head, self.beta, self.values = guided.value.head, guided.beta, own[-1]
        self.scale = guided.temperature / temperature
        self.reference = Blocks(own[0], output_layer(guided.reference), parts, blocks, temperature)

    def logits(self, part: slice, entries: slice) -> Tensor:
        """As in `LogitBlocks`."""
        tilts = self.head.log_tilt(self.values[part], self.beta, entries)
        return self.reference.logits(part, entries).add_(tilts, alpha=self.scale)


class _RealignedBlocks:
    def __init__(
        self, mixture: Realigned, states: Tensor, parts: list[slice], blocks: list[slice], temperature: float
    ) -> None:
        self.weights = mixture.weights
        self.models = [
            Blocks(own, output_layer(lm), parts, blocks, temperature)
            for own, lm in zip(_apart(mixture.models, states), mixture.models, strict=True)
        ]

    def logits(self, part: slice, entries: slice) -> Tensor:
        """As in `LogitBlocks`."""
        reference, policy = (model.logits(part, entries) for model in self.models)
        return reference.mul_(self.weights[0]).add_(policy, alpha=self.weights[1])
