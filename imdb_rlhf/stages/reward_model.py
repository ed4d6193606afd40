"""Stage `reward_model`: the learned reward, trained on groups, normalised and held to account."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from imdb_rlhf.algos.reward_model import RewardModel
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.families import LearnedRun
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation import agreement
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.heads import make_reward_head, score_rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards.learned import LearnedReward
from imdb_rlhf.stages.evaluations import ReferenceEvaluation
from imdb_rlhf.stages.groups import Groups
from imdb_rlhf.stages.reference import identity_of, open_start
from imdb_rlhf.stages.sources import ClassifierStage
from imdb_rlhf.stages.stage import Disk, Flow
from imdb_rlhf.stages.training import settings, train, training_disk
from imdb_rlhf.training import checkpoint


class TrainedRewardModel(ClassifierStage):
    """A scalar head on the language model; `model/` and `normalisation.json` are what `rewards.learned` reads."""

    name = "reward_model"
    resumable = True

    def __init__(self, flow: Flow, run: LearnedRun) -> None:
        super().__init__(flow)
        self.run, self.config, self.batch_size = run, run.reward_model, run.groups.batch_size

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where something uses a learned reward."""
        run = flow.run
        return cls(flow, run) if isinstance(run, LearnedRun) and run.uses_learned_reward else None

    def inputs(self) -> dict[str, Any]:
        """Its configuration, the groups and their pairs, the weights that it starts from, its account, the machine."""
        evaluation = asdict(self.run.evaluation)
        return {
            "config": asdict(self.config),
            "pairs": asdict(self.run.pairs),
            "groups": self.flow.key(Groups),
            "base": identity_of(self.flow, self.config.init),
            "account": self.flow.key(ReferenceEvaluation),
            "interval": {key: evaluation[key] for key in ("seed", "bootstrap", "confidence")},
            "machine": self.flow.training_facts,
        }

    def make(self, folder: Path) -> None:
        """Train it on the groups."""
        policy = open_start(self.flow, self.config.init)
        self.train(folder, policy, self.flow.get(Groups).path, self.flow.get(ReferenceEvaluation).rows())

    def train(self, folder: Path, policy: Policy, groups_folder: Path, reference_rows: pd.DataFrame) -> None:
        """Train the learned reward, normalise its scores and hold it to account.

        Args:
            folder: of the artifact.
            policy: the weights that it starts from.
            groups_folder: the groups that it learns from.
            reference_rows: samples of the reference for evaluation prompts: columns `split`, `prompt_id`, `sample_id`,
                `prompt_ids`, `completion_ids`, `reward`, `reward_logit`.

        Raises:
            RunError: nothing to learn from, or scores that do not vary.
        """
        config = self.config
        start, best = folder / "start", folder / "best"
        if self.runtime.rank == 0:
            policies.save(policy, start, "", 1.0)
        self.runtime.barrier()
        attention = str(self.run.model.attention)
        head = make_reward_head(start, attention, config.seed, policy.pad_id).to(self.runtime.device)
        algorithm = RewardModel.from_artifacts(head, groups_folder, policy.eos_id, self.run)
        # 1. training starts from a standard deviation of 1; the loss does not depend on the mean
        _, std = self._spread(algorithm, reference_rows)
        head.scale(1 / std)
        # 2. evaluations are evenly spaced, and the last one is at the end
        every = -(-algorithm.steps // config.evaluations)
        loop_settings = settings(self.flow, config.seed, config.optim, every)
        train(self.flow, algorithm, loop_settings, folder, self._keep_best(algorithm, folder, best, every))
        if self.runtime.rank:
            return
        best_checkpoint = checkpoint.load(best)
        assert best_checkpoint is not None  # the last step is always evaluated
        head.load_state_dict(best_checkpoint.weights)
        # 3. mean and standard deviation again, stored beside the model, whose own scale is the Bradley-Terry model's
        mean, std = self._spread(algorithm, reference_rows)
        # 4. the account: on samples that neither training nor the choice of the checkpoint saw
        test = reference_rows[reference_rows["split"] == "test"].reset_index(drop=True)
        raw = score_rows(algorithm.plain, list(test["prompt_ids"]), list(test["completion_ids"]), self.batch_size)
        test = test.assign(score=(raw - mean) / std)
        report = {
            "objective": str(config.objective),
            "pairs": len(algorithm.training.rows),
            "validation_pairs": len(algorithm.validation.rows),
            "dropped": algorithm.training.dropped,
            "steps": algorithm.steps,
            "kept_step": best_checkpoint.step,
            "validation_accuracy": best_checkpoint.sums["eval/accuracy"],
        }
        write_json(folder / "report.json", report | agreement.account(test, raw, self.run.evaluation))
        write_json(folder / "normalisation.json", {"mean": mean, "std": std})
        columns = ["prompt_id", "sample_id", "reward", "reward_logit", "score"]
        write_table(folder / "scores.parquet", test[columns])
        head.model.save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
        shutil.rmtree(start)
        shutil.rmtree(best)
        checkpoint.remove(folder)

    def _keep_best(
        self, algorithm: RewardModel, folder: Path, best: Path, every: int
    ) -> Callable[[int], dict[str, float]]:
        """Return an evaluation that stores the weights of the highest validation accuracy, the earliest of equals.

        `best` belongs to the checkpoint that training continues from: neither is of use without the other.
        """
        if self.runtime.rank == 0:
            resumed = checkpoint.load(folder)
            if resumed is None:
                shutil.rmtree(best, ignore_errors=True)
            elif resumed.step >= every and checkpoint.load(best) is None:
                checkpoint.remove(folder)
        self.runtime.barrier()
        earlier = checkpoint.load(best)
        highest = -np.inf if earlier is None else earlier.sums["eval/accuracy"]

        def evaluate(step: int) -> dict[str, float]:
            nonlocal highest
            with self.runtime.autocast():
                values = algorithm.validate(self.batch_size)
            if values["eval/accuracy"] > highest:
                highest = values["eval/accuracy"]
                if self.runtime.rank == 0:
                    weights = algorithm.plain.state_dict()
                    checkpoint.save(best, checkpoint.Checkpoint(step, weights, {}, values))
            return values

        return evaluate

    def _spread(self, algorithm: RewardModel, reference_rows: pd.DataFrame) -> tuple[float, float]:
        """Mean and standard deviation of the scores of reference samples that are not trained on, in float32.

        The samples are the completions of the validation prefixes. A preference file's texts need not be the
        reference's: then they are the reference's samples for the validation prompts.
        """
        if self.run.data.preferences is None:
            scores = algorithm.score(np.flatnonzero(algorithm.held_out), self.batch_size)
        else:
            rows = reference_rows[reference_rows["split"] == "validation"]
            prompt_ids, completion_ids = list(rows["prompt_ids"]), list(rows["completion_ids"])
            scores = score_rows(algorithm.plain, prompt_ids, completion_ids, self.batch_size)
        # the rounded mean of equal numbers may differ from them
        mean, std = float(scores.mean()), float(scores.std()) if np.ptp(scores) else 0.0
        if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
            raise RunError(
                f"reward_model: its scores have standard deviation {std} on samples of the reference; "
                "lower reward_model.optim.lr, or set trainer.precision=float32"
            )
        return mean, std

    def summary_line(self, folder: Path) -> str:
        """Its accuracy on test pairs, and its correlation with the true reward."""
        report = json.loads((folder / "report.json").read_text())
        accuracy, pearson = (
            "undefined" if report[key] is None else f"{report[key]:{form}}"
            for key, form in (("accuracy", ".1%"), ("pearson", ".2f"))
        )
        return f"test pair accuracy {accuracy}, correlation with the true log-odds {pearson}"

    def size(self) -> Disk:
        """The reward model; the weights that it starts from, the best ones and checkpoints on the way."""
        return training_disk(self.flow, self.config.optim, temporary=2)

    @cached_property
    def reward(self) -> LearnedReward:
        """The learned reward of the built artifact."""
        return LearnedReward(self.path, self.runtime.device, self.batch_size)
