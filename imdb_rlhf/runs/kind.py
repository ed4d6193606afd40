"""What a kind of run must say, and what the kinds that end in a policy share."""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.population import Population
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.run import KeepModel
from imdb_rlhf.evaluation.evaluate import metrics
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.card import Published, card
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.runs import files, points, summary
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.trackers import log_artifacts
from imdb_rlhf.stages.evaluations import BaseEvaluation, ReferenceEvaluation
from imdb_rlhf.stages.groups import Groups
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, unchanging
from imdb_rlhf.stages.training import BYTES
from imdb_rlhf.tracking import Trackers
from imdb_rlhf.training import checkpoint


class RunKind(ABC):
    """One kind of run.

    Attributes:
        title: its display name in figures and tables.
        colours: name of a method -> its place in the palette.
        table_file: the table that is shown when it is finished.
        folder, flow, run: of one run.
    """

    title: ClassVar[str]
    colours: ClassVar[Mapping[str, int]] = {}
    table_file: ClassVar[str] = files.SAMPLES

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.flow, self.run = folder, folder.pipeline, folder.run

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Return what figures and tables call a finished run: the title, with the variant if there is one."""
        return cls.title if variant is None else f"{cls.title} ({variant})"

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the policy that a finished run's loss asks for, or why none is known (as `PolicyMethod`)."""
        return "nothing is known of its loss"

    @abstractmethod
    def work(self, trackers: Trackers, start: int, began: float) -> tuple[dict[str, Any], pd.DataFrame]:
        """Do the run's own work and leave its results in the folder, sealed.

        Args:
            trackers: take rows of metrics.
            start: the step of the folder's checkpoint; 0 without one.
            began: when the run started, by `time.perf_counter`.

        Returns:
            `summary.json`, and the table that is shown.

        Raises:
            RunError: a number that is not finite, or nothing to train on.
            Stopped: a signal came and a checkpoint is written.
        """

    def size(self) -> Disk:
        """Return the disk that its folder takes; tables are small beside models."""
        return unchanging(0)

    @property
    def models(self) -> int:
        """How many models stay in the folder."""
        return 0 if self.run.keep_model == KeepModel.none else 1

    @property
    def copied_model(self) -> Disk:
        """The disk of a model that is copied into the folder."""
        return unchanging(self.models * BYTES * self.flow.get(Base).parameters())

    def card(self, result: Mapping[str, Any], bos: str | None, published: Published | None = None) -> str:
        """Return the card of its model.

        Args:
            result: `summary.json`.
            bos: the token that rows begin with, if any.
            published: what is known when it goes to the Hub.
        """
        named = ALGOS.get(self.run.algo, type(self))
        return card(self.run, named.method_name(asdict(self.run), self.run.variant), result, bos, published)

    def log_tables(self, trackers: Trackers, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        """Give the trackers the finished run's tables, histograms and summary."""
        columns = ["prompt", "reference", "reference_reward", "policy", "policy_reward", "kl", "log_ratio"]
        first = table[table["sample_id"] == 0].head(100)
        trackers.table("samples", columns, first[columns].values.tolist())
        for key, policy in (("reward_before", "reference"), ("reward_after", "policy")):
            trackers.histogram(key, table[f"{policy}_reward"].tolist(), int(result["step"]))
        trackers.finish(result)

    def show_table(self, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        """Show completions before and after training."""
        self.folder.console.samples(summary.shown(table))

    @property
    def draws_itself(self) -> bool:
        """Whether the console names the command that draws the run beside the others of its folder."""
        return False


class PolicyRun(RunKind):
    """A run that ends in evaluation points of a policy."""

    @abstractmethod
    def evaluate(self, trackers: Trackers, start: int) -> tuple[Policy | None, dict[str, Any]]:
        """Leave the evaluation points.

        Returns:
            The trained policy, if there is one, and what its algorithm reports for `summary.json`.
        """

    @cached_property
    def reference(self) -> pd.DataFrame:
        """The evaluation rows of the reference."""
        return self.flow.get(ReferenceEvaluation).rows()

    @cached_property
    def base(self) -> pd.DataFrame | None:
        """Those of the pretrained model before SFT, where there is one."""
        return self.flow.get(BaseEvaluation).rows() if self.flow.has(BaseEvaluation) else None

    def complete(self, result: dict[str, Any]) -> None:
        """Replace and add keys of `summary.json` that this kind knows better."""

    def work(self, trackers: Trackers, start: int, began: float) -> tuple[dict[str, Any], pd.DataFrame]:
        """Evaluate, summarise and leave the results."""
        run, flow, folder = self.run, self.flow, self.folder
        policy, extra = self.evaluate(trackers, start)
        folder.runtime.barrier()
        frames = points.read(folder.path)
        folder.runtime.barrier()  # rank 0 removes them below
        reported = points.best_step(frames) if run.keep_model == KeepModel.best else max(frames)
        seconds = time.perf_counter() - began
        result = summary.summary(
            run, folder.name, frames[reported], self.reference, folder.config_hash, seconds, flow.seconds, self.base
        )
        self.complete(result)
        if run.uses_learned_reward:
            report = json.loads((flow.get(TrainedRewardModel).path / "report.json").read_text())
            result["reward_model"] = summary.learned_reward(report)
        if flow.has(Groups) and flow.get(Groups).preferences_hash is not None:
            result["preferences"] = flow.get(Groups).preferences_hash
        result |= extra
        table = summary.samples(frames[reported], self.reference)
        if folder.leader:
            self._leave(policy, frames, result, table)
            log_artifacts(folder, trackers, result)
            self.log_tables(trackers, table, result)
        folder.runtime.barrier()
        return result, table

    def _leave(
        self, policy: Policy | None, frames: dict[int, pd.DataFrame], result: dict[str, Any], table: pd.DataFrame
    ) -> None:
        path = self.folder.path
        write_table(path / files.EVALUATIONS, points.joined(frames), points.UNKNOWN)
        write_table(path / files.SAMPLES, table, points.UNKNOWN)
        self.leave_more(path)
        write_json(path / files.SUMMARY, result)
        shutil.rmtree(path / "model", ignore_errors=True)
        self.leave_model(path, policy, result)
        # sealed before anything is removed: a kill in between leaves either a finished run or one to continue
        self.folder.seal()
        shutil.rmtree(path / points.PARTS)
        shutil.rmtree(path / "best", ignore_errors=True)
        checkpoint.remove(path)

    def leave_more(self, path: Path) -> None:
        """Write files that only this kind has."""

    def leave_model(self, path: Path, policy: Policy | None, result: dict[str, Any]) -> None:
        """Write `model/`: the last policy, or the one with the best validation reward."""
        run, model_card = self.run, self.card(result, self.flow.get(Reviews).bos)
        if run.keep_model == KeepModel.best and (path / "best").exists():
            shutil.copytree(path / "best", path / "model")
            (path / "model" / "README.md").write_text(model_card)
        elif run.keep_model != KeepModel.none:
            exported = policy or self.flow.get(Reference).policy()
            policies.save(exported, path / "model", model_card, run.generation.temperature)


class UntrainedRun(PolicyRun):
    """A run that evaluates a policy and trains none: one evaluation point, at step 0."""

    @abstractmethod
    def rows(self) -> pd.DataFrame:
        """The rows of the evaluation point."""

    def metrics(self, frame: pd.DataFrame) -> dict[str, float]:
        """The row of `metrics.jsonl`."""
        return metrics(frame)

    def evaluate(self, trackers: Trackers, start: int) -> tuple[Policy | None, dict[str, Any]]:
        """Leave the one evaluation point."""
        if self.folder.leader:
            frame = self.rows()
            points.keep(self.folder.path, frame, 0)
            trackers.log({"stage": self.run.algo, "step": 0} | self.metrics(frame))
        return None, {}
