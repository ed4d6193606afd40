"""Stages `value_samples` and `value`: the action value of value-guided sampling, and completions of its own."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from imdb_rlhf.algos.value import Rewarded, ValueLearning, bins_of, centres_of, held_out_loss
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.decoding import GuidedRun
from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.data import groups
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.value import ActionValue, load_value, make_value, save_value
from imdb_rlhf.stages.evaluations import ReferenceEvaluation
from imdb_rlhf.stages.groups import Groups
from imdb_rlhf.stages.reference import Reference, identity_of, open_start
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.samples import Sampler, compare_scores, report_of, summary_of
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.training import settings, train, training_disk
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.training import checkpoint


class ValueSamples(Stage):
    """Completions of the reference for the training prompts, as many as `value.samples` says, with true rewards."""

    name = "value_samples"

    def __init__(self, flow: Flow, run: GuidedRun, count: int) -> None:
        super().__init__(flow)
        self.run, self.count = run, count

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where the value does not learn from the groups."""
        run = flow.run
        if not isinstance(run, GuidedRun) or run.value.samples is None:
            return None
        return cls(flow, run, run.value.samples)

    def inputs(self) -> dict[str, Any]:
        """How many, the seed and the batch of the groups, prompts, true reward, reference, sampling and machine."""
        config = self.run.groups
        return {
            "samples": {"count": self.count, "seed": config.seed, "batch_size": config.batch_size},
            "reward": self.flow.get(TrueReward).identity,
            "data": self.flow.key(Reviews),
            "reference": self.flow.get(Reference).identity,
            "generation": self.flow.generation,
            "machine": self.runtime.facts(),
        }

    def make(self, folder: Path) -> None:
        """Sample and score; the random numbers are the groups', so the first completions of a prompt are too."""
        config, prompts = self.run.groups, self.flow.get(Reviews).training_prompts
        sampler = Sampler(self.flow, config.seed, self.count, config.batch_size, self.runtime.autocast)
        policy, reward = sampler.open()
        with self.console.progress(self.name, len(prompts) * self.count, "completion") as progress:
            frame = sampler.table(policy, reward, prompts, "groups", progress)
        if self.runtime.rank:
            return
        compare_scores(self.flow, frame, folder)  # in other batches
        write_table(folder / "groups.parquet", frame)
        write_json(folder / "report.json", report_of(frame))

    def check_reused(self) -> None:
        """Refuse scores that the true reward no longer gives."""
        compare_scores(self.flow, groups.read(self.path), self.path)

    def summary_line(self, folder: Path) -> str:
        """How many completions, and their rewards."""
        return summary_of(folder)

    def size(self) -> Disk:
        """About 1,000 bytes per completion."""
        return unchanging(1000 * self.run.data.prompts.train * self.count)


class TrainedValue(Stage):
    """A distribution over the final reward for every prefix and next token."""

    name = "value"
    resumable = True

    def __init__(self, flow: Flow, run: GuidedRun) -> None:
        super().__init__(flow)
        self.run, self.config = run, run.value

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only for a policy that is guided by it."""
        return cls(flow, flow.run) if isinstance(flow.run, GuidedRun) else None

    @property
    def _samples(self) -> type[Stage]:
        return ValueSamples if self.flow.has(ValueSamples) else Groups

    def inputs(self) -> dict[str, Any]:
        """Its configuration and seed, the completions, the learned reward, what it starts from, the machine."""
        learned = self.flow.key(TrainedRewardModel) if self.run.uses_learned_reward else None
        return {
            "config": asdict(self.config) | {"seed": self.run.seed},
            "samples": self.flow.key(self._samples),
            "learned": learned,
            "base": identity_of(self.flow, self.config.init),
            "account": self.flow.key(ReferenceEvaluation),
            "machine": self.flow.training_facts,
        }

    def make(self, folder: Path) -> None:
        """Train it, and say how well it foresees the rewards of the reference's samples for validation prompts.

        Raises:
            RunError: the rewards do not differ.
        """
        config, run = self.config, self.run
        table = groups.read(self.flow.get(self._samples).path)
        rewards = self._rewards(table)
        centres = centres_of(rewards, config.bins)
        own = config.network == ValueNetwork.own
        start = open_start(self.flow, config.init).lm.to(self.runtime.device)
        network = make_value(start, torch.tensor(centres), config.rank, run.seed, own=own)
        data = _rewarded(table, bins_of(rewards, centres))
        algorithm = ValueLearning(network, data, config.batch_size, config.epochs, run.seed)
        train(self.flow, algorithm, settings(self.flow, run.seed, config.optim), folder)
        if self.runtime.rank:
            return
        rows = self.flow.get(ReferenceEvaluation).rows()
        rows = rows[rows["split"] == "validation"].reset_index(drop=True)
        held_out = _rewarded(rows, bins_of(self._rewards(rows), centres))
        # a copy: accelerate has wrapped the forward of what it trained in its autocast
        plain = ActionValue(network.lm, network.head, own=network.own).eval()
        loss, constant = held_out_loss(plain, held_out, config.batch_size)
        write_json(
            folder / "report.json",
            {"completions": len(data.bins), "steps": algorithm.steps, "held_out_loss": loss, "constant_loss": constant},
        )
        save_value(plain, folder / "model")
        checkpoint.remove(folder)

    def _rewards(self, table: pd.DataFrame) -> np.ndarray:
        """(n,) the reward that is foreseen, of the completions of a table, in float32."""
        if not self.run.uses_learned_reward:
            return np.asarray(table["reward"], dtype=np.float64)
        learned = self.flow.get(TrainedRewardModel).reward
        return learned.score_ids(list(table["prompt_ids"]), list(table["completion_ids"]))

    def summary_line(self, folder: Path) -> str:
        """How well it foresees the reward."""
        report = json.loads((folder / "report.json").read_text())
        return (
            f"held-out loss {report['held_out_loss']:.3f} nats per token, {report['constant_loss']:.3f} without "
            "reading the text"
        )

    @property
    def report(self) -> dict[str, Any]:
        """The account of the built artifact: completions and steps, and its loss on other completions."""
        return dict(json.loads((self.path / "report.json").read_text()))

    def size(self) -> Disk:
        """About a model, and checkpoints on the way."""
        return training_disk(self.flow, self.config.optim)

    def network(self, reference: policies.Policy) -> ActionValue:
        """The value network of the built artifact, frozen, for this reference."""
        return load_value(self.path / "model", reference.lm, str(self.run.model.attention))


def _rewarded(table: pd.DataFrame, bins: np.ndarray) -> Rewarded:
    prompt_ids, completion_ids = (
        [list(map(int, ids)) for ids in table[column]] for column in ("prompt_ids", "completion_ids")
    )
    return Rewarded(prompt_ids, completion_ids, bins)
