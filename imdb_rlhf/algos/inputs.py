"""What an algorithm is made from: models, data and scores, which a run provides."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from imdb_rlhf.config.decoding import GuidedRun
from imdb_rlhf.config.ppo import PPOConfig, Scale
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.models.next_token import NextToken
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime

# (prompt_ids, completion_ids) as token rows -> (n,) float rewards
Score = Callable[[list[list[int]], list[list[int]]], np.ndarray]


class Optimised(Protocol):
    """The part of a method's configuration that says which reward is optimised."""

    reward: RewardSource
    scale: Scale
    normalize: bool


class Inputs(Protocol):
    """What every algorithm may take from; each takes what it needs, and nothing else is read.

    Attributes:
        policy: a fresh copy of the reference, to be trained.
        reference: frozen.
        runtime: device, precision and processes.
    """

    policy: Policy
    reference: PreTrainedModel
    runtime: Runtime

    @property
    def groups(self) -> Path:
        """The folder of the artifact of groups."""
        ...

    @property
    def prompts(self) -> list[list[int]]:
        """Training prompts as token rows, for an algorithm that samples its own completions."""
        ...

    @property
    def learned_score(self) -> Score:
        """The reward model's normalised scores, for an algorithm that chooses by them."""
        ...

    def guided(self, run: GuidedRun) -> NextToken:
        """Return the guided policy of a run, frozen."""
        ...

    def score(self, config: Optimised) -> Score:
        """Return the reward that is optimised, as `config` scales it.

        Raises:
            RunError: it is to be normalised, and does not vary.
        """
        ...

    def first_kl_coefficient(self, config: PPOConfig, target_kl: float | None) -> float:
        """Return the coefficient of the first batch, in reward per nat.

        Raises:
            RunError: it follows from the reservoir, and the rewards of no prompt differ.
        """
        ...
