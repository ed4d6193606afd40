"""What a run's algorithm is made from, taken from the built stages: PPO's score and first coefficient, too."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np

from imdb_rlhf.algos.inputs import Optimised, Score
from imdb_rlhf.config.decoding import GuidedRun
from imdb_rlhf.config.ppo import KLControl, PPOConfig, Scale
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation import optimum, reservoir
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.next_token import NextToken
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.tokens import decode
from imdb_rlhf.stages.decoded import open_guided
from imdb_rlhf.stages.groups import Groups, RescoredGroups
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reservoir import Reservoir
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.training.runtime import Runtime

# The column of a table of samples that holds the true reward on a scale.
COLUMNS = {Scale.reward: "reward", Scale.logit: "reward_logit"}


class RunInputs:
    """The `Inputs` of one run; stages are opened when an algorithm asks for them.

    Attributes:
        policy: a fresh copy of the reference, to be trained.
        reference: frozen.
        runtime: device, the precision of the policy's training, and processes.
    """

    def __init__(self, flow: Flow, policy: Policy, runtime: Runtime) -> None:
        self.flow, self.policy, self.runtime = flow, policy, runtime
        self.reference = policies.freeze(flow.get(Reference).policy().lm)

    @property
    def groups(self) -> Path:
        """The folder of the artifact of groups, whose log-probs are in the precision of the policy's training."""
        return self.flow.get(RescoredGroups if self.flow.has(RescoredGroups) else Groups).path

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Training prompts as token rows."""
        return self.flow.get(Reviews).training_prompts

    @property
    def learned_score(self) -> Score:
        """The reward model's normalised scores."""
        learned = self.flow.get(TrainedRewardModel).reward

        def learned_scores(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
            with self.runtime.autocast():
                return learned.score_ids(prompt_ids, completion_ids)

        return learned_scores

    def guided(self, run: GuidedRun) -> NextToken:
        """Return the guided policy of a run, frozen."""
        return open_guided(self.flow, run, self.flow.get(Reference).policy()).next_token

    def score(self, config: Optimised) -> Score:
        """Return the reward that a method optimises: the learned one, or the true one on the configured scale.

        Raises:
            RunError: the true reward is to be normalised, and does not vary.
        """
        if config.reward == RewardSource.learned:
            return self.learned_score
        mean, std = self._normalisation(config)
        true, tokenizer = self.flow.get(TrueReward).reward, self.policy.tokenizer

        def true_scores(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
            rows = [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
            values: np.ndarray = getattr(true.score(decode(tokenizer, rows)), str(config.scale))
            return (values - mean) / std

        return true_scores

    def _normalisation(self, config: Optimised) -> tuple[float, float]:
        """Mean and standard deviation of the true reward on the reference's samples; 0 and 1 if it is not normalised.

        Raises:
            RunError: the samples all have the same reward.
        """
        if not config.normalize:
            return 0.0, 1.0
        values = self._reservoir(COLUMNS[config.scale])
        if not values.std() > 0:
            key = f"{self.flow.run.algo}.normalize"
            raise RunError(f"{key} needs true rewards that differ; set {key}=false or another reward")
        return float(values.mean()), float(values.std())

    def first_kl_coefficient(self, config: PPOConfig, target_kl: float | None) -> float:
        """Return the coefficient of PPO's first batch: as configured, or the one whose optimum has the target's KL.

        The optimum is that of the reservoir's validation prompts; the test prompts are left for the report.

        Raises:
            RunError: the rewards of no prompt differ.
        """
        given = config.kl_coefficient if target_kl is None else config.initial_kl_coefficient
        if given is not None:
            return given
        assert target_kl is not None  # the configuration has a fixed coefficient or a target
        if config.reward == RewardSource.learned:
            values = self._reservoir("learned")
        else:
            mean, std = self._normalisation(config)
            values = (self._reservoir(COLUMNS[config.scale]) - mean) / std
        try:
            coefficient = optimum.coefficient_for(values, target_kl)
        except ValueError as error:
            raise RunError(f"ppo: {error}; set ppo.initial_kl_coefficient, or use another reward") from error
        if config.controller == KLControl.proportional_integral:
            # past what M samples reach, as for rewards of a normal distribution, where KL = variance / (2 beta^2)
            reached = float(optimum.plug_in(values, coefficient)[1].mean())
            coefficient *= math.sqrt(min(1.0, reached / target_kl))
        return min(max(coefficient, config.min_kl_coefficient), config.max_kl_coefficient)

    def _reservoir(self, column: str) -> np.ndarray:
        """(prompts, M) a column of the reservoir's validation prompts."""
        return reservoir.table(self.flow.get(Reservoir).rows, "validation", column)
