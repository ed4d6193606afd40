"""The language model: pretrained, or made here with random weights."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from imdb_rlhf.config.places import Place
from imdb_rlhf.config.ranges import Range, Seed
from imdb_rlhf.errors import ConfigError


class Attention(StrEnum):
    """Which attention kernel transformers uses."""

    eager = "eager"
    sdpa = "sdpa"


@dataclass
class ModelConfig:
    """What every model has."""

    name: str
    attention: Attention

    @property
    def known_context(self) -> int | None:
        """Longest row that it reads, in tokens; None where only its files tell."""
        return None


@dataclass
class PretrainedModel(ModelConfig):
    """A Hugging Face causal LM by Hub id or folder."""

    path: Place
    revision: Place | None


@dataclass
class ScratchModel(ModelConfig):
    """A GPT-2 with random weights and a byte-level BPE tokenizer trained on the SFT text."""

    layers: Annotated[int, Range(1, 1000)]
    width: Annotated[int, Range(1, 100_000)]
    heads: Annotated[int, Range(1, 1000)]
    context: Annotated[int, Range(4, 10**6)]
    tokenizer_size: Annotated[int, Range(260, 10**6)]
    vocabulary: Annotated[int, Range(260, 10**6)]
    init_seed: Seed

    @property
    def known_context(self) -> int | None:
        """As configured."""
        return self.context

    def check(self, at: str) -> None:
        """Refuse sizes that do not go together."""
        if self.width % self.heads:
            raise ConfigError(f"{at}heads={self.heads} does not divide {at}width={self.width}; choose a divisor")
        if self.vocabulary < self.tokenizer_size:
            raise ConfigError(
                f"{at}vocabulary={self.vocabulary} is smaller than {at}tokenizer_size={self.tokenizer_size}; "
                "make it at least as large"
            )


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "model/pretrained": PretrainedModel,
    "model/scratch": ScratchModel,
}
