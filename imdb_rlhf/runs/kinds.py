"""Kinds of run: what is evaluated, what the summary holds, and what is left in the folder.

`KINDS` names every algorithm that `algo=` takes; those of `ALGOS` all are `PolicyRun`s.
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.method import PolicyMethod
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.config.algos import BestOfNRun
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.config.run import KeepModel, Run
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.evaluation.evaluate import metrics
from imdb_rlhf.evaluation.stats import distinct_n
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.card import card
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.runs import files, points, summary
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.train import train_policy
from imdb_rlhf.stages.evaluations import BaseEvaluation, OwnModel, ReferenceEvaluation
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reservoir import Reservoir
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.tracking import Trackers, jsonl
from imdb_rlhf.training import checkpoint


class RunKind(ABC):
    """One kind of run.

    Attributes:
        title: its display name in figures and tables.
        colours: name of a method -> its place in the palette.
        has_policy: whether it ends in a policy, which is a point of the frontier.
        table_file: the table that is shown when it is finished.
        folder, flow, run: of one run.
    """

    title: ClassVar[str]
    colours: ClassVar[Mapping[str, int]] = {}
    has_policy: ClassVar[bool] = True
    table_file: ClassVar[str] = files.SAMPLES

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.flow, self.run = folder, folder.pipeline, folder.run

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Return what figures and tables call a finished run: the title, with the variant if there is one."""
        return cls.title if variant is None else f"{cls.title} ({variant})"

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
    """A run that ends in evaluation points of a policy; here, of one that is trained."""

    title = "policy"  # an algorithm has a title of its own

    def evaluate(self, trackers: Trackers, start: int) -> tuple[Policy | None, dict[str, Any]]:
        """Leave the evaluation points.

        Returns:
            The trained policy, and what its algorithm reports for `summary.json`.
        """
        assert isinstance(self.run, TrainedRun)  # `KINDS` gives this kind to `ALGOS` alone
        policy = self.flow.get(Reference).policy()
        return policy, train_policy(self.folder, self.run, policy, trackers, start)

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
        result |= extra
        table = summary.samples(frames[reported], self.reference)
        if folder.leader:
            self._leave(policy, frames, result, table)
            self.log_tables(trackers, table, result)
        folder.runtime.barrier()
        return result, table

    def _leave(
        self, policy: Policy | None, frames: dict[int, pd.DataFrame], result: dict[str, Any], table: pd.DataFrame
    ) -> None:
        path = self.folder.path
        points.joined(frames).to_parquet(path / files.EVALUATIONS, index=False)
        table.to_parquet(path / files.SAMPLES, index=False)
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
        run = self.run
        if run.keep_model == KeepModel.best and (path / "best").exists():
            shutil.copytree(path / "best", path / "model")
            (path / "model" / "README.md").write_text(card(run, result))
        elif run.keep_model != KeepModel.none:
            exported = policy or self.flow.get(Reference).policy()
            policies.save(exported, path / "model", card(run, result), run.generation.temperature)


class UntrainedRun(PolicyRun):
    """A run that evaluates a policy and trains none: one evaluation point, at step 0."""

    def rows(self) -> pd.DataFrame:
        """The rows of the evaluation point."""
        raise NotImplementedError

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


class ReferenceRun(UntrainedRun):
    """`algo=sft`: the reference itself."""

    title = "SFT"
    colours = {"SFT": 6}

    def rows(self) -> pd.DataFrame:
        """The reference's evaluation."""
        return self.reference


class OwnModelEvaluation(UntrainedRun):
    """`algo=own_model`: a model that exists."""

    title = "own model"

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Return the model's name."""
        return str(variant)

    def rows(self) -> pd.DataFrame:
        """The model's evaluation."""
        return self.flow.get(OwnModel).rows()

    def leave_model(self, path: Path, policy: Policy | None, result: dict[str, Any]) -> None:
        """Write none: the model is elsewhere."""

    @property
    def draws_itself(self) -> bool:
        """It is evaluated in order to be compared."""
        return True


