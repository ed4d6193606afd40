"""RLOO: REINFORCE with the other completions of the same prompt as baseline (arXiv 2402.14740, section 2).

1. K completions of each prompt are sampled from the policy;
2. R = r - beta (log pi - log ref) of the whole completion, which is one action;
3. A_i = R_i minus the mean of the K - 1 others;
4. one or more steps down max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = pi / pi_old of the whole completion. At the
   first step, the paper's only one, rho is 1 and the gradient that of -A log pi(y).
"""

from torch import Tensor, nn

from imdb_rlhf.algos.fixed_beta import EpisodeMinibatch, FixedBetaMethod, Scored, sequence_metrics
from imdb_rlhf.algos.online import Sampled
from imdb_rlhf.config.online_algos import RLOORun
from imdb_rlhf.losses import ppo_policy_loss
from imdb_rlhf.losses.online import leave_one_out_advantage


class RLOO(FixedBetaMethod[RLOORun, Scored]):
    """Maximises r - beta KL with a leave-one-out baseline per prompt."""

    stage = "rloo"
    title = "RLOO"
    rollout_type = Scored

    def prepare(self, sampled: Sampled, number: int) -> Scored:
        """The batch with each reward minus the mean of the prompt's others."""
        reward = self.penalised(sampled).reshape(-1, self.group)
        return Scored.of(sampled, leave_one_out_advantage(reward).flatten())

    def minibatch(self, rollout: Scored, first: bool) -> EpisodeMinibatch[Scored]:
        """The episodes of a step, averaged over episodes."""
        return EpisodeMinibatch(rollout, self.notes, first, self.stopped)

    def loss(self, module: nn.Module, part: tuple[Scored, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part's completions, and the metrics that practitioners plot."""
        rollout, clip = part[0].to(next(module.parameters()).device), self.run.rloo.clip
        logprob = self.token_logprobs(module, rollout, part[1]).sum(-1)
        old = rollout.logprob.sum(-1)
        losses = ppo_policy_loss(logprob, old, rollout.advantage, clip)
        metrics = {"train/advantage_size": rollout.advantage.abs().sum()}
        return losses.sum(), metrics | sequence_metrics((logprob - old).detach(), clip)
