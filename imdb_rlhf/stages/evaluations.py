"""Stages `reference`, `base` and `own_model`: policies that nothing is trained on, evaluated as every policy is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from transformers import PreTrainedModel

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.algos import OwnModelRun
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS, evaluate
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models import tokens
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.mixtures import DecodedPolicy
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.stages.reference import Reference, open_base
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.samples import compare_scores
from imdb_rlhf.stages.sources import Base, ModelSource
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.true_reward import TrueReward

FILE = "evaluation.parquet"


class Evaluation(Stage):
    """Reward and KL of one policy on the evaluation prompts."""

    name: ClassVar[str]

    def inputs(self) -> dict[str, Any]:
        """The evaluation's configuration, the reference, the true reward, the prompts and the machine."""
        config = asdict(self.flow.run.evaluation)
        return {
            "evaluation": {key: config[key] for key in ("seed", "samples", "batch_size")},
            "reference": self.flow.get(Reference).identity,
            "reward": self.flow.get(TrueReward).identity,
            "data": self.flow.key(Reviews),
            "generation": self.flow.generation,
            "machine": self.flow.float32_facts,
            "columns": COLUMNS + TEXTS,
        }

    def evaluate(self, folder: Path, policy: Policy | DecodedPolicy, reference: Policy) -> None:
        """Evaluate a policy and write its rows."""
        run = self.flow.run
        for lm in (*policy.next_token.models, reference.lm):
            policies.freeze(lm)
        prompts = self.flow.get(Reviews).evaluation_prompts
        total = sum(len(rows) for rows in prompts.values()) * run.evaluation.samples
        with self.console.progress(self.name, total, "sample") as progress:
            frame = evaluate(
                policy,
                reference.lm,
                self.flow.get(TrueReward).reward,
                prompts,
                run.evaluation,
                run.generation,
                self.runtime,
                0,
                lambda count: progress.advance(count * self.runtime.world),
            )
        if self.runtime.rank == 0:
            write_table(folder / FILE, frame)

    def check_reused(self) -> None:
        """Refuse scores that the true reward no longer gives."""
        compare_scores(self.flow, self.rows(), self.path)

    def size(self) -> Disk:
        """About 500 bytes per sample."""
        run = self.flow.run
        return unchanging(500 * (run.data.prompts.test + run.data.prompts.validation) * run.evaluation.samples)

    def rows(self) -> pd.DataFrame:
        """The rows of its built artifact: `COLUMNS` and `TEXTS` of `evaluation.evaluate`."""
        return pd.read_parquet(self.path / FILE)


class ReferenceEvaluation(Evaluation):
    """The reference itself: KL 0, the reward that every policy starts from."""

    name = "reference"

    def make(self, folder: Path) -> None:
        """Evaluate the reference."""
        policy = self.flow.get(Reference).policy()
        self.evaluate(folder, policy, policy)


class BaseEvaluation(Evaluation):
    """The pretrained model before SFT."""

    name = "base"

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where a pretrained model is fine-tuned."""
        return cls(flow) if flow.get(Base).pretrained else None

    def inputs(self) -> dict[str, Any]:
        """An evaluation's, and the model."""
        return super().inputs() | {"base": self.flow.get(Base).identity}

    def make(self, folder: Path) -> None:
        """Evaluate the model before SFT."""
        policy = open_base(self.flow)
        policy.lm.to(self.runtime.device)
        self.evaluate(folder, policy, self.flow.get(Reference).policy())


class OutsideModel(Evaluation):
    """A policy that needs a model that exists, with the reference's tokenizer."""

    def __init__(self, flow: Flow, source: ModelSource) -> None:
        super().__init__(flow)
        self.source = source
        self.compared = False  # whether its tokenizer was compared with the reference's

    @property
    def identity(self) -> dict[str, Any]:
        """What the model contributes to the key."""
        return {"model": self.source.identity, "attention": self.flow.run.model.attention}

    def check(self) -> None:
        """Refuse a local folder that cannot be used."""
        self.source.check()
        if self.source.is_local:
            base = self.flow.get(Base)
            bos_id = base.bos_id if base.is_here else None  # else the lengths are checked again once it is
            self.source.check_lengths(self.flow.run, bos_id, trained=False)

    def fetch(self) -> None:
        """Download the model, and compare its tokenizer with the reference's if that is known."""
        self.source.fetch()
        self.source.check_lengths(self.flow.run, self.flow.get(Base).bos_id, trained=False)
        self._compare_tokenizers()

    def check_after(self, built: Stage) -> None:
        """Compare the tokenizers as soon as the reference's is trained."""
        self._compare_tokenizers()

    def _compare_tokenizers(self) -> None:
        """Refuse another tokenizer than the reference's, naming the first token that differs."""
        reference = None if self.compared else self.flow.get(Reviews).known_tokenizer()
        if reference is not None:
            own = self.source.tokenizer()
            bos_id = self.flow.get(Base).bos_id
            tokens.check_same_tokens(own, reference, bos_id, self.source.folder, self.source.key)
            self.compared = True

    def open(self, reference: Policy) -> tuple[PreTrainedModel, int]:
        """The model on this run's device, and how many entries of its vocabulary it lost: the reference has none."""
        own = policies.load(self.source.folder, self.source.attention, self.source.key)
        left_out = policies.drop_tokens(own.lm, output_layer(reference.lm).vocabulary)
        own.lm.to(self.runtime.device)
        return own.lm, left_out


class OwnModel(OutsideModel):
    """A model that exists, as it is."""

    name = "own_model"

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only for `algo=own_model`."""
        run = flow.run
        if not isinstance(run, OwnModelRun):
            return None
        own, attention = run.own_model, str(run.model.attention)
        return cls(flow, ModelSource(own.path, own.revision, "own_model.path", attention))

    def inputs(self) -> dict[str, Any]:
        """An evaluation's, and the model."""
        return super().inputs() | {"own_model": self.identity}

    def make(self, folder: Path) -> None:
        """Evaluate the model, without the entries of its vocabulary that the reference does not have."""
        reference = self.flow.get(Reference).policy()
        lm, left_out = self.open(reference)
        # the reference's tokenizer: both end a completion with the same token, and the reward reads the same texts
        self.evaluate(folder, Policy(lm, reference.tokenizer), reference)
        if self.runtime.rank == 0:
            write_json(folder / "report.json", {"tokens_left_out": left_out})

    def summary_line(self, folder: Path) -> str:
        """How many entries of its vocabulary are left out, if any."""
        left_out = json.loads((folder / "report.json").read_text())["tokens_left_out"]
        return f"{left_out} entries that the reference does not have are never sampled" if left_out else ""
