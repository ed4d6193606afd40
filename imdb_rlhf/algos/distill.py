"""Distillation of a guided policy into one causal LM, by the exact KL of every token over the whole vocabulary.

Completions are sampled anew for every step, for the training prompts: by the guided policy for the forward KL, by the
student itself for the reverse one. The student starts at the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from imdb_rlhf.algos.batches import Stream, share, steps_for
from imdb_rlhf.algos.inputs import Inputs
from imdb_rlhf.algos.method import Method
from imdb_rlhf.config.decoding import DistillRun, Divergence
from imdb_rlhf.losses.decoding import forward_kl, reverse_kl
from imdb_rlhf.models.blocks import CHUNK, OutputLayer, slices
from imdb_rlhf.models.logprobs import Rows, completion_mask, states_and_layer
from imdb_rlhf.models.next_token import CausalLM, NextToken, all_logprobs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import limits, sample, uniforms
from imdb_rlhf.seeds import generator
from imdb_rlhf.training.runtime import Runtime


class Student(nn.Module):
    """A causal LM whose forward returns its divergence from given log-probs at every completion token."""

    def __init__(self, lm: PreTrainedModel, temperature: float, divergence: Divergence) -> None:
        super().__init__()
        self.lm, self.temperature = lm, temperature
        self.divergence = forward_kl if divergence == Divergence.forward else reverse_kl

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor, teacher: Tensor) -> Tensor:
        """(n,) float32 divergences in nats at the n completion tokens, row by row.

        Args:
            ids: as in `logprobs.Rows`, like
            starts: and
            lengths: of the rows.
            teacher: (n, vocabulary) float32 log-probs.
        """
        mask = completion_mask(ids, starts, lengths)
        states, layer = states_and_layer(self.lm, ids, lengths, mask)
        size = max(1, CHUNK.get(ids.device.type, CHUNK["cpu"]) // layer.vocabulary)
        with torch.autocast(ids.device.type, enabled=False):
            # block by block, and again in the backward pass: logits of all tokens would not fit
            parts = [
                checkpoint(self._divergences, states[part].float(), layer, teacher[part], use_reentrant=False)
                for part in slices(len(states), size)
            ]
        return torch.cat(parts) if parts else states.new_zeros(0)

    def _divergences(self, states: Tensor, layer: OutputLayer, teacher: Tensor) -> Tensor:
        logits = layer.finish(states @ layer.weight.float().t(), layer.bias)
        return self.divergence(teacher, (logits / self.temperature).log_softmax(-1))


@dataclass(frozen=True)
class DistillBatch:
    """A global batch of prompts, whose completions are sampled when its parts are asked for.

    Attributes:
        algorithm: samples them.
        step: names their random numbers.
        chosen: (batch,) indices of prompts.
    """

    notes: ClassVar[Mapping[str, float]] = {}
    algorithm: "Distill"
    step: int
    chosen: np.ndarray

    @property
    def size(self) -> float:
        """Number of completions; losses are means per completion."""
        return float(len(self.chosen))

    def parts(self, rank: int, world: int, limit: int | None) -> list[Rows]:
        """This process's completions, right-padded."""
        (own,) = share(np.arange(len(self.chosen)), rank, world, None)
        prompts, completions = self.algorithm.sampled(self.step, own, self.chosen[own])
        return [
            Rows.of([prompts[i] for i in piece], [completions[i] for i in piece])
            for piece in share(np.arange(len(own)), 0, 1, limit)
        ]


class Distill(Method):
    """Minimises the sequence KL between the guided policy and the student, exact at every visited step."""

    stage = "distill"
    title = "distilled value-guided"

    def __init__(
        self, policy: Policy, teacher: NextToken, prompts: Sequence[list[int]], runtime: Runtime, run: DistillRun
    ) -> None:
        policy.lm.requires_grad_(True)
        temperature, divergence = run.generation.temperature, run.distill.divergence
        self.module: nn.Module = Student(policy.lm, temperature, divergence).eval()  # eval: no dropout
        self.policy, self.teacher, self.prompts, self.runtime, self.run = policy, teacher, prompts, runtime, run
        self.sampler: NextToken = teacher if divergence == Divergence.forward else CausalLM(policy.lm)
        count, config = len(prompts), run.policy
        self.steps = config.steps or steps_for(count, config.batch_size, config.epochs)
        self.stream = Stream(
            count,
            config.batch_size,
            lambda epoch: generator(run.seed, self.stage, epoch).permutation(count),
        )

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: DistillRun) -> Self:
        """The method on the training prompts."""
        return cls(inputs.policy, inputs.guided(run), inputs.prompts, inputs.runtime, run)

    def summary_line(self) -> str:
        """Return the number of prompts and steps, and whose samples they are."""
        whose = "the guided policy" if self.sampler is self.teacher else "the student"
        return f"{len(self.prompts)} prompts, {self.steps} steps on samples of {whose}"

    def batches(self, first: int) -> Iterator[DistillBatch]:
        """The batch of each step from `first` on."""
        for step in range(first, self.steps):
            yield DistillBatch(self, step, self.stream.at(step))

    def sampled(self, step: int, places: np.ndarray, chosen: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and sampled completions; random numbers are a function of (seed, step, place in the batch)."""
        generation, names = self.run.generation, f"{self.stage}/{step}"
        prompts = [self.prompts[index] for index in chosen]
        draws = uniforms(self.run.seed, names, places.tolist(), 1, generation.max_new_tokens)[:, 0]
        ends = limits(self.run.seed, names, places.tolist(), 1, generation)[:, 0]
        with self.runtime.autocast():
            ids = sample(self.sampler, prompts, draws, self.policy.eos_id, generation.temperature, ends).ids
        return prompts, ids

    def loss(self, module: nn.Module, part: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed divergences of a part's completions, nats, and how many tokens they have."""
        rows = part.to(next(module.parameters()).device)
        teacher = self._teacher(rows)
        losses = cast(Tensor, module(rows.ids, rows.starts, rows.lengths, teacher))
        return losses.sum(), {"train/length": (rows.lengths - rows.starts).float().sum()}

    @torch.no_grad()
    def _teacher(self, rows: Rows) -> Tensor:
        """(n, vocabulary) log-probs of the guided policy, in float32."""
        mask = completion_mask(rows.ids, rows.starts, rows.lengths)
        with torch.autocast(rows.ids.device.type, enabled=False):
            states = self.teacher.states(rows.ids, rows.lengths, mask)
            return all_logprobs(self.teacher, states, self.run.generation.temperature)

    def report(self) -> dict[str, Any]:
        """Return how it was distilled."""
        return {"distill": {"divergence": str(self.run.distill.divergence)}}
