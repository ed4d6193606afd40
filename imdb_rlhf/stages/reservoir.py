"""Stages `reservoir` and `learned_scores`: M reference samples per evaluation prompt, and a reward model's scores."""

from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.families import ReservoirRun
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.samples import Sampler, compare_scores, report_of, summary_of
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.true_reward import TrueReward

FILE = "reservoir.parquet"
SCORES = "scores.parquet"  # the learned ones
KEYS = ["split", "prompt_id", "sample_id"]


def evaluation_prompt_count(run: ReservoirRun) -> int:
    """Number of validation and test prompts."""
    return run.data.prompts.test + run.data.prompts.validation


class Reservoir(Stage):
    """M samples of the reference per validation and test prompt, in float32 as every evaluation is."""

    name = "reservoir"

    def __init__(self, flow: Flow, run: ReservoirRun) -> None:
        super().__init__(flow)
        self.run, self.config = run, run.reservoir

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where best-of-N or an optimum is read off it."""
        run = flow.run
        return cls(flow, run) if isinstance(run, ReservoirRun) and run.uses_reservoir else None

    def inputs(self) -> dict[str, Any]:
        """Its configuration, the reference, the true reward, the prompts and the machine."""
        return {
            "config": asdict(self.config),
            "reference": self.flow.get(Reference).identity,
            "reward": self.flow.get(TrueReward).identity,
            "data": self.flow.key(Reviews),
            "generation": self.flow.generation,
            "machine": self.flow.float32_facts,
        }

    def make(self, folder: Path) -> None:
        """Sample and score, one split after the other."""
        config, prompts = self.config, self.flow.get(Reviews).evaluation_prompts
        sampler = Sampler(self.flow, config.seed, config.samples, config.batch_size, nullcontext)
        policy, reward = sampler.open()
        total = sum(len(rows) for rows in prompts.values()) * config.samples
        with self.console.progress("reservoir", total, "completion") as progress:
            tables = {
                split: sampler.table(policy, reward, rows, f"reservoir/{split}", progress)
                for split, rows in prompts.items()
            }
        if self.runtime.rank:
            return
        frame = pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)
        compare_scores(self.flow, frame, folder)  # in other batches
        write_table(folder / FILE, frame)
        write_json(folder / "report.json", report_of(frame))

    def check_reused(self) -> None:
        """Refuse scores that the true reward no longer gives."""
        compare_scores(self.flow, pd.read_parquet(self.path / FILE), self.path)

    def summary_line(self, folder: Path) -> str:
        """How many samples, and their rewards."""
        return summary_of(folder)

    def size(self) -> Disk:
        """About 800 bytes per sample."""
        return unchanging(800 * evaluation_prompt_count(self.run) * self.config.samples)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The samples, with the column `learned` where there is a reward model."""
        rows = pd.read_parquet(self.path / FILE)
        if not self.flow.has(LearnedScores):
            return rows
        return rows.merge(self.flow.get(LearnedScores).rows(), on=KEYS, validate="one_to_one")


class LearnedScores(Stage):
    """The reward model's scores of the reservoir."""

    name = "learned_scores"

    def __init__(self, flow: Flow, run: ReservoirRun) -> None:
        super().__init__(flow)
        self.run = run

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where there are both."""
        run = flow.run
        if not isinstance(run, ReservoirRun):
            return None
        return cls(flow, run) if run.uses_reservoir and run.uses_learned_reward else None

    def inputs(self) -> dict[str, Any]:
        """The reservoir, the reward model and the machine."""
        return {
            "reservoir": self.flow.key(Reservoir),
            "reward_model": self.flow.key(TrainedRewardModel),
            "machine": self.flow.float32_facts,
        }

    def make(self, folder: Path) -> None:
        """Score every sample."""
        rows = pd.read_parquet(self.flow.get(Reservoir).path / FILE)
        if self.runtime.rank:
            return
        learned = self.flow.get(TrainedRewardModel).reward
        scores = learned.score_ids(list(rows["prompt_ids"]), list(rows["completion_ids"]))
        write_table(folder / SCORES, rows[KEYS].assign(learned=scores))

    def size(self) -> Disk:
        """About 30 bytes per sample."""
        return unchanging(30 * evaluation_prompt_count(self.run) * self.run.reservoir.samples)

    def rows(self) -> pd.DataFrame:
        """The scores: column `learned` per split, prompt and sample."""
        return pd.read_parquet(self.path / SCORES)
