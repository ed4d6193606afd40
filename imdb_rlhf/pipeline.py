"""THE DATA FLOW, stage by stage.

    reviews -> data -> sft -> (two_label) -> groups -> (rescored) -> reference -> (reward_model) -> (reservoir)
            -> (value_samples) -> (value) -> policy

Every stage but the last makes an artifact named by the hash of its inputs, so it is made once and reused by every run
that needs the same. A stage's file in `stages/` says what its key hashes and how it is made; the policy is trained and
evaluated in the run's own folder (`runs/`).
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from imdb_rlhf.artifacts.files import plain
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import RunError
from imdb_rlhf.stages.checked import CheckedModels
from imdb_rlhf.stages.decoded import GuidedEvaluation, RealignedEvaluation
from imdb_rlhf.stages.evaluations import BaseEvaluation, OwnModel, ReferenceEvaluation
from imdb_rlhf.stages.groups import Groups, RescoredGroups
from imdb_rlhf.stages.reference import TrainedReference
from imdb_rlhf.stages.reservoir import LearnedScores, Reservoir
from imdb_rlhf.stages.reviews import Labelled, Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.true_reward import TrainedReward, TrueReward
from imdb_rlhf.stages.value import TrainedValue, ValueSamples
from imdb_rlhf.tracking.console import STAGE_WIDTH, Console
from imdb_rlhf.training.runtime import Runtime

# In the order in which they are made. A run has those that it needs.
STAGES: tuple[type[Stage], ...] = (
    CheckedModels,  # checked: models that come from outside
    Reviews,  # data: reviews divided, tokenizer, prompts
    TrainedReference,  # sft: the reference policy
    Labelled,  # labelled: reviews for a true reward that is trained
    TrainedReward,  # two_label: that reward
    Groups,  # groups: K completions per training prompt, scored
    RescoredGroups,  # rescored: their log-probs again, where the policy is trained in another precision
    ReferenceEvaluation,  # reference: where every policy starts
    BaseEvaluation,  # base: the pretrained model before SFT
    OwnModel,  # own_model: a model that exists
    TrainedRewardModel,  # reward_model: the learned reward
    Reservoir,  # reservoir: M reference samples per evaluation prompt
    LearnedScores,  # learned_scores: the learned reward of the reservoir
    ValueSamples,  # value_samples: more completions per training prompt, where the groups are not to serve
    TrainedValue,  # value: the action value that guides sampling
    GuidedEvaluation,  # guided: value-guided sampling
    RealignedEvaluation,  # realigned: the reference mixed with a policy
)


class Pipeline(Flow):
    """The stages upstream of a run's policy."""

    def __init__(self, run: Run, runtime: Runtime, console: Console) -> None:
        """Lay out the stages and refuse what can be known to fail; nothing is loaded or written.

        Raises:
            RunError: naming the key and the way out.
        """
        super().__init__(run, runtime, console, STAGES)
        self.seconds: dict[str, float] = {}  # wall time of each stage in this process, near 0 where it was reused
        for part in self._parts():
            part.check()

    def _parts(self) -> list[Stage | TrueReward]:
        return [*self.stages, self.get(TrueReward)]

    def keys(self) -> dict[str, str]:
        """Stage -> key, of every artifact that this run uses."""
        return {stage.name: self.store.key(stage.name, self.inputs(stage)) for stage in self.stages}

    def fetch(self) -> None:
        """Download everything that comes from the Hub, and open a reward that no stage trains, before the first stage.

        Raises:
            RunError: the Hub is out of reach, or a model or a reward cannot be used.
        """
        for part in self._parts():
            part.fetch()

    def build(self) -> None:
        """Make or reuse every stage, and say which."""
        for stage in self.stages:
            began = time.perf_counter()
            artifact = self.store.build(
                stage.name,
                self.inputs(stage),
                stage.make,
                resumable=stage.resumable,
                check=partial(self.check_unchanged, [stage]),
            )
            self.seconds[stage.name] = time.perf_counter() - began
            self.artifacts[stage.name] = artifact
            if artifact.reused and self.runtime.rank == 0:
                stage.check_reused()
            for other in self.stages:
                other.check_after(stage)
            note = stage.summary_line(artifact.path)
            if artifact.source_changed:
                note = f"{note}; made by another version of the source".removeprefix("; ")
            self.console.stage(
                stage.name, reused=artifact.reused, seconds=artifact.seconds, path=str(artifact.path), note=note
            )

    def check_unchanged(self, stages: Sequence[Stage] | None = None) -> None:
        """Hash again what the stages read, and refuse what is no longer as it was when they began.

        Args:
            stages: all by default.

        Raises:
            RunError: naming what changed.
        """
        again = Flow(self.run, self.runtime, self.console, STAGES)
        for stage in self.stages if stages is None else stages:
            before, now = plain(self.inputs(stage)), plain(again.inputs(again.get(type(stage))))
            if before != now:
                raise RunError(
                    f"{stage.name}: {_difference(before, now)} changed while it was read, so that it is not known what "
                    "was used; run again"
                )

    def plan(self) -> Disk:
        """Print the stages and which artifacts would be reused; write nothing.

        Returns:
            The disk that the others need.
        """
        disk = unchanging(0)
        for stage in self.stages:
            inputs = self.inputs(stage)
            artifact = self.store.find(stage.name, inputs)
            if artifact is not None:
                self.console.stage(stage.name, reused=True, seconds=artifact.seconds, path=str(artifact.path))
            else:
                disk = disk.then(stage.size())
                folder = self.store.root / stage.name / self.store.key(stage.name, inputs)
                self.console.note(f"{stage.name:<{STAGE_WIDTH}} to be made   {folder}")
        return disk


def _difference(before: Any, now: Any) -> str:
    """The dotted name of the first entry in which two mappings differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return "what it depends on"
    name = next(key for key in (*before, *now) if before.get(key) != now.get(key))
    below = [before.get(name), now.get(name)]
    return f"{name}.{_difference(*below)}" if all(isinstance(part, dict) for part in below) else str(name)
