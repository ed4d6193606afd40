"""Runs whose policy is decoded from several models: their evaluation, and the models that they leave together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from imdb_rlhf.algos.population import Population, tilted_by
from imdb_rlhf.config.decoding import GuidedRun, RealignRun
from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.run import KeepModel
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.decoded_files import save_decoded
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.runs.kind import UntrainedRun
from imdb_rlhf.stages.decoded import GuidedEvaluation, RealignedEvaluation
from imdb_rlhf.stages.evaluations import Evaluation
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.stage import Disk, unchanging
from imdb_rlhf.stages.value import TrainedValue


class DecodedRun(UntrainedRun):
    """A policy that is decoded from two models, of which it leaves both."""

    stage: ClassVar[type[Evaluation]]

    def rows(self) -> pd.DataFrame:
        """The evaluation of its stage."""
        return self.flow.get(self.stage).rows()

    def size(self) -> Disk:
        """Two models."""
        return unchanging(2 * self.copied_model.final)

    @property
    def facts(self) -> dict[str, Any]:
        """How it is sampled, and the value of its knob."""
        generation, knob = self.run.generation, self.run.knob
        assert knob is not None  # every such run has one
        sampling = {"temperature": generation.temperature, "max_new_tokens": generation.max_new_tokens}
        return sampling | {knob[0]: knob[1]}

    @property
    def value(self) -> Path | None:
        """The folder of its value network, where it has one."""
        return None

    @property
    def other(self) -> Policy | None:
        """The model beside the reference, where it is one."""
        return None

    def leave_model(self, path: Path, policy: Policy | None, result: dict[str, Any]) -> None:
        """Write `model/`: both models, and how they are decoded together."""
        if self.run.keep_model == KeepModel.none:
            return
        model_card = self.card(result, self.flow.get(Reviews).bos)
        reference = self.flow.get(Reference).policy()
        save_decoded(path / "model", reference, model_card, self.facts, value=self.value, policy=self.other)


class GuidedSampling(DecodedRun):
    """`algo=guided`: the reference, guided by a value."""

    title = "Guided"
    stage = GuidedEvaluation

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Guided by a value of the learned reward, Guided-GT by one of the true reward, with the samples per prompt."""
        value = config["value"]
        name = cls.title if value["reward"] == RewardSource.learned else f"{cls.title}-GT"
        shared = ", shared" if value["network"] == ValueNetwork.shared else ""
        return f"{name} (K={value['samples'] or config['groups']['k']}{shared})"

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the tilted reference, which it is if its value is right."""
        return tilted_by(config["value"])

    @property
    def value(self) -> Path:
        """The folder of its value network."""
        return self.flow.get(TrainedValue).path / "model"

    def complete(self, result: dict[str, Any]) -> None:
        """Add the account of the value."""
        assert isinstance(self.run, GuidedRun)  # as `KINDS` has it
        result["value"] = self.flow.get(TrainedValue).report


class Realignment(DecodedRun):
    """`algo=realign`: the reference, mixed with a policy."""

    title = "realigned"
    stage = RealignedEvaluation

    @property
    def other(self) -> Policy:
        """The policy."""
        assert isinstance(self.run, RealignRun)  # as `KINDS` has it
        reference = self.flow.get(Reference).policy()
        lm, _ = self.flow.get(RealignedEvaluation).open(reference)
        return Policy(policies.freeze(lm), reference.tokenizer)
