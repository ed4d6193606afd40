"""GRPO (arXiv 2402.03300, section 4.1) and Dr. GRPO (arXiv 2503.20783).

1. K completions of each prompt are sampled from the policy;
2. the advantage of all tokens of a completion is (r_i - mean) / std over its group; Dr. GRPO does not divide;
3. per token max(-A rho, -A clip(rho, 1 - c, 1 + c)) + beta k3, with rho = pi / pi_old of the token and k3 the estimate
   of the KL to the reference; averaged over a completion's tokens, then over completions. Dr. GRPO divides the sum by
   the largest length instead.
With kl_in=loss_corrected k3 is multiplied by rho, as TRL 1.16 does: its gradient is then that of the token's
KL(pi || ref). With kl_in=reward the KL is in the reward, as RLOO has it, and not in the loss; see docs/methods.md for
where each ends.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imdb_rlhf.algos.fixed_beta import EpisodeMinibatch, FixedBetaMethod, Scored
from imdb_rlhf.algos.online import Sampled
from imdb_rlhf.algos.population import Population
from imdb_rlhf.config.online_algos import GRPORun, KLPlace, LengthNorm
from imdb_rlhf.losses import ppo_policy_loss
from imdb_rlhf.losses.online import group_advantage, k3


class GRPO(FixedBetaMethod[GRPORun, Scored]):
    """Clipped policy gradient on advantages within a group."""

    stage = "grpo"
    title = "GRPO"
    rollout_type = Scored

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """GRPO or Dr. GRPO, with -GT where the true reward is optimised."""
        grpo = config["grpo"]
        doctor = not grpo["scale_advantages"] and grpo["length_norm"] == LengthNorm.constant
        return ("Dr. " if doctor else "") + super().method_name(config, variant)

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the tilted reference where beta is one number, and the KL in the reward; else none is known."""
        grpo = config["grpo"]
        if grpo["kl_in"] != KLPlace.reward:
            return "the gradient of k3 in the loss is not that of the KL to the reference"
        if grpo["scale_advantages"]:
            return "divided by a group's standard deviation, beta differs from prompt to prompt"
        return super().population(config)

    def prepare(self, sampled: Sampled, number: int) -> Scored:
        """The batch with advantages within groups."""
        config = self.run.grpo
        reward = self.penalised(sampled) if config.kl_in == KLPlace.reward else sampled.score
        advantage = group_advantage(reward.reshape(-1, self.group), config.scale_advantages)
        return Scored.of(sampled, advantage.flatten())

    def minibatch(self, rollout: Scored, first: bool) -> EpisodeMinibatch[Scored]:
        """The episodes of a step, averaged over episodes."""
        return EpisodeMinibatch(rollout, self.notes, first, self.stopped)

    def loss(self, module: nn.Module, part: tuple[Scored, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part's completions, and the metrics that practitioners plot."""
        config, rollout = self.run.grpo, part[0].to(next(module.parameters()).device)
        logprob = self.token_logprobs(module, rollout, part[1])
        losses = ppo_policy_loss(logprob, rollout.logprob, rollout.advantage[:, None], config.clip)
        kl = k3(logprob, rollout.ref_logprob)
        if config.kl_in == KLPlace.loss:
            losses = losses + self.run.beta * kl
        elif config.kl_in == KLPlace.loss_corrected:
            losses = losses + self.run.beta * kl * (logprob - rollout.logprob).exp()
        lengths = rollout.mask.sum(-1, keepdim=True)
        divisor = self.run.generation.max_new_tokens if config.length_norm == LengthNorm.constant else lengths
        with torch.no_grad():
            log_ratio = logprob - rollout.logprob
            ratio, token = log_ratio.exp(), rollout.mask / lengths
            metrics = {
                "train/advantage_size": rollout.advantage.abs().sum(),
                "train/k3": (kl * rollout.mask).sum(),
                "train/ratio": (ratio * token).sum(),
                "train/approx_kl": ((ratio - 1 - log_ratio) * token).sum(),
                "train/clip_fraction": (((ratio - 1).abs() > config.clip) * token).sum(),
            }
        return (losses * rollout.mask / divisor).sum(), metrics
