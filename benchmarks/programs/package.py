"""Our programs: DPO, generation, PPO, SFT and evaluation through the package's own algorithms and loop."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from benchmarks.operations import Sizes, sampled, scored
from benchmarks.programs.program import Record, Setup, mean_logprob, parity_scores
from benchmarks.runs import runs_of
from benchmarks.workload import K
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.sft import SFT, RowsBatch
from imdb_rlhf.config.algos import DPORun, PPORun, SFTRun
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.run import Run
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.evaluation.evaluate import evaluate
from imdb_rlhf.models.logprobs import sequence_logprobs
from imdb_rlhf.models.policy import Policy, freeze, load
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.rewards.lexicon import LexiconReward
from imdb_rlhf.training import loop
from imdb_rlhf.training.runtime import Runtime

R = TypeVar("R", bound=Run)
NEVER = -1  # a token that no vocabulary has: no row ends early


def configured(setup: Setup, kind: type[R], *overrides: str) -> tuple[R, Runtime]:
    """A run of the package's configuration on this machine."""
    machine = [f"trainer.{key}={getattr(setup, key)}" for key in ("device", "precision", "threads")]
    (run,) = runs_of(["logger=none", *machine, *overrides])
    assert isinstance(run, kind)
    return run, Runtime(run.trainer)


def load_policy(setup: Setup, name: str) -> Policy:
    """`policy` or `reference` of the workload, loaded as the package loads it."""
    gpt2 = setup.data()["shape"]["family"] == "gpt2"
    attention = "eager" if gpt2 and setup.device == "cpu" else "sdpa"  # as conf/model says
    return load(setup.model(name), attention, f"the workload's {name}")


def sizes_of(data: dict[str, Any]) -> Sizes:
    """The sizes of the workload's model."""
    return Sizes(*(data["shape"][name] for name in ("layers", "width", "vocabulary")))


