"""Models that come from outside: a folder, or the Hub at a commit; and the model that SFT starts from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from imdb_rlhf.config.model import PretrainedModel, ScratchModel
from imdb_rlhf.config.run import Run
from imdb_rlhf.data import hub
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.stages.stage import Flow

# Parameters of gpt2-large and gpt2, for a model that is not on this machine yet.
LARGE, BASE = 774_030_080, 124_439_808


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Return a function from texts to token ids, without special tokens and without a warning about length."""

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    return encode


@dataclass(frozen=True)
class ModelSource:
    """Where a causal LM comes from.

    Attributes:
        path: a folder, or a Hub id.
        revision: the Hub's commit, branch or tag; None is main.
        key: the config key that names it, for messages.
        attention: the attention kernel that it is loaded with.
    """

    path: str
    revision: str | None
    key: str
    attention: str

    @property
    def identity(self) -> str:
        """What a key hashes of it: the folder's content, or the Hub's id and commit."""
        return hub.identity(self.path, self.revision, self.key)

    @property
    def folder(self) -> Path:
        """Its folder on this machine, downloaded if need be."""
        return hub.fetch(self.path, self.revision, self.key)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return policies.load_tokenizer(self.folder, self.key)

    def check(self, run: Run, *, trained: bool = True) -> None:
        """Refuse a local folder that cannot be used; a Hub id is left for `fetch`."""
        if hub.is_folder(self.path):
            policies.check_folder(self.folder, self.key)
            self._check_model(run, trained)

    def fetch(self, run: Run, *, trained: bool = True) -> None:
        """Download a model from the Hub, and refuse one that cannot be used."""
        if not hub.is_folder(self.path):
            _ = self.folder
            self._check_model(run, trained)

    def _check_model(self, run: Run, trained: bool) -> None:
        """Refuse a model whose tokenizer is another's, or that reads shorter rows than the run needs.

        Args:
            run: the lengths that are needed.
            trained: whether SFT rows are trained on with it.

        Raises:
            RunError: no causal LM, no tokenizer, or one of another vocabulary.
            ConfigError: naming both lengths.
        """
        folder, key = self.folder, self.key
        try:
            config = AutoConfig.from_pretrained(folder)
            rows = config.vocab_size
        except Exception as error:
            raise RunError(f"{key}={folder}: its config.json cannot be used: {str(error).splitlines()[0]}") from error
        if config.is_encoder_decoder:
            raise RunError(f"{key}={folder} is an encoder-decoder model ({config.model_type}); give a causal LM")
        policies.check_vocabulary(rows, policies.load_tokenizer(folder, key), folder, key)
        context = policies.context_length(config)
        prompt, new = run.data.prompts.max_tokens, run.generation.max_new_tokens
        if prompt + new + run.appends_eos > context:
            raise ConfigError(
                f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={new} is longer than the {context} "
                f"tokens that {key}={folder} reads; shorten them"
            )
        if trained and run.sft.path is None and run.sft.max_tokens > context:
            raise ConfigError(
                f"sft.max_tokens={run.sft.max_tokens} is longer than the {context} tokens that {key}={folder} reads; "
                "shorten it"
            )


class Base:
    """The model that SFT starts from; with `sft.path`, the reference that exists and is not trained."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.run = flow, flow.run

    @cached_property
    def source(self) -> ModelSource | None:
        """Where it comes from; None for a model that is made here with random weights."""
        sft, model = self.run.sft, self.run.model
        if sft.path is not None:
            return ModelSource(sft.path, sft.revision, "sft.path", str(model.attention))
        if isinstance(model, PretrainedModel):
            return ModelSource(model.path, model.revision, "model.path", str(model.attention))
        return None

    @property
    def scratch(self) -> ScratchModel | None:
        """The shape of a model that is made here; None for one that comes from outside."""
        model = self.run.model
        return model if isinstance(model, ScratchModel) and self.run.sft.path is None else None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What it contributes to the keys of artifacts."""
        if self.source is None:
            return {"scratch": asdict(self.run.model)}
        kind = "pretrained" if self.run.sft.path is None else "reference"
        return {kind: self.source.identity, "attention": self.run.model.attention}

    @property
    def pretrained(self) -> bool:
        """Whether it was pretrained and SFT trains it further, so that policies can be compared with it too."""
        return self.source is not None and self.run.sft.path is None

    def policy(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> Policy:
        """Load or make it, on the CPU.

        Args:
            tokenizer: returns the tokenizer of a model that is made here.
        """
        if self.scratch is not None:
            return policies.scratch(self.scratch, tokenizer())
        assert self.source is not None  # one of the two
        return policies.load(self.source.folder, self.source.attention)

    def parameters(self) -> int:
        """Number of parameters, without loading it."""
        model = self.scratch
        if model is not None:
            return model.vocabulary * model.width + model.context * model.width + 12 * model.layers * model.width**2
        path = self.source.path if self.source is not None else ""
        if hub.is_folder(path):
            return policies.parameters_of(Path(path).expanduser())
        return LARGE if "large" in path else BASE
