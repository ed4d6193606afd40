"""REINFORCE with the KL in the reward and a baseline (Williams 1992; as in arXiv 2402.14740, section 2).

1. completions of a batch of prompts are sampled from the policy, one each;
2. R = r - beta (log pi - log ref) of the whole completion, which is one action;
3. one step down -(R - b) log pi(y), b the mean reward of the batch's other completions, or of all batches before.
No ratio and no clipping: the policy that is trained is the one that sampled.
"""

from typing import Any

from torch import Tensor, nn

from imdb_rlhf.algos.fixed_beta import EpisodeMinibatch, FixedBetaMethod, Scored
from imdb_rlhf.algos.online import Sampled
from imdb_rlhf.config.online_algos import Baseline, ReinforceRun
from imdb_rlhf.losses.online import leave_one_out_advantage, reinforce


class Reinforce(FixedBetaMethod[ReinforceRun, Scored]):
    """Maximises r - beta KL by the score-function gradient."""

    stage = "reinforce"
    title = "REINFORCE"
    rollout_type = Scored

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.rewards: list[float] = []  # mean of every batch, for the moving average

    def prepare(self, sampled: Sampled, number: int) -> Scored:
        """The batch with rewards minus the baseline."""
        reward = self.penalised(sampled)
        advantage = leave_one_out_advantage(reward[None])[0]
        if self.run.reinforce.baseline == Baseline.moving_average and self.rewards:  # the first batch has none before
            advantage = reward - sum(self.rewards) / len(self.rewards)
        self.rewards.append(float(reward.double().mean()))
        return Scored.of(sampled, advantage)

    def minibatch(self, rollout: Scored, first: bool) -> EpisodeMinibatch[Scored]:
        """The batch, averaged over episodes."""
        return EpisodeMinibatch(rollout, self.notes, first, self.stopped)

    def loss(self, module: nn.Module, part: tuple[Scored, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part's completions, and the size of their advantages."""
        rollout = part[0].to(next(module.parameters()).device)
        logprob = self.token_logprobs(module, rollout, part[1]).sum(-1)
        metrics = {"train/advantage_size": rollout.advantage.abs().sum()}
        return reinforce(logprob, rollout.advantage).sum(), metrics

    def state(self) -> dict[str, Any]:
        """The rollout in use, and the mean reward of every batch."""
        return super().state() | {"rewards": self.rewards}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume after a batch."""
        super().restore(state)
        self.rewards = state["rewards"]