@dataclass
class Laps:
    """When each step was done, and its loss."""

    setup: Setup
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def advance(self, values: dict[str, float]) -> None:
        """A step is done."""
        self.times.append(self.setup.now())
        self.losses.append(values.get("loss", float("nan")))

    def seconds(self, period: int = 1) -> list[float]:
        """From the end of one period of steps to the end of the next; the first period is the warm-up."""
        ends = self.times[period - 1 :: period]
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def train(setup: Setup, algorithm: Any, optim: OptimConfig, runtime: Runtime) -> Laps:
    """Train with the package's only loop: no checkpoints, no evaluations, one row of metrics at the end."""
    laps = Laps(setup)
    settings = loop.Settings(seed=0, optim=optim, micro_batch=None, checkpoint_every=0, log_every=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(algorithm, settings, runtime, Path(folder), loop.Hooks(advance=laps.advance))
    return laps


class ScoringDPO(DPO):
    """DPO whose reference log-probs come from a model, in the precision that trains."""

    reference: PreTrainedModel
    runtime: Runtime
    in_step: bool

    def score(self, rows: np.ndarray) -> None:
        """Score these (n,) distinct rows of the table under the reference."""
        with self.runtime.autocast():
            logprobs = sequence_logprobs(self.reference, self.completions.take(rows)[0])
        self.completions.ref_logprob = self.completions.ref_logprob.copy()  # pandas lends one that is read-only
        self.completions.ref_logprob[rows] = logprobs.double().cpu().numpy()

    def batch(self, chosen: np.ndarray) -> Any:
        """The global batch of these (batch,) pairs; scored again in every step where that is measured."""
        if self.in_step:
            self.score(np.unique(self.drawn.rows[chosen]))
        return super().batch(chosen)


def dpo(setup: Setup, in_step: bool = False, pairs: str = "prefix", optimizer: str = "adamw") -> Record:
    """Optimizer steps on the workload's `prefix` or `shuffled` pairs.

    The reference scores all completions before the clock starts, as a run does with its groups, or (`in_step`) those of
    a batch in every step, as in a trainer that stores nothing.
    """
    data = setup.data()
    rows, completions = np.array(data["pairs"][pairs]), data["completions"]
    prompts = [data["prompts"][i // K] for i in range(len(completions))]
    table = pd.DataFrame({"prompt_ids": prompts, "completion_ids": completions, "ref_logprob": 0.0})
    run, runtime = configured(
        setup,
        DPORun,
        f"optim@policy.optim={optimizer}",
        *("policy.optim.lr=1e-6", "policy.optim.warmup_steps=0", "policy.optim.max_grad_norm=1.0"),
        *(f"policy.batch_size={len(rows)}", f"policy.steps={setup.repetitions + 1}"),
    )
    used = np.unique(rows)
    algorithm = ScoringDPO(load_policy(setup, "policy"), table, Pairs(rows, rows[:, 0] // K, {}), run)
    algorithm.reference = freeze(load_policy(setup, "reference").lm.to(runtime.device))
    algorithm.runtime, algorithm.in_step = runtime, in_step
    if not in_step:
        algorithm.score(used)
        del algorithm.reference
    laps = train(setup, algorithm, run.policy.optim, runtime)
    facts = {"distinct": len(used), "loss": laps.losses[0]}
    lengths = np.array([(len(prompts[i]), len(completions[i])) for i in used])
    operations = 3 * float(scored(sizes_of(data), lengths).sum())
    return Record(laps.seconds(), float(len(rows)), "pairs", operations, facts=facts)


def generate(setup: Setup, batch: int = 64, new: int = 48) -> Record:
    """Completions for a batch of prompts through the package's sampler; random numbers are drawn within the time."""
    _, runtime = configured(setup, DPORun, "algo=dpo")
    lm = freeze(load_policy(setup, "reference").lm.to(runtime.device))
    data, drawn = setup.data(), list[list[list[int]]]()
    prompts = data["prompts"][:batch]

    def once() -> None:
        ids = np.arange(len(drawn) * len(prompts), (len(drawn) + 1) * len(prompts)).tolist()
        random = uniforms(0, "benchmark", ids, 1, new)[:, 0]
        with torch.no_grad(), runtime.autocast():
            drawn.append(sample(lm, prompts, random, NEVER).ids)

    seconds = setup.timed(once)
    assert all(len(ids) == new for batch in drawn for ids in batch), "a sampler stopped early"
    memory = setup.peak_bytes()
    operations = float(sampled(sizes_of(data), np.array([(len(prompt), new) for prompt in prompts])).sum())
    facts = {"logprob": mean_logprob(lm, prompts, drawn[-1])}
    return Record(seconds, float(len(prompts) * new), "tokens", operations, memory, facts)


def ppo(setup: Setup, queries: int = 64, new: int = 24, epochs: int = 4, minibatch: int = 16) -> Record:
    """PPO iterations with the constants of TRL's example, values on the policy's layers."""
    run, runtime = configured(
        setup,
        PPORun,
        # advantages are whitened over the batch, as TRL 0.11.4 does it
        *("algo=ppo", "ppo=trl_2023", "ppo.reward=ground_truth", "ppo.advantage_whitening=batch"),
        *(f"ppo.{key}={queries}" for key in ("batch_size", "rollout_batch_size")),
        *(f"ppo.minibatch_size={minibatch}", f"ppo.epochs={epochs}", f"generation.max_new_tokens={new}"),
        f"ppo.episodes={queries * (setup.repetitions + 1)}",
    )
    reference = freeze(load_policy(setup, "reference").lm.to(runtime.device))
    policy, data = load_policy(setup, "reference"), setup.data()
    prompts = data["prompts"][:queries]
    drawn: list[tuple[list[list[int]], list[list[int]]]] = []

    def score(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
        drawn.append((prompt_ids, completion_ids))
        return np.array(parity_scores(completion_ids))

    coefficient = float(run.ppo.initial_kl_coefficient or 0.2)
    algorithm = PPO(policy, reference, prompts, score, run, runtime, coefficient)
    policy.lm.to(runtime.device)  # it samples before the loop moves it
    laps = train(setup, algorithm, run.ppo.optim, runtime)
    memory = setup.peak_bytes()
    sizes, rows = sizes_of(data), np.array([(len(prompt), new) for prompt in prompts])
    once = sampled(sizes, rows).sum() + 2 * scored(sizes, rows).sum()
    operations = float(once + epochs * 3 * scored(sizes, rows).sum())
    facts = {"logprob": mean_logprob(reference, *drawn[0]), "loss": laps.losses[0]}
    return Record(laps.seconds(algorithm.period), float(queries), "episodes", operations, memory, facts)


def sft(setup: Setup, batch: int = 64) -> Record:
    """SFT steps on rows of review text, every token but the first predicted, fused AdamW."""
    data = setup.data()
    rows = [np.array(row, dtype=np.int32) for row in data["rows"]]
    epochs = batch * (setup.repetitions + 1) / len(rows)
    run, runtime = configured(
        setup, SFTRun, "algo=sft", f"sft.batch_size={batch}", f"sft.epochs={epochs}", "sft.optim.lr=1e-4"
    )
    algorithm = SFT(load_policy(setup, "reference"), rows, run.sft)
    tokens = float(batch * (len(rows[0]) - 1))
    first = RowsBatch(rows, np.arange(batch), 1.0).parts(0, 1, None)[0]
    algorithm.module.to(runtime.device)
    with runtime.autocast(), torch.no_grad():  # of the peer's first rows: training takes them in another order
        loss, _ = algorithm.loss(algorithm.module, first)
    laps = train(setup, algorithm, run.sft.optim, runtime)
    lengths = np.array([(1, len(rows[0]) - 1)] * batch)
    operations = 3 * float(scored(sizes_of(data), lengths).sum())
    return Record(laps.seconds(), tokens, "tokens", operations, facts={"loss": float(loss) / tokens})


def evaluation(setup: Setup, batch: int = 64, new: int = 48) -> Record:
    """An evaluation point: sampled, scored under policy and reference with the exact KL, all in float32."""
    data = setup.data()
    run, runtime = configured(
        setup,
        DPORun,
        *("evaluation.samples=1", f"evaluation.batch_size={batch}", f"generation.max_new_tokens={new}"),
        "model.context=1024",  # of a model that is not made; longer completions would be refused
    )
    policy, reference = (load_policy(setup, name) for name in ("policy", "reference"))
    for each in (policy, reference):
        freeze(each.lm.to(runtime.device))
    prompts, lengths = {"test": data["prompts"][:batch]}, list[int]()

    def once() -> None:
        frame = evaluate(
            policy, reference.lm, LexiconReward(), prompts, run.evaluation, run.generation, runtime, step=0
        )
        lengths[:] = frame["length"].tolist()  # a few draw EOS, the same ones each time

    seconds = setup.timed(once)
    rows = np.array([(len(prompt), length) for prompt, length in zip(prompts["test"], lengths, strict=True)])
    sizes = sizes_of(data)
    operations = float(sampled(sizes, rows).sum() + 2 * scored(sizes, rows).sum())
    return Record(seconds, float(batch), "samples", operations, facts={"tokens": sum(lengths)})
