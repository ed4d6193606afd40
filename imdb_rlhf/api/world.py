"""The world of an evaluation: reference, prompts, reward and sampling. Policies of one world share a pair of axes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakSet

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.api import models
from imdb_rlhf.api.prompts import Prompts, rows_of
from imdb_rlhf.api.results import Measurement
from imdb_rlhf.api.rewards import RewardFunction, as_reward
from imdb_rlhf.artifacts.files import hash_of
from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.ranges import check
from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS, evaluate
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.tokens import check_same_tokens, check_vocabulary, first_token

Model: TypeAlias = "PreTrainedModel | str | Path"


class World:
    """What reward and KL are measured on.

    Attributes:
        reference: as given: a causal LM, its folder or its Hub id.
        tokenizer: of the reference and of every policy.
        reward: scores texts; as a function where it came from a run.
        prompts: split -> prompts as token rows: `test`, and `validation` where there are some.
        evaluation, generation: samples, seed and intervals; how completions are drawn.
        device: where models are.
    """

    def __init__(
        self,
        reference: Model,
        tokenizer: PreTrainedTokenizerBase | None,
        prompts: Prompts,
        reward: RewardFunction,
        *,
        validation_prompts: Prompts | None = None,
        samples: int = 4,
        max_new_tokens: int = 48,
        shortest_limit: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
        bootstrap: int = 2000,
        confidence: float = 0.95,
        device: str | torch.device | None = None,
    ) -> None:
        """Check everything; nothing is sampled yet. Sampling is as `generation.*` and `evaluation.*` in conf/ say.

        Args:
            reference: a causal LM of transformers, in memory or as a folder or Hub id. One in memory is moved to the
                device and is left as it is otherwise.
            tokenizer: the reference's; None loads the one beside a reference that is not in memory.
            prompts: of the test: texts, or rows of token ids.
            reward: from a list of texts (prompt + completion, without special tokens) to as many finite numbers.
            validation_prompts: others, on which a frontier chooses checkpoints.
            samples: per prompt.
            max_new_tokens: most new tokens; there is no top-k and no top-p.
            shortest_limit: draws each completion's limit evenly from here to `max_new_tokens`; None takes that.
            temperature: of sampling and of the KL.
            seed: of samples and bootstrap; a prompt gets the same random numbers for every policy.
            batch_size: completions sampled and scored at once.
            bootstrap: resamples of the prompts for intervals.
            confidence: their coverage.
            device: None is where a model in memory is, else a GPU if torch sees one.

        Raises:
            ConfigError: an argument is out of range, or the prompts cannot be used.
            RunError: the reference or the tokenizer cannot be used.
        """
        self.evaluation = EvaluationConfig(seed, samples, 1, batch_size, bootstrap, confidence)
        self.generation = GenerationConfig(max_new_tokens, shortest_limit, temperature)
        _check_numbers(self.evaluation, self.generation)
        self.reference, self.reward = reference, as_reward(reward)
        given = isinstance(reference, torch.nn.Module)
        if given:
            self._reference = models.inner(reference, "reference")
        else:
            policy = models.load(reference, "reference")
            self._reference, tokenizer = policy.lm, tokenizer or policy.tokenizer
        if tokenizer is None or tokenizer.eos_token_id is None:
            raise ConfigError(
                "tokenizer has no EOS token" if tokenizer else "tokenizer is missing; give the reference's"
            )
        self.tokenizer = tokenizer
        self.device = _device(device, self._reference if given else None)
        self._reference.to(self.device)
        check_vocabulary(output_layer(self._reference).vocabulary, tokenizer, Path(_name(reference)), "reference")
        model_type = str(self._reference.config.model_type)
        self._bos_id = first_token(tokenizer, model_type, Bos.auto, str(_name(reference)))
        self._checked: WeakSet[PreTrainedModel] = WeakSet()
        if given:
            self._check_once(self._reference, "reference")
        splits = {"validation": validation_prompts, "test": prompts}
        names = {"validation": "validation_prompts", "test": "prompts"}
        self.prompts = {
            split: rows_of(rows, names[split], tokenizer, self._reference, max_new_tokens, self._bos_id)
            for split, rows in splits.items()
            if rows is not None
        }

    def _check_once(self, lm: PreTrainedModel, name: str) -> None:
        if lm not in self._checked:
            with models.at_rest(lm):
                models.check(lm, name)
            self._checked.add(lm)

    # --- measuring ------------------------------------------------------------------------------------------------

    def measure(self, model: Model) -> Measurement:
        """Reward, exact KL and win rate of a model on the test prompts.

        Args:
            model: a causal LM with the world's tokenizer, in memory or as a folder or Hub id; it is left as it is.

        Raises:
            RunError: the model cannot be used, or a number is nan or infinite.
        """
        test = {"test": self.prompts["test"]}
        frame = self.rows(self.open(model), test)
        rows = self.reference_rows
        return Measurement.of(frame, rows[rows["split"] == "test"], self.evaluation)

    def open(self, model: Model) -> PreTrainedModel:
        """A model as it is measured: one from a folder with the reference's vocabulary, one in memory itself."""
        if isinstance(model, torch.nn.Module):
            lm = models.inner(model, "model")
            lm.to(self.device)
        else:
            policy = models.load(model, "model")
            check_same_tokens(policy.tokenizer, self.tokenizer, self._bos_id, Path(model), "model")
            policies.drop_tokens(policy.lm, output_layer(self._reference).vocabulary)
            lm = policy.lm.to(self.device)
            self._checked.add(lm)
        models.check_vocabularies(lm, self._reference, self.tokenizer)
        self._check_once(lm, "model")
        return lm

    def rows(self, lm: PreTrainedModel, prompts: Mapping[str, list[list[int]]], step: int = 0) -> pd.DataFrame:
        """Evaluation rows of an opened model (`COLUMNS` and `TEXTS` of `evaluation.evaluate`); it is left as it is."""
        self._reference.to(self.device)
        with models.at_rest(lm, self._reference):
            return evaluate(
                Policy(lm, self.tokenizer),
                self._reference,
                self.reward,
                prompts,
                self.evaluation,
                self.generation,
                models.Processes(self.device),
                step,
            )

    @cached_property
    def reference_rows(self) -> pd.DataFrame:
        """The evaluation rows of the reference, on every split."""
        return self.rows(self._reference, self.prompts)

    def shares_weights(self, lm: PreTrainedModel) -> bool:
        """Whether a model is the reference itself, so that training it would move both."""
        own = {parameter.data_ptr() for parameter in self._reference.parameters()}
        return any(parameter.data_ptr() in own for parameter in lm.parameters())

    # --- what identifies it ---------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the axes depend on, as an artifact of the reference's evaluation records it.

        The reference is its weights and tokenizer, the prompts are their tokens. A function has no content that could
        be hashed (it may call models and read files), so the reward is the numbers that it gave to all samples of the
        reference: two rewards are the same if they agree on every one of them.
        """
        scores = self.reference_rows[["reward", "reward_logit"]].to_numpy().tobytes()
        return {
            "evaluation": {key: asdict(self.evaluation)[key] for key in ("seed", "samples", "batch_size")},
            "reference": {"weights": weights_hash(self._reference), "tokenizer": tokenizer_hash(self.tokenizer)},
            "reward": {"scores": hashlib.sha256(scores).hexdigest()[:16]},
            "data": {"prompts": hash_of(self.prompts)},
            "generation": {key: value for key, value in asdict(self.generation).items() if value is not None},
            "columns": COLUMNS + TEXTS,
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The keys of a run's `config.yaml` that say what it was measured on."""
        inputs = self.inputs
        return {
            "model": {"name": _name(self.reference)},
            "data": {"name": "own"} | inputs["data"],
            "reward": {"name": self.reward.name} | inputs["reward"],
            "generation": asdict(self.generation),
            "sft": {"path": None} | inputs["reference"],
            "evaluation": asdict(self.evaluation),
            "logger": {"name": "none"},
        }

    @property
    def artifacts(self) -> dict[str, str]:
        """Stage -> key of the artifacts that this world came from: none where it was made here."""
        return {}

    @property
    def reward_range(self) -> list[float | None]:
        """[infimum, supremum] of the reward; None where nothing is known."""
        return [None, None]


def weights_hash(lm: PreTrainedModel) -> str:
    """16 hex digits of a model's class, names, shapes and numbers in float32."""
    digest = hashlib.sha256(type(lm).__name__.encode())
    for name, tensor in sorted(lm.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of a tokenizer's entries and EOS."""
    return hash_of([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id])


def _name(reference: Model) -> str:
    if isinstance(reference, torch.nn.Module):
        return str(getattr(reference.config, "_name_or_path", "") or type(reference).__name__)
    return str(reference)


def _device(wanted: str | torch.device | None, given: PreTrainedModel | None) -> torch.device:
    if wanted is not None:
        return torch.device(wanted)
    if given is not None:
        return given.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_numbers(*configs: Any) -> None:
    """Refuse numbers out of range, and parts of a whole number."""
    for config in configs:
        for name, value in asdict(config).items():
            whole = name not in ("temperature", "confidence")
            if value is not None and (isinstance(value, bool) or not isinstance(value, int if whole else int | float)):
                raise ConfigError(f"{name}={value!r} is not a {'whole ' if whole else ''}number")
        check(config)
    generation = configs[-1]
    generation.check("")
