"""Methods that learn from their own completions at a fixed beta: what REINFORCE, RLOO, GRPO and online DPO share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.inputs import Inputs, Score
from imdb_rlhf.algos.online import OnlineMethod, Sampled
from imdb_rlhf.algos.population import Population, tilted_by
from imdb_rlhf.algos.rollout import Episodes, Minibatch, aligned, episode_metrics
from imdb_rlhf.config.online_algos import OnlineRun
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.losses.online import penalised_reward
from imdb_rlhf.models.logprobs import LogProbs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime

R = TypeVar("R", bound=OnlineRun)
E = TypeVar("E", bound=Episodes)


@dataclass(frozen=True)
class Scored(Episodes):
    """Episodes with an advantage each.

    Attributes:
        ref_logprob: (episodes, tokens) float32, log-prob under the reference, nats.
        advantage: (episodes,) float32, of the whole completion.
    """

    ref_logprob: Tensor
    advantage: Tensor

    @classmethod
    def of(cls, sampled: Sampled, advantage: Tensor) -> Self:
        """A sampled batch with these (episodes,) advantages."""
        rows, (logprob, ref_logprob, *_) = sampled.rows, sampled.tables
        return cls(rows.ids, rows.starts, rows.lengths, sampled.mask, logprob, ref_logprob, advantage)


@dataclass(frozen=True)
class EpisodeMinibatch(Minibatch[E]):
    """The episodes of one optimizer step; losses are averaged over episodes."""

    @property
    def size(self) -> float:
        """Number of episodes."""
        return float(len(self.rollout.ids))


class FixedBetaMethod(OnlineMethod[R, E]):
    """All but the preparation of a batch and the loss.

    Args:
        policy: the policy to train.
        reference: the policy that the KL is taken to; frozen.
        prompts: token rows that episodes begin with.
        score: prompt_ids and completion_ids to (n,) scores.
        run: the configuration.
        runtime: precision and processes.
    """

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel,
        prompts: Sequence[list[int]],
        score: Score,
        run: R,
        runtime: Runtime,
    ) -> None:
        policy.lm.requires_grad_(True)
        module = LogProbs(policy.lm, run.generation.temperature).eval()  # eval: no dropout
        super().__init__(policy, reference, prompts, score, run, run.online, runtime, module, run.online.group)
        self.kls: list[float] = []

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: R) -> Self:
        """The method on training prompts."""
        return cls(inputs.policy, inputs.reference, inputs.prompts, inputs.score(run.online), run, inputs.runtime)

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the reference tilted by the reward that it maximises."""
        return tilted_by(config[cls.stage])

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """The title, with -GT where the true reward is optimised, as PPO's."""
        return cls.title if config[cls.stage]["reward"] == RewardSource.learned else f"{cls.title}-GT"

    def summary_line(self) -> str:
        """Return its batches, its reward and beta."""
        config = self.run.online
        each = f" ({config.group} per prompt)" if config.group > 1 else ""
        return (
            f"{config.batches} batches of {config.batch_size} episodes{each}, {self.steps} steps; {config.reward} "
            f"reward; beta {self.run.beta:g}"
        )

    def collect(self, number: int) -> tuple[E, dict[str, float]]:
        """Sample and score batch `number`, and prepare it."""
        sampled = self.sample(number)
        rollout = self.prepare(sampled, number)
        self.kls.append(sampled.kl)
        notes = episode_metrics("rollout/", rollout, sampled.score, sampled.ended, sampled.kl, self.run.beta)
        return rollout, notes | {"rollout/episodes": float((number + 1) * self.run.online.batch_size)}

    @abstractmethod
    def prepare(self, sampled: Sampled, number: int) -> E:
        """What batch `number` is trained on."""

    def penalised(self, sampled: Sampled) -> Tensor:
        """(episodes,) rewards with the KL in them."""
        logprob, ref_logprob = (table.sum(-1) for table in sampled.tables[:2])
        return penalised_reward(sampled.score, logprob, ref_logprob, self.run.beta)

    def token_logprobs(self, module: nn.Module, rollout: Episodes, first: bool) -> Tensor:
        """(episodes, tokens) log-probs under the policy as it is now, 0 outside the mask.

        Raises:
            RunError: it is the first step on the batch, and they are not those of the rollout.
        """
        logprob = aligned(module(rollout.ids, rollout.starts, rollout.lengths), rollout.starts, rollout.mask)
        if first:
            self.check_ratio((logprob - rollout.logprob).detach()[rollout.mask].abs())
        return logprob

    def state(self) -> dict[str, Any]:
        """The rollout in use, and the KL of every batch."""
        return super().state() | {"kls": self.kls}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume within a batch of episodes, or after it."""
        super().restore(state)
        self.kls = state["kls"]

    def report(self) -> dict[str, Any]:
        """Return the KL over the last fifth of the batches, and the number of episodes."""
        last = self.kls[-max(1, len(self.kls) // 5) :]
        episodes = len(self.kls) * self.run.online.batch_size
        return {"online": {"kl_last_fifth": float(np.mean(last)), "episodes": episodes}}


def sequence_metrics(log_ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """Sums over (episodes,) log-ratios of completions; see docs/metrics.md."""
    with torch.no_grad():
        ratio = log_ratio.exp()
        return {
            "train/ratio": ratio.sum(),
            "train/approx_kl": (ratio - 1 - log_ratio).sum(),
            "train/clip_fraction": ((ratio - 1).abs() > clip).float().sum(),
        }
