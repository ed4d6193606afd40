"""Each kind of run: what is evaluated, what its summary holds, and what it leaves in its folder.

`KINDS` names every algorithm that `algo=` takes.
"""

import json
import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.method import PolicyMethod, method_members
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.algos import BestOfNRun
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.config.run import KeepModel, Run
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.evaluation.evaluate import metrics
from imdb_rlhf.evaluation.stats import distinct_n
from imdb_rlhf.kinds import check_whole
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.runs import files, summary
from imdb_rlhf.runs.decoded import GuidedSampling, Realignment
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.kind import PolicyRun, RunKind, UntrainedRun
from imdb_rlhf.runs.trackers import log_artifacts
from imdb_rlhf.runs.train import train_policy
from imdb_rlhf.stages.evaluations import OwnModel
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reservoir import Reservoir
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.stage import Disk
from imdb_rlhf.stages.training import training_disk
from imdb_rlhf.tracking import Trackers, jsonl


class TrainedPolicyRun(PolicyRun):
    """An algorithm of `ALGOS`: a policy is trained from the reference."""

    title = "policy"  # each algorithm has a title of its own

    def evaluate(self, trackers: Trackers, start: int) -> tuple[Policy | None, dict[str, Any]]:
        """Train the policy, evaluating it on the way."""
        assert isinstance(self.run, TrainedRun)  # `KINDS` gives this kind to `ALGOS` alone
        policy = self.flow.get(Reference).policy()
        return policy, train_policy(self.folder, self.run, policy, trackers, start)

    def size(self) -> Disk:
        """The model; the best one and checkpoints of everything that is trained on the way."""
        assert isinstance(self.run, TrainedRun)  # as above
        best = int(self.run.keep_model == KeepModel.best)
        return training_disk(self.flow, self.run.optim, self.models, best, self.run.networks)


class ReferenceRun(UntrainedRun):
    """`algo=sft`: the reference itself."""

    title = "SFT"
    colours = {"SFT": 6}

    def rows(self) -> pd.DataFrame:
        """The reference's evaluation."""
        return self.reference

    def size(self) -> Disk:
        """A copy of the reference."""
        return self.copied_model


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
        write_table(path / files.CURVE, rows)

    def leave_model(self, path: Path, policy: Policy | None, result: dict[str, Any]) -> None:
        """Write none: its model is the reference."""


class RewardModelAccount(RunKind):
    """`algo=reward_model`: the account of the reward model, which its stage has made, as a run of its own."""

    title = "reward model"
    table_file = files.SCORES

    def size(self) -> Disk:
        """A copy of the reward model."""
        return self.copied_model

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
                (folder.path / "model" / "README.md").write_text(self.card(result, self.flow.get(Reviews).bos))
            write_table(folder.path / files.SCORES, table)
            write_json(folder.path / files.SUMMARY, result)
            folder.seal()
            log_artifacts(folder, trackers, result)
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
    **dict.fromkeys(ALGOS, TrainedPolicyRun),
    "guided": GuidedSampling,
    "realign": Realignment,
    "own_model": OwnModelEvaluation,
    "best_of_n": BestOfN,
    "reward_model": RewardModelAccount,
}


def kind_of(run: Run) -> type[RunKind]:
    """The kind of a run.

    Raises:
        RunError: its algorithm is in no table, or not whole.
    """
    if run.algo not in KINDS:
        raise RunError(f"algo={run.algo} has no line in ALGOS (imdb_rlhf/algos/__init__.py); add it")
    if run.algo in ALGOS:
        method = ALGOS[run.algo]
        check_whole(method, f"{method.__module__}.{method.__name__}", PolicyMethod, method_members())
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
