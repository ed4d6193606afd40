"""Which model: pretrained, or made here with random weights."""

from dataclasses import dataclass
from enum import StrEnum

from imdb_rlhf.config.ranges import number
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


@dataclass
class PretrainedModel(ModelConfig):
    """A Hugging Face causal LM by Hub id or folder."""

    path: str
    revision: str | None


@dataclass
class ScratchModel(ModelConfig):
    """A GPT-2 with random weights and a byte-level BPE tokenizer trained on the SFT text."""

    layers: int
    width: int
    heads: int
    context: int
    tokenizer_size: int
    vocabulary: int
    init_seed: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("layers", "width", "heads"):
            number(self, key, at, 1)
        number(self, "context", at, 4)
        number(self, "tokenizer_size", at, 260)
        number(self, "init_seed", at, 0, 2**63 - 1)
        if self.width % self.heads:
            raise ConfigError(f"{at}heads={self.heads} does not divide {at}width={self.width}; choose a divisor")
        if self.vocabulary < self.tokenizer_size:
            raise ConfigError(
                f"model.vocabulary={self.vocabulary} is smaller than model.tokenizer_size={self.tokenizer_size}; "
                "make it at least as large"
            )


# Where conf/ names these classes: `/schema/<key>`.
SCHEMAS: dict[str, type] = {
    "model/pretrained": PretrainedModel,
    "model/scratch": ScratchModel,
}
