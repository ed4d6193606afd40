"""Stages `guided` and `realigned`: policies that are decoded from several models, evaluated as every policy is."""

from pathlib import Path
from typing import Any, Self

from imdb_rlhf.config.decoding import DistillRun, GuidedRun, RealignRun
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.mixtures import DecodedPolicy, Guided, Realigned
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.stages.evaluations import Evaluation, OutsideModel
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.sources import ModelSource
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.stages.value import TrainedValue


def open_guided(flow: Flow, run: GuidedRun, reference: Policy) -> DecodedPolicy:
    """The guided policy of a run, frozen, on its device; the reference becomes a part of it."""
    policies.freeze(reference.lm)
    value = flow.get(TrainedValue).network(reference)
    return DecodedPolicy(Guided(reference.lm, value, run.beta, run.generation.temperature), reference.tokenizer)


class GuidedEvaluation(Evaluation):
    """Value-guided sampling at one beta."""

    name = "guided"

    def __init__(self, flow: Flow, run: GuidedRun) -> None:
        super().__init__(flow)
        self.run = run

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only for `algo=guided`."""
        run = flow.run
        return cls(flow, run) if isinstance(run, GuidedRun) and not isinstance(run, DistillRun) else None

    def inputs(self) -> dict[str, Any]:
        """An evaluation's, the value and beta."""
        return super().inputs() | {"value": self.flow.key(TrainedValue), "beta": self.run.beta}

    def make(self, folder: Path) -> None:
        """Evaluate the guided policy."""
        reference = self.flow.get(Reference).policy()
        self.evaluate(folder, open_guided(self.flow, self.run, reference), reference)


class RealignedEvaluation(OutsideModel):
    """The mixture of the reference with a policy that exists."""

    name = "realigned"

    def __init__(self, flow: Flow, run: RealignRun) -> None:
        own, attention = run.realign, str(run.model.attention)
        super().__init__(flow, ModelSource(model_folder(own.path), own.revision, "realign.path", attention))
        self.run = run

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only for `algo=realign`."""
        return cls(flow, flow.run) if isinstance(flow.run, RealignRun) else None

    def inputs(self) -> dict[str, Any]:
        """An evaluation's, the policy and lambda."""
        return super().inputs() | {"realigned": self.identity | {"lam": self.run.lam}}

    def make(self, folder: Path) -> None:
        """Evaluate the mixture, without the entries of the policy's vocabulary that the reference does not have."""
        reference = self.flow.get(Reference).policy()
        lm, _ = self.open(reference)
        for model in (reference.lm, lm):
            policies.freeze(model)
        mixture = Realigned(reference.lm, lm, self.run.lam)
        self.evaluate(folder, DecodedPolicy(mixture, reference.tokenizer), reference)


def model_folder(path: str) -> str:
    """The folder of a model: a finished run's is `model/` in it."""
    inside = Path(path).expanduser() / "model"
    return str(inside) if (inside / "config.json").is_file() else path