class BestOfN(UntrainedRun):
    """`algo=best_of_n`: the best of N samples of the reservoir."""

    title = "best-of-N"
    has_policy = False  # its curve is read off the reservoir

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        run = folder.run
        assert isinstance(run, BestOfNRun)  # as `KINDS` has it
        self.n, self.selector = run.n, run.best_of_n.selector

    def rows(self) -> pd.DataFrame:
        """Draws of best-of-N."""
        return reservoir.draws(self.flow.get(Reservoir).rows, self.selector, self.n, self.run.evaluation.samples)

    def metrics(self, frame: pd.DataFrame) -> dict[str, float]:
        """The means of the draws, or the estimates of the whole reservoir; a single draw has no log-ratio."""
        values = metrics(frame) | {f"eval/{key}": self.estimates[key] for key in ("reward", "reward_logit", "kl")}
        return {key: value for key, value in values.items() if key not in ("eval/kl_per_token", "eval/kl_k1")}

    @cached_property
    def estimates(self) -> dict[str, Any]:
        """The estimates of the whole reservoir."""
        rows, others = self.flow.get(Reservoir).rows, {"win_rate": self.reference}
        others |= {} if self.base is None else {"win_rate_base": self.base}
        return reservoir.summary(rows, self.selector, self.n, others, self.run.evaluation)

    def complete(self, result: dict[str, Any]) -> None:
        """Replace the draws' means by the reservoir's estimates."""
        result |= self.estimates
        # distinct-2 falls as the text grows: on as many samples as there are draws
        reference = self.reference
        few = reference[(reference["split"] == "test") & (reference["sample_id"] < result["samples_per_prompt"])]
        result["reference"]["distinct_2"] = distinct_n(few["completion"])

    def leave_more(self, path: Path) -> None:
        """Write the curve of every N."""
        rows = reservoir.curve(self.flow.get(Reservoir).rows, self.selector)
        rows.to_parquet(path / files.CURVE, index=False)

    def leave_model(self, path: Path, policy: Policy | None, result: dict[str, Any]) -> None:
        """Write none: its model is the reference."""


class RewardModelAccount(RunKind):
    """`algo=reward_model`: the account of the reward model, which its stage has made, as a run of its own."""

    title = "reward model"
    has_policy = False
    table_file = "scores.parquet"

    def work(self, trackers: Trackers, start: int, began: float) -> tuple[dict[str, Any], pd.DataFrame]:
        """Copy the stage's results."""
        run, folder, source = self.run, self.folder, self.flow.get(TrainedRewardModel).path
        report = json.loads((source / "report.json").read_text())
        seconds = time.perf_counter() - began + self.flow.artifacts[TrainedRewardModel.name].seconds
        result = summary.reward_model(run, folder.name, report, folder.config_hash, seconds)
        table = pd.read_parquet(source / "scores.parquet")
        if folder.leader:
            for row in jsonl.read(source / "metrics.jsonl"):
                trackers.log(row)
            if run.keep_model != KeepModel.none:
                shutil.copytree(source / "model", folder.path / "model", dirs_exist_ok=True)
                shutil.copy(source / "normalisation.json", folder.path / "model" / "normalisation.json")
            table.to_parquet(folder.path / self.table_file, index=False)
            write_json(folder.path / files.SUMMARY, result)
            folder.seal()
            self.log_tables(trackers, table, result)
        folder.runtime.barrier()
        return result, table

    def log_tables(self, trackers: Trackers, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        """Give the trackers its reliability and its scores."""
        columns = ["lower", "upper", "count", "predicted", "observed"]
        bins = [[row[column] for column in columns] for row in result["reliability"]]
        trackers.table("reliability", columns, bins)
        trackers.histogram("score", table["score"].tolist(), int(result["step"]))
        trackers.finish({key: value for key, value in result.items() if key != "reliability"})

    def show_table(self, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        """Show how often pairs came out as the reward model predicted."""
        self.folder.console.reliability(result["reliability"])


# Every algorithm that `algo=` takes, in the order of figures and tables.
KINDS: dict[str, type[RunKind]] = {
    "sft": ReferenceRun,
    **dict.fromkeys(ALGOS, PolicyRun),
    "own_model": OwnModelEvaluation,
    "best_of_n": BestOfN,
    "reward_model": RewardModelAccount,
}


def kind_of(run: Run) -> type[RunKind]:
    """The kind of a run."""
    return KINDS[run.algo]


def method_name(algo: str, config: Mapping[str, Any], variant: str | None) -> str:
    """What figures and tables call a finished run.

    Args:
        algo: its algorithm.
        config: its `config.yaml`.
        variant: what sets it apart from other runs of the algorithm (`Run.variant`).
    """
    return (ALGOS[algo] if algo in ALGOS else KINDS[algo]).method_name(config, variant)


def palette_places() -> dict[str, int]:
    """Name of a method -> its place in the palette, of the methods that have one."""
    kinds: list[type[PolicyMethod] | type[RunKind]] = [*ALGOS.values(), *KINDS.values()]
    return {name: place for kind in kinds for name, place in kind.colours.items()}
