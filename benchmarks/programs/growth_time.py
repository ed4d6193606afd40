"""Ours, at one point of the growth measurement: DPO steps, sampling or evaluation of a GPT-2 with random weights.

All rows are of one length (prompts of 5 tokens), so that a point is a size and no mixture of sizes.
"""

import argparse
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch

from benchmarks import flops
from benchmarks.programs import memory, ours
from benchmarks.programs.dpo import table_of
from benchmarks.programs.record import Record, begin, finish, parser, timed
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.config.model import ScratchModel
from imdb_rlhf.data import embedded
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.evaluation.evaluate import evaluate
from imdb_rlhf.models.policy import Policy, freeze, scratch, train_tokenizer
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.rewards.lexicon import LexiconReward
from imdb_rlhf.training.loop import Algorithm
from imdb_rlhf.training.runtime import Runtime

PROMPT, K = 5, 4
TRAINED = 512  # entries of the tokenizer that are trained; the rest is padding
NEVER = -1  # a token that no vocabulary has: no row ends early


def composed(options: argparse.Namespace) -> DPORun:
    """The package's configuration of a model of that size."""
    sizes = {name: getattr(options, name) for name in ("layers", "width", "heads", "vocabulary", "context")}
    sizes["tokenizer_size"] = min(TRAINED, options.vocabulary)
    if options.device == "cuda":
        sizes["attention"] = "sdpa"  # as conf/model says
    return ours.composed(
        options,
        DPORun,
        *(f"model.{name}={value}" for name, value in sizes.items()),
        f"sft.max_tokens={options.context}",  # no SFT here, but one longer than the context is refused
        f"generation.max_new_tokens={options.new}",
        f"policy.batch_size={options.batch}",
        f"policy.steps={options.repetitions + 1}",
        f"evaluation.batch_size={options.batch}",
        "evaluation.samples=1",
        "policy.optim.lr=1e-6",
    )


def policy_of(run: DPORun, runtime: Runtime) -> Policy:
    """A policy with random weights on the run's device."""
    assert isinstance(run.model, ScratchModel)
    texts = [review.text for review in embedded.generate(500, 0)]
    made = scratch(run.model, train_tokenizer(texts, run.model.tokenizer_size, run.model.vocabulary))
    made.lm.to(runtime.device)
    return made


def tokens(options: argparse.Namespace, rows: int, length: int) -> list[list[int]]:
    """Random tokens, the special ones left out."""
    random = np.random.default_rng(0)
    found: list[list[int]] = random.integers(2, options.vocabulary, size=(rows, length)).tolist()
    return found


def dpo(options: argparse.Namespace, run: DPORun, runtime: Runtime) -> Record:
    """Optimizer steps on pairs of whole groups of 4, the reference's log-probs stored."""
    policy = policy_of(run, runtime)
    groups = math.ceil(options.batch / math.comb(K, 2))
    heads, tails = tokens(options, groups, PROMPT), tokens(options, groups * K, options.new)
    table = table_of(
        [
            {"prompt_ids": head, "completions": [{"ids": tails[number * K + which]} for which in range(K)]}
            for number, head in enumerate(heads)
        ]
    )
    every = [[g * K + a, g * K + b] for g in range(groups) for a, b in combinations(range(K), 2)]
    rows = np.array(every[: options.batch], dtype=np.int64)
    algorithm = DPO(policy, table, Pairs(rows, rows[:, 0] // K, {}), run)
    used = len(np.unique(rows))
    before = memory.mark(options.device)
    laps = ours.train(cast(Algorithm, algorithm), run.policy.optim, runtime)
    work = flops.training(options, [(PROMPT + options.new, options.new)] * used)
    return record(options, laps.seconds(), work, before, "pairs", {"distinct": used})


def generate(options: argparse.Namespace, run: DPORun, runtime: Runtime) -> Record:
    """Completions of a batch of prompts, none of which ends early."""
    lm = freeze(policy_of(run, runtime).lm)
    prompts = tokens(options, options.batch, PROMPT)
    random = uniforms(0, "growth", range(options.batch), 1, options.new)[:, 0]
    before = memory.mark(options.device)

    def once() -> None:
        with torch.no_grad(), runtime.autocast():
            sample(lm, prompts, random, NEVER)

    seconds = timed(once, options.repetitions, options.device)
    work = flops.forward(options, [(PROMPT + options.new - 1, options.new)] * options.batch)
    return record(options, seconds, work, before, "completions", {})


def evaluation(options: argparse.Namespace, run: DPORun, runtime: Runtime) -> Record:
    """An evaluation point: sampled, scored under policy and reference with the exact KL, all in float32."""
    policy, reference = policy_of(run, runtime), policy_of(run, runtime)
    for each in (policy, reference):
        freeze(each.lm)
    prompts = {"test": tokens(options, options.batch, PROMPT)}
    lengths: list[int] = []
    before = memory.mark(options.device)

    def once() -> None:
        frame = evaluate(
            policy, reference.lm, LexiconReward(), prompts, run.evaluation, run.generation, runtime, step=0
        )
        lengths[:] = frame["length"].tolist()  # a few draw EOS, the same ones each time

    seconds = timed(once, options.repetitions, options.device)
    work = flops.forward(options, [(PROMPT + length - 1, length) for length in lengths])
    work += 2 * flops.forward(options, [(PROMPT + length, length) for length in lengths])
    return record(options, seconds, work, before, "samples", {"tokens": sum(lengths)}, "float32")


def record(
    options: argparse.Namespace,
    seconds: list[float],
    work: float,
    before: int,
    unit: str,
    facts: dict[str, Any],
    precision: str | None = None,
) -> Record:
    """The record of a point: model operations and memory above `before` are among its facts."""
    known: dict[str, Any] = {"operations": work, "above": memory.above(options.device, before), "before": before}
    known |= {"precision": precision or options.precision} | facts
    return Record(seconds, float(options.batch), unit, facts=known)


TASKS: dict[str, Callable[[argparse.Namespace, DPORun, Runtime], Record]] = {
    "dpo": dpo,
    "generate": generate,
    "evaluate": evaluation,
}


def measure(options: argparse.Namespace) -> Record:
    """Time the task that is asked for."""
    begin(options)
    run = composed(options)
    return TASKS[options.task](options, run, Runtime(run.trainer))


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--task", choices=list(TASKS), required=True)
    for name, default in (("layers", 1), ("width", 32), ("heads", 2), ("vocabulary", 300), ("context", 64)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--batch", type=int, default=16, help="pairs, prompts or samples at once")
    made.add_argument("--new", type=int, default=16, help="tokens of each completion")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
