"""Proximal policy optimization (arXiv 1707.06347) of a reward minus a KL penalty, as in arXiv 1909.08593 and its code.

A batch of episodes is sampled and scored once, then trained on in several passes over minibatches:
1. completions of training prompts are sampled from the policy;
2. old log-probs, values and the reference's log-probs come from scoring them through the training path (`online.py`);
3. rewards: -beta (log pi_old - log ref) per token, plus the score on the last token, whitened if configured;
4. advantages and returns by GAE; advantages whitened over the minibatch, or over the batch;
5. clipped policy and value losses;
6. the controller moves beta once per batch: for the batch that it has seen, or for the next one (Ziegler's).
Left out: dropout, an entropy bonus, Ziegler's fixed score for completions without a full stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.inputs import Inputs, Score
from imdb_rlhf.algos.kl_controller import controller, missed_because
from imdb_rlhf.algos.online import OnlineMethod
from imdb_rlhf.algos.population import Population, tilted_by
from imdb_rlhf.algos.rollout import Minibatch, Rollout, aligned, batch_metrics
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.ppo import Whitening
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.losses import gae, mean_kl, ppo_policy_loss, ppo_value_loss, token_rewards, whiten
from imdb_rlhf.models.actor_critic import ActorCritic
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime

# How figures name the constants of other projects.
PRESET_NAMES = {"trl_2023": " (TRL)", "ziegler": " (Ziegler)"}


class PPO(OnlineMethod[PPORun, Rollout]):
    """Maximises the score minus beta times the KL, one minibatch per step.

    Args:
        policy: the policy to train.
        reference: the policy that the KL is taken to; frozen.
        prompts: token rows that episodes begin with.
        score: prompt_ids and completion_ids to (n,) scores.
        run: the configuration.
        runtime: precision and processes.
        kl_coefficient: beta of the first batch.
    """

    stage = "ppo"
    title = "PPO"
    rollout_type = Rollout
    colours: ClassVar[Mapping[str, int]] = {"PPO": 1, "PPO-GT (TRL)": 3, "PPO-GT": 4}

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel,
        prompts: Sequence[list[int]],
        score: Score,
        run: PPORun,
        runtime: Runtime,
        kl_coefficient: float,
    ) -> None:
        policy.lm.requires_grad_(True)
        self.config = config = run.ppo
        # eval: no dropout
        self.actor_critic = ActorCritic(policy.lm, run.generation.temperature, config.value).eval()
        super().__init__(policy, reference, prompts, score, run, config, runtime, self.actor_critic)
        self.controller = controller(config, run.target_kl, kl_coefficient)

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: PPORun) -> Self:
        """PPO on training prompts."""
        score, start = inputs.score(run.ppo), inputs.first_kl_coefficient(run.ppo, run.target_kl)
        return cls(inputs.policy, inputs.reference, inputs.prompts, score, run, inputs.runtime, start)

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """PPO on the learned reward, PPO-GT on the true one; constants of other projects and a fixed coefficient."""
        ppo = config["ppo"]
        name = cls.title if ppo["reward"] == RewardSource.learned else f"{cls.title}-GT"
        fixed = "" if ppo["kl_coefficient"] is None else " (fixed)"
        return name + PRESET_NAMES.get(str(ppo["preset"]), "") + fixed

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the reference tilted by the score that it maximises."""
        return tilted_by(config["ppo"])

    @property
    def coefficient(self) -> float:
        """The KL coefficient beta of the next batch, as far as it is known."""
        return self.controller.coefficient

    @property
    def history(self) -> list[list[float]]:
        """Per batch: mean KL and beta."""
        return self.controller.history

    def summary_line(self) -> str:
        """Return its batches, its reward and its first coefficient."""
        config = self.config
        steering = "fixed" if self.run.target_kl is None else f"to begin with, target {self.run.target_kl:g} nats"
        return (
            f"{config.batches} batches of {config.batch_size} episodes, {self.steps} steps; {config.reward} reward; "
            f"KL coefficient {self.coefficient:.4g} {steering}"
        )

    # --- batches ---------------------------------------------------------------------------------------------------

    def minibatch(self, rollout: Rollout, first: bool) -> Minibatch[Rollout]:
        """The episodes of one step, with their advantages whitened if that is over the minibatch."""
        if self.config.advantage_whitening == Whitening.minibatch:
            rollout = replace(rollout, advantage=whiten(rollout.advantage, rollout.mask))
        return super().minibatch(rollout, first)

    def collect(self, number: int) -> tuple[Rollout, dict[str, float]]:
        """Sample and score batch `number`, and move the coefficient."""
        config, run, sampled = self.config, self.run, self.sample(number)
        rows, mask, score, (logprob, ref_logprob, value) = sampled.rows, sampled.mask, sampled.score, sampled.tables
        kl = mean_kl(logprob, ref_logprob)
        coefficient = self.controller.steer(sampled.kl, kl)
        rewards = token_rewards(logprob, ref_logprob, mask, score, coefficient)
        bessel = config.advantage_whitening == Whitening.batch  # TRL's whitening, for rewards too
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True, bessel=bessel)
        advantage, returns = gae(rewards, value, mask, config.gamma, config.lam)
        if config.advantage_whitening == Whitening.batch:
            advantage = whiten(advantage, mask, bessel=True)
        rollout = Rollout(rows.ids, rows.starts, rows.lengths, mask, logprob, value, advantage, returns)
        total = (number + 1) * config.batch_size
        notes = batch_metrics(rollout, score, sampled.ended, sampled.kl, coefficient, run.target_kl, total)
        return rollout, notes | {"ppo/kl_cv": kl}

    def score_tokens(self, rows: Rows) -> tuple[Tensor, ...]:
        """(rows, time) log-probs under the policy and under the reference, and values."""
        logprob, value = self.actor_critic(rows.ids, rows.starts, rows.lengths)
        return logprob, self.reference(rows.ids, rows.starts, rows.lengths), value

    # --- loss ------------------------------------------------------------------------------------------------------

    def loss(self, module: nn.Module, part: tuple[Rollout, bool]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part's tokens, and the metrics that practitioners plot.

        Raises:
            RunError: the ratios of a batch's first step are not 1 within rounding: the rollout was not scored as it is
                trained on.
        """
        config = self.config
        rollout, first = part[0].to(next(module.parameters()).device), part[1]
        mask = rollout.mask
        logprob, value = (
            aligned(table, rollout.starts, mask) for table in module(rollout.ids, rollout.starts, rollout.lengths)
        )
        log_ratio = (logprob - rollout.logprob) * mask
        if first:
            self.check_ratio(log_ratio.detach()[mask].abs())
        policy_loss = ppo_policy_loss(logprob, rollout.logprob, rollout.advantage, config.policy_clip)
        value_loss = ppo_value_loss(value, rollout.value, rollout.returns, config.value_clip)
        policy_loss, value_loss = (policy_loss * mask).sum(), (value_loss * mask).sum()
        with torch.no_grad():
            ratio = log_ratio.exp()
            metrics = {
                "ppo/policy_loss": policy_loss,
                "ppo/value_loss": value_loss,
                "ppo/ratio": (ratio * mask).sum(),
                # k3: never below 0, and its mean is that of KL(pi_old || pi)
                "ppo/approx_kl": ((ratio - 1 - log_ratio) * mask).sum(),
                "ppo/clip_fraction": (((ratio - 1).abs() > config.policy_clip) & mask).sum(),
                "ppo/value_clip_fraction": (((value - rollout.value).abs() > config.value_clip) & mask).sum(),
            }
        return policy_loss + config.value_coefficient * value_loss, metrics

    # --- checkpoint and summary --------------------------------------------------------------------

    def after(self, values: dict[str, float]) -> None:
        """Skip the rest of the batch once the policy has moved too far from the one that sampled it."""
        limit = self.config.early_stop_kl
        if limit is not None and values and values["ppo/approx_kl"] > limit:
            self.stopped = True

    def state(self) -> dict[str, Any]:
        """The rollout in use, and the controller."""
        return super().state() | {"controller": self.controller.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume within a batch of episodes, or after it."""
        super().restore(state)
        self.controller.restore(state["controller"])

    def outcome(self, rewards: Sequence[float]) -> dict[str, Any]:
        """Return the report, and why the KL is not on target."""
        result = self.report()
        result["ppo"]["missed_because"] = missed_because(result["ppo"], rewards)
        return result

    def report(self) -> dict[str, Any]:
        """Return the controller's report, with the numbers of episodes and of skipped steps."""
        counts = {"episodes": len(self.history) * self.config.batch_size, "skipped_steps": self.skipped_steps}
        return {"ppo": self.controller.report() | counts}
