"""Models that come from outside: a folder, or the Hub at a commit; and the model that SFT starts from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedTokenizerBase

from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.config.model import PretrainedModel, ScratchModel
from imdb_rlhf.config.run import Run
from imdb_rlhf.data import hub
from imdb_rlhf.errors import ConfigError, RunError, first_line
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models import tokens
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.stages.stage import Flow, Stage
from imdb_rlhf.training.memory import check_memory

# Parameters of gpt2-large and gpt2, for a model that is not on this machine yet.
LARGE, BASE = 774_030_080, 124_439_808


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

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, so that nothing is to be downloaded."""
        return hub.is_folder(self.path)

    @cached_property
    def config(self) -> Any:
        """Its config.json.

        Raises:
            RunError: it cannot be used.
        """
        try:
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            _ = config.vocab_size
        except Exception as error:
            message = f"{self.key}={self.folder}: its config.json cannot be used: {first_line(error)}"
            raise RunError(message) from error
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return tokens.load_tokenizer(self.folder, self.key)

    def bos_id(self, bos: Bos) -> int | None:
        """The token that rows of this model begin with, or None; it must be on this machine.

        Raises:
            ConfigError: its tokenizer has none, and rows are to begin with it.
        """
        return tokens.first_token(self.tokenizer(), self.config.model_type, bos, f"{self.key}={self.path}")

    def check(self) -> None:
        """Refuse a local folder that cannot be used; a Hub id is left for `fetch`."""
        if self.is_local:
            policies.check_folder(self.folder, self.key)
            self._check_model()

    def fetch(self) -> None:
        """Download a model from the Hub, and refuse one that cannot be used."""
        if not self.is_local:
            _ = self.folder
            self._check_model()

    def _check_model(self) -> None:
        """Refuse what is no causal LM, and a model whose tokenizer is another's.

        Raises:
            RunError: no causal LM, no tokenizer, or one of another vocabulary.
        """
        folder, key = self.folder, self.key
        if self.config.is_encoder_decoder:
            raise RunError(f"{key}={folder} is an encoder-decoder model ({self.config.model_type}); give a causal LM")
        tokens.check_vocabulary(self.config.vocab_size, self.tokenizer(), folder, key)

    def check_lengths(self, run: Run, bos_id: int | None, *, trained: bool = True) -> None:
        """Refuse a model that reads shorter rows than the run needs; it must be on this machine.

        Args:
            run: the lengths that are needed.
            bos_id: the token that rows begin with, if any.
            trained: whether SFT rows are trained on with it.

        Raises:
            ConfigError: naming both lengths.
        """
        folder, key = self.folder, self.key
        context = policies.context_length(self.config)
        prompt, new = run.data.prompts.max_tokens, run.generation.max_new_tokens
        if (bos_id is not None) + prompt + new + run.appends_eos > context:
            begins = "" if bos_id is None else "BOS + "
            raise ConfigError(
                f"{begins}data.prompts.max_tokens={prompt} + generation.max_new_tokens={new} is longer than the "
                f"{context} tokens that {key}={folder} reads; shorten them"
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

    def check(self) -> None:
        """Refuse a local folder that cannot be used."""
        if self.source is not None:
            self.source.check()
            if self.source.is_local:
                self.source.check_lengths(self.run, self.bos_id)

    def fetch(self) -> None:
        """Download it, and refuse it if it cannot be used, or is larger than the memory."""
        if self.source is not None and not self.source.is_local:
            self.source.fetch()
            self.source.check_lengths(self.run, self.bos_id)
        run = self.run
        optimizers = [run.sft.optim] if run.sft.path is None else []
        optimizers += [run.optim] if isinstance(run, TrainedRun) else []
        kept = 1 + max((1 + optimizer.moments for optimizer in optimizers), default=0)
        key = (
            f"model={run.model.name}"
            if self.scratch is not None or self.source is None
            else (f"{self.source.key}={self.source.path}")
        )
        check_memory(self.parameters(), kept, self.flow.runtime.device, key)

    @property
    def is_here(self) -> bool:
        """Whether nothing is to be downloaded."""
        return self.source is None or self.source.is_local

    @property
    def context(self) -> int:
        """The longest row that it reads, in tokens; it must be on this machine."""
        if self.scratch is not None:
            return self.scratch.context
        assert self.source is not None  # one of the two
        return policies.context_length(self.source.config)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that every row of the run begins with, or None: THE decision, which all that read rows follow.

        A model from the Hub must be on this machine.
        """
        return None if self.source is None else self.source.bos_id(self.run.data.bos)

    @property
    def bos_identity(self) -> dict[str, Any]:
        """What it contributes to the keys of artifacts that hold rows; nothing where rows begin with text.

        A Hub's model is not known before it is downloaded, so its keys hold what is configured.
        """
        known = self.bos_id if self.is_here else str(self.run.data.bos)
        return {} if known is None else {"bos": known}

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


class ClassifierStage(Stage):
    """A stage that puts a head on the run's model, which transformers must know how to make a sequence classifier."""

    def check(self) -> None:
        """Refuse a model of which no classifier can be made."""
        if self.flow.get(Base).is_here:
            self.fetch()

    def fetch(self) -> None:
        """The same for a model from the Hub, which is downloaded by now.

        Raises:
            RunError: naming its type and the way out.
        """
        source = self.flow.get(Base).source
        if source is not None and type(source.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise RunError(
                f"{source.key}={source.path}: transformers has no sequence classifier for {source.config.model_type} "
                "models, which a reward that is trained needs; give another model, or a reward and an algorithm that "
                "train none (ppo.reward=ground_truth)"
            )
