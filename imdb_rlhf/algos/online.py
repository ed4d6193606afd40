"""Sampling and scoring batches of episodes: what every method shares that learns from its own completions.

Completions of training prompts are sampled from the policy; their log-probs come from scoring them again through the
training path, as do the reference's (the decoding loop's differ by rounding, so that the first ratio would not be 1).
A batch is trained on in steps over minibatches, before the next one is sampled. All of it is a function of the seed and
of the weights; processes share the sampling, and each holds the whole batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.algos.batches import Stream
from imdb_rlhf.algos.inputs import Score
from imdb_rlhf.algos.method import Method
from imdb_rlhf.algos.rollout import Episodes, Minibatch, padded
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import LogProbs, Rows
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import limits, sample, uniforms
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.runtime import Runtime

# How far from 0 the log-ratios of a batch may be before the first step on it: nine tenths of them, and their mean size.
# The batch is scored in other shapes than it is trained on, which bf16 rounds differently: by some hundredths, more
# with more layers. A few large ones are no sign of a fault in bf16; of a policy that is scored otherwise than it was
# sampled most are large, or some are by nats.
USUAL = 0.9
ROUNDING = {"float32": (1e-3, 1e-3), "bf16": (0.2, 0.15)}

R = TypeVar("R", bound=TrainedRun)
E = TypeVar("E", bound=Episodes)


class Sizes(Protocol):
    """The part of a method's configuration that sampling reads."""

    @property
    def batch_size(self) -> int:
        """Episodes per batch."""
        ...

    @property
    def minibatch_size(self) -> int:
        """Episodes per optimizer step."""
        ...

    @property
    def rollout_batch_size(self) -> int:
        """Completions sampled and scored at once."""
        ...

    @property
    def missing_eos_penalty(self) -> float:
        """Subtracted from the score of a completion that was cut."""
        ...

    @property
    def batches(self) -> int:
        """Batches of episodes per run."""
        ...

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps per batch of episodes."""
        ...


@dataclass(frozen=True)
class Sampled:
    """A batch of sampled and scored episodes.

    Attributes:
        rows: prompts and completions.
        mask: (episodes, tokens) bool, true for completion tokens; they come first.
        tables: (episodes, tokens) float32 each, at the completions' tokens: log-probs under the policy and under the
            reference, nats, and what the method adds (`OnlineMethod.score_tokens`).
        score: (episodes,) float32, after the penalty for a missing EOS.
        ended: (episodes,) bool: sampled an EOS.
        kl: mean of log pi - log ref, summed over tokens (k1), nats.
    """

    rows: Rows
    mask: Tensor
    tables: list[Tensor]
    score: Tensor
    ended: Tensor
    kl: float


class OnlineMethod(Method, ABC, Generic[R, E]):
    """Trains on batches of its own episodes; a method adds how a batch is prepared (`collect`) and the loss.

    Args:
        policy: the policy to train.
        reference: the policy that the KL is taken to; frozen.
        prompts: token rows that episodes begin with.
        score: prompt_ids and completion_ids to (n,) scores.
        run: the configuration.
        config: its section of the method.
        runtime: precision and processes.
        module: the module to train, whose forward is that of `LogProbs` or of `ActorCritic`.
        group: episodes per prompt, neighbours in a batch.
    """

    stage: str
    rollout_type: ClassVar[type[Any]]  # E

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel,
        prompts: Sequence[list[int]],
        score: Score,
        run: R,
        config: Sizes,
        runtime: Runtime,
        module: nn.Module,
        group: int = 1,
    ) -> None:
        self.policy, self.prompts, self.score, self.run, self.runtime = policy, prompts, score, run, runtime
        self.module, self.group, self._sizes = module, group, config
        self.reference = LogProbs(reference, run.generation.temperature).eval()
        self.period = config.steps_per_batch
        self.steps = config.batches * self.period
        self.stream = Stream(
            len(prompts),
            config.batch_size // group,
            lambda e: generator(run.seed, f"{self.stage}/prompts", e).permutation(len(prompts)),
        )
        # the state that later batches depend on, besides the weights
        self.rollout: E | None = None
        self.notes: dict[str, float] = {}
        self.number, self.stopped = -1, False
        self.skipped_steps = 0

    def log_every(self, steps: int) -> int:
        """A row of metrics per batch of episodes."""
        return self.period

    # --- batches ---------------------------------------------------------------------------------------------------

    def batches(self, first: int) -> Iterator[Minibatch[E]]:
        """The minibatch of each step from `first` on; episodes are sampled when they are first needed."""
        sizes, group = self._sizes, self.group
        each = sizes.batch_size // sizes.minibatch_size
        for step in range(first, self.steps):
            number, within = divmod(step, self.period)
            if number != self.number:
                self.rollout, self.notes = self.collect(number)
                self.number, self.stopped = number, False
            assert self.rollout is not None
            epoch, which = divmod(within, each)
            order = generator(self.run.seed, f"{self.stage}/order", number, epoch).permutation(
                sizes.batch_size // group
            )
            prompts = sizes.minibatch_size // group
            chosen = order[which * prompts : (which + 1) * prompts, None] * group + np.arange(group)
            rollout = self.rollout.at(torch.as_tensor(chosen.ravel()))
            self.skipped_steps += self.stopped
            yield self.minibatch(rollout, within == 0)

    @abstractmethod
    def collect(self, number: int) -> tuple[E, dict[str, float]]:
        """Sample batch `number` and prepare it for training; with the metrics of the whole batch."""

    def minibatch(self, rollout: E, first: bool) -> Minibatch[E]:
        """The episodes of one step as its minibatch; `first`: the first step on the batch."""
        return Minibatch(rollout, self.notes, first, self.stopped)

    def sample(self, number: int) -> Sampled:
        """Sample and score batch `number`.

        Raises:
            RunError: a score or a log-ratio is not finite.
        """
        sizes, run = self._sizes, self.run
        chosen = np.repeat(self.stream.at(number), self.group)
        episodes = np.arange(number * sizes.batch_size, (number + 1) * sizes.batch_size)
        prompts = [list(self.prompts[int(i)]) for i in chosen]
        new = run.generation.max_new_tokens
        random = uniforms(run.seed, self.stage, episodes.tolist(), 1, new)[:, 0]
        ends = limits(run.seed, self.stage, episodes.tolist(), 1, run.generation)[:, 0]
        episodes_here: list[tuple[Any, ...]] = []
        # prompts of like length together; the batches are a function of all prompts, and processes share them out whole
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        for index, at in enumerate(range(0, len(order), sizes.rollout_batch_size)):
            batch = order[at : at + sizes.rollout_batch_size]
            if index % self.runtime.world == self.runtime.rank:
                episodes_here += self._episodes(batch, [prompts[i] for i in batch], random[batch], ends[batch])
        gathered = sorted(self.runtime.gather(episodes_here), key=lambda episode: episode[0])
        _, completions, finished, scores, *tokens = (list(column) for column in zip(*gathered, strict=True))
        rows = Rows.of(prompts, completions)
        counts = rows.lengths - rows.starts
        mask = torch.arange(int(counts.max())) < counts[:, None]
        tables = [padded(column, mask.shape[1]) for column in tokens]
        ended = torch.tensor(finished)
        score = torch.tensor(np.array(scores), dtype=torch.float32) - sizes.missing_eos_penalty * (~ended).float()
        log_ratio = tables[0] - tables[1]
        self._check(score, log_ratio, number)
        return Sampled(rows, mask, tables, score, ended, float(log_ratio.sum(-1).double().mean()))

    @torch.no_grad()
    def _episodes(
        self, batch: np.ndarray, prompts: list[list[int]], random: np.ndarray, ends: np.ndarray
    ) -> list[tuple[Any, ...]]:
        """Per episode: number, completion, finished, score; per token: what `score_tokens` returns."""
        device = self.runtime.device
        temperature = self.run.generation.temperature
        with self.runtime.autocast():
            samples = sample(self.policy.lm, prompts, random, self.policy.eos_id, temperature, ends)
            tokens = self.score_tokens(Rows.of(prompts, samples.ids).to(device))
        scores = self.score(prompts, samples.ids)
        tables = [table.float().cpu().numpy() for table in tokens]
        spans = [slice(len(p), len(p) + len(c)) for p, c in zip(prompts, samples.ids, strict=True)]
        return [
            (int(number), samples.ids[row], samples.finished[row], float(scores[row]))
            + tuple(table[row, spans[row]] for table in tables)
            for row, number in enumerate(batch)
        ]

    def score_tokens(self, rows: Rows) -> tuple[Tensor, ...]:
        """(rows, time) log-probs under the policy and under the reference, and what else a method reads per token."""
        at = (rows.ids, rows.starts, rows.lengths)
        return self.module(*at), self.reference(*at)

    # --- checks ----------------------------------------------------------------------------------------------------

    def _check(self, score: Tensor, log_ratio: Tensor, number: int) -> None:
        remedies = {
            "score": "mend the reward",
            "KL": f"lower {self.stage}.optim.lr, or set {self.stage}.precision=float32",
        }
        for (name, remedy), table in zip(remedies.items(), (score, log_ratio), strict=True):
            if not torch.isfinite(table).all():
                raise RunError(
                    f"{self.stage}: a {name} of batch {number} is not finite, before anything was trained on it; "
                    f"{remedy}"
                )

    def check_ratio(self, sizes: Tensor) -> None:
        """Refuse the first step on a batch if its ratios are not 1 within rounding.

        Args:
            sizes: (n,) |log pi - log pi_old| of a part's tokens.

        Raises:
            RunError: the rollout was not scored as it is trained on.
        """
        size = float(sizes.kthvalue(max(1, math.ceil(USUAL * len(sizes)))).values) if len(sizes) else 0.0
        usual, mean = ROUNDING[self.runtime.precision]
        if size > usual or (len(sizes) and float(sizes.mean()) > mean):
            raise RunError(
                f"{self.stage}: before the first step on batch {self.number} a tenth of the log-ratios are beyond "
                f"{size:.3g} (mean size {float(sizes.mean()):.3g}), but policy and rollout are one; set "
                f"{self.stage}.precision=float32, and if it stays the model scores differently than it samples"
            )

    # --- checkpoint ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The rollout in use, and what was counted."""
        tensors = None
        if self.rollout is not None:
            tensors = {f.name: getattr(self.rollout, f.name) for f in fields(self.rollout)}
        return {
            "rollout": tensors,
            "number": self.number,
            "stopped": self.stopped,
            "skipped_steps": self.skipped_steps,
            "notes": self.notes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume within a batch of episodes, or after it."""
        self.rollout = None if state["rollout"] is None else self.rollout_type(**state["rollout"])
        self.number, self.stopped = state["number"], state["stopped"]
        self.skipped_steps, self.notes = state["skipped_steps"], state["notes"]
