"""Proximal policy optimization (arXiv 1707.06347) of a reward minus a KL penalty, as in arXiv 1909.08593 and its code.

A batch of episodes is sampled and scored once, then trained on in several passes over minibatches:
1. completions of training prompts are sampled from the policy;
2. old log-probs and values come from scoring the completions again through the training path, as do the reference's
   log-probs (the decoding loop's differ by rounding, so that the first ratio would not be 1);
3. rewards: -beta (log pi_old - log ref) per token, plus the score on the last token, whitened if configured;
4. advantages and returns by GAE; advantages whitened over the minibatch, or over the batch;
5. clipped policy and value losses;
6. the controller moves beta once per batch: for the batch that it has seen, or for the next one (Ziegler's).
Left out: dropout, an entropy bonus, Ziegler's fixed score for completions without a full stop.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.batches import Stream
from imdb_rlhf.algos.inputs import Inputs, Score
from imdb_rlhf.algos.kl_controller import controller, missed_because
from imdb_rlhf.algos.method import Method
from imdb_rlhf.algos.rollout import Minibatch, Rollout, aligned, batch_metrics, padded
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.config.ppo import Whitening
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.errors import RunError
from imdb_rlhf.losses import (
    gae,
    mean_kl,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    whiten,
)
from imdb_rlhf.models.actor_critic import ActorCritic
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import limits, sample, uniforms
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.runtime import Runtime

# How figures name the constants of other projects.
PRESET_NAMES = {"trl_2023": " (TRL)", "ziegler": " (Ziegler)"}
# How far from 0 the log-ratios of a batch may be before the first step on it: nine tenths of them, and their mean size.
# The batch is scored in other shapes than it is trained on, which bf16 rounds differently: by some hundredths, more
# with more layers. A few large ones are no sign of a fault in bf16; of a policy that is scored otherwise than it was
# sampled most are large, or some are by nats.
USUAL = 0.9
ROUNDING = {"float32": (1e-3, 1e-3), "bf16": (0.2, 0.15)}


class PPO(Method):
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
        self.policy, self.prompts, self.score, self.run, self.runtime = policy, prompts, score, run, runtime
        self.config = config = run.ppo
        temperature = run.generation.temperature
        # eval: no dropout
        self.actor_critic = ActorCritic(policy.lm, temperature, config.value).eval()
        self.module: nn.Module = self.actor_critic
        self.reference = LogProbs(reference, temperature).eval()
        self.period = config.steps_per_batch
        self.steps = config.batches * self.period
        self.stream = Stream(
            len(prompts), config.batch_size, lambda e: generator(run.seed, "ppo/prompts", e).permutation(len(prompts))
        )
        # the state that later batches depend on, besides the weights
        self.controller = controller(config, run.target_kl, kl_coefficient)
        self.rollout: Rollout | None = None
        self.notes: dict[str, float] = {}
        self.number, self.stopped = -1, False
        self.skipped_steps = 0

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

    def log_every(self, steps: int) -> int:
        """A row of metrics per batch of episodes."""
        return self.period

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

    def batches(self, first: int) -> Iterator[Minibatch]:
        """The minibatch of each step from `first` on; episodes are sampled when they are first needed."""
        config = self.config
        each = config.batch_size // config.minibatch_size
        for step in range(first, self.steps):
            number, within = divmod(step, self.period)
            if number != self.number:
                self._collect(number)
            assert self.rollout is not None
            epoch, which = divmod(within, each)
            order = generator(self.run.seed, "ppo/order", number, epoch).permutation(config.batch_size)
            chosen = order[which * config.minibatch_size : (which + 1) * config.minibatch_size]
            rollout = self.rollout.at(torch.as_tensor(chosen))
            if config.advantage_whitening == Whitening.minibatch:
                rollout = replace(rollout, advantage=whiten(rollout.advantage, rollout.mask))
            self.skipped_steps += self.stopped
            yield Minibatch(rollout, self.notes, within == 0, self.stopped)

    def _collect(self, number: int) -> None:
        """Sample and score batch `number`, and move the coefficient."""
        config, run = self.config, self.run
        chosen = self.stream.at(number)
        episodes = np.arange(number * config.batch_size, (number + 1) * config.batch_size)
        prompts = [list(self.prompts[int(i)]) for i in chosen]
        new = run.generation.max_new_tokens
        random = uniforms(run.seed, "ppo", episodes.tolist(), 1, new)[:, 0]
        ends = limits(run.seed, "ppo", episodes.tolist(), 1, run.generation)[:, 0]
        episodes_here: list[tuple[Any, ...]] = []
        # prompts of like length together; the batches are a function of all prompts, and processes share them out whole
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        for index, at in enumerate(range(0, len(order), config.rollout_batch_size)):
            batch = order[at : at + config.rollout_batch_size]
            if index % self.runtime.world == self.runtime.rank:
                episodes_here += self._episodes(batch, [prompts[i] for i in batch], random[batch], ends[batch])
        gathered = sorted(self.runtime.gather(episodes_here), key=lambda episode: episode[0])
        _, completions, finished, scores, *tokens = (list(column) for column in zip(*gathered, strict=True))
        rows = Rows.of(prompts, completions)
        counts = rows.lengths - rows.starts
        mask = torch.arange(int(counts.max())) < counts[:, None]
        logprob, ref_logprob, value = (padded(column, mask.shape[1]) for column in tokens)
        ended = torch.tensor(finished)
        score = torch.tensor(np.array(scores), dtype=torch.float32) - config.missing_eos_penalty * (~ended).float()
        self._check(score, logprob - ref_logprob, number)

        k1, kl = float((logprob - ref_logprob).sum(-1).double().mean()), mean_kl(logprob, ref_logprob)
        coefficient = self.controller.steer(k1, kl)
        rewards = token_rewards(logprob, ref_logprob, mask, score, coefficient)
        bessel = config.advantage_whitening == Whitening.batch  # TRL's whitening, for rewards too
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True, bessel=bessel)
        advantage, returns = gae(rewards, value, mask, config.gamma, config.lam)
        if config.advantage_whitening == Whitening.batch:
            advantage = whiten(advantage, mask, bessel=True)
        self.rollout = Rollout(rows.ids, rows.starts, rows.lengths, mask, logprob, value, advantage, returns)
        self.number, self.stopped = number, False

        total = (number + 1) * config.batch_size
        self.notes = batch_metrics(self.rollout, score, ended, k1, coefficient, run.target_kl, total)
        self.notes["ppo/kl_cv"] = kl

    @torch.no_grad()
    def _episodes(
        self, batch: np.ndarray, prompts: list[list[int]], random: np.ndarray, ends: np.ndarray
    ) -> list[tuple[Any, ...]]:
        """Per episode: number, completion, finished, score; per token: log-prob, the reference's log-prob, value."""
        device = self.runtime.device
        temperature = self.run.generation.temperature
        with self.runtime.autocast():
            samples = sample(self.policy.lm, prompts, random, self.policy.eos_id, temperature, ends)
            rows = Rows.of(prompts, samples.ids).to(device)
            logprob, value = self.actor_critic(rows.ids, rows.starts, rows.lengths)
            ref_logprob = self.reference(rows.ids, rows.starts, rows.lengths)
        scores = self.score(prompts, samples.ids)
        tables = [table.float().cpu().numpy() for table in (logprob, ref_logprob, value)]
        spans = [slice(len(p), len(p) + len(c)) for p, c in zip(prompts, samples.ids, strict=True)]
        return [
            (int(number), samples.ids[row], samples.finished[row], float(scores[row]))
            + tuple(table[row, spans[row]] for table in tables)
            for row, number in enumerate(batch)
        ]

    def _check(self, score: Tensor, log_ratio: Tensor, number: int) -> None:
        remedies = {"score": "mend the reward", "KL": "lower ppo.optim.lr, or set ppo.precision=float32"}
        for (name, remedy), table in zip(remedies.items(), (score, log_ratio), strict=True):
            if not torch.isfinite(table).all():
                raise RunError(
                    f"ppo: a {name} of batch {number} is not finite, before anything was trained on it; {remedy}"
                )

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
            self._check_ratio(log_ratio.detach()[mask].abs())
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

    def _check_ratio(self, sizes: Tensor) -> None:
        size = float(sizes.kthvalue(max(1, math.ceil(USUAL * len(sizes)))).values) if len(sizes) else 0.0
        usual, mean = ROUNDING[self.runtime.precision]
        if size > usual or (len(sizes) and float(sizes.mean()) > mean):
            raise RunError(
                f"ppo: before the first step on batch {self.number} a tenth of the log-ratios are beyond {size:.3g} "
                f"(mean size {float(sizes.mean()):.3g}), but policy and rollout are one; set ppo.precision=float32, "
                "and if it stays the model scores differently than it samples"
            )

    # --- checkpoint and summary --------------------------------------------------------------------

    def after(self, values: dict[str, float]) -> None:
        """Skip the rest of the batch once the policy has moved too far from the one that sampled it."""
        limit = self.config.early_stop_kl
        if limit is not None and values and values["ppo/approx_kl"] > limit:
            self.stopped = True

    def state(self) -> dict[str, Any]:
        """The rollout in use, and the controller."""
        tensors = None
        if self.rollout is not None:
            tensors = {f.name: getattr(self.rollout, f.name) for f in fields(self.rollout)}
        return {
            "rollout": tensors,
            "number": self.number,
            "stopped": self.stopped,
            "skipped_steps": self.skipped_steps,
            "notes": self.notes,
            "controller": self.controller.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume within a batch of episodes, or after it."""
        self.rollout = None if state["rollout"] is None else Rollout(**state["rollout"])
        self.number, self.stopped = state["number"], state["stopped"]
        self.skipped_steps, self.notes = state["skipped_steps"], state["notes"]
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
