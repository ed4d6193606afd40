"""Stage `checked`: models that come from outside are held against what the package takes for granted, once each."""

import json
from pathlib import Path
from typing import Any, Self

import transformers

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.config.algos import OwnModelRun
from imdb_rlhf.config.decoding import RealignRun
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.contract import TOKENS, check_reading
from imdb_rlhf.stages.decoded import RealignedEvaluation
from imdb_rlhf.stages.evaluations import OutsideModel, OwnModel
from imdb_rlhf.stages.sources import Base, ModelSource
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging


class CheckedModels(Stage):
    """The models of `model.path`, `sft.path`, `own_model.path` and `realign.path`, read in every way before use."""

    name = "checked"

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where a model comes from outside."""
        outside = flow.get(Base).source is not None or isinstance(flow.run, OwnModelRun | RealignRun)
        return cls(flow) if outside else None

    @property
    def sources(self) -> list[ModelSource]:
        """Where they come from."""
        base = self.flow.get(Base).source
        kinds: tuple[type[OutsideModel], ...] = (OwnModel, RealignedEvaluation)
        own = [self.flow.get(kind).source for kind in kinds if self.flow.has(kind)]
        return own if base is None else [base, *own]

    def inputs(self) -> dict[str, Any]:
        """The models, and the library whose code they run."""
        models = {source.key: [source.identity, source.attention] for source in self.sources}
        return {"models": models, "transformers": transformers.__version__, "longest": self.longest}

    @property
    def longest(self) -> int:
        """The longest row of the run, in tokens, as far as it is checked."""
        run = self.flow.run
        sampled = 1 + run.data.prompts.max_tokens + run.generation.max_new_tokens + run.appends_eos
        return min(TOKENS, max(sampled, 0 if run.sft.path else run.sft.max_tokens))

    def make(self, folder: Path) -> None:
        """Load and read each model."""
        if self.runtime.rank:
            return
        report = {}
        for source in self.sources:
            policy = policies.load(source.folder, source.attention, source.key)
            check_reading(policy.lm, min(policy.context, self.longest), f"{source.key}={source.path}")
            parameters = sum(parameter.numel() for parameter in policy.lm.parameters())
            report[source.key] = {"class": type(policy.lm).__name__, "parameters": parameters}
        write_json(folder / "report.json", report)

    def summary_line(self, folder: Path) -> str:
        """Class and size of each model."""
        report = json.loads((folder / "report.json").read_text())
        return ", ".join(
            f"{key} is a {entry['class']} of {entry['parameters'] / 1e6:,.1f} M parameters"
            for key, entry in report.items()
        )

    def size(self) -> Disk:
        """A line."""
        return unchanging(1000)
