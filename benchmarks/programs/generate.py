"""Ours: completions of 48 tokens for a batch of prompts through the package's sampler, no EOS, nothing truncated."""

import argparse

import numpy as np
import torch

from benchmarks.programs import ours
from benchmarks.programs.record import Record, begin, finish, mean_logprob, parser, peak_bytes, read, timed
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.models.policy import freeze
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.training.runtime import Runtime

NEVER = -1  # a token that no vocabulary has: no row ends early


def measure(options: argparse.Namespace) -> Record:
    """Time whole batches, random numbers drawn within the time."""
    begin(options)
    run = ours.composed(options, DPORun, "algo=dpo")
    runtime = Runtime(run.trainer)
    lm = freeze(ours.policy(options.folder, "reference", run).lm.to(runtime.device))
    prompts = read(options.folder, "prompts")[: options.batch]
    drawn: list[list[list[int]]] = []

    def once() -> None:
        ids = np.arange(len(drawn) * len(prompts), (len(drawn) + 1) * len(prompts)).tolist()
        random = uniforms(0, "benchmark", ids, 1, options.new)[:, 0]
        with torch.no_grad(), runtime.autocast():
            drawn.append(sample(lm, prompts, random, NEVER).ids)

    seconds = timed(once, options.repetitions, options.device)
    if any(len(tokens) != options.new for batch in drawn for tokens in batch):
        raise SystemExit("a completion is shorter than it has to be")
    memory = peak_bytes(options.device)
    facts = {
        "rows": [(len(prompt) + options.new - 1, options.new) for prompt in prompts],
        "logprob": mean_logprob(lm, prompts, drawn[-1]),
    }
    return Record(seconds, float(len(prompts) * options.new), "tokens", memory, facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=64, help="prompts at once")
    made.add_argument("--new", type=int, default=48, help="tokens of each completion")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
