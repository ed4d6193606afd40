"""Ours: PPO iterations of 64 queries and 24 tokens, 4 epochs of minibatches of 16, values on the policy's layers."""

import argparse

import numpy as np

from benchmarks.programs import ours
from benchmarks.programs.record import Record, begin, finish, mean_logprob, parser, peak_bytes, read, score
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.models.policy import freeze
from imdb_rlhf.training.runtime import Runtime

# The constants of TRL's example, advantages whitened over the batch as TRL 0.11.4 does it.
CONSTANTS = ["algo=ppo", "ppo=trl_2023", "ppo.reward=ground_truth", "ppo.advantage_whitening=batch"]


def measure(options: argparse.Namespace) -> Record:
    """Time whole iterations: sampling, scoring, training."""
    begin(options)
    run = ours.composed(
        options,
        PPORun,
        *CONSTANTS,
        f"ppo.batch_size={options.queries}",
        f"ppo.rollout_batch_size={options.queries}",
        f"ppo.minibatch_size={options.minibatch}",
        f"ppo.epochs={options.epochs}",
        f"ppo.episodes={options.queries * (options.repetitions + 1)}",
        f"generation.max_new_tokens={options.new}",
    )
    runtime = Runtime(run.trainer)
    reference = freeze(ours.policy(options.folder, "reference", run).lm.to(runtime.device))
    policy = ours.policy(options.folder, "reference", run)
    prompts = read(options.folder, "prompts")[: options.queries]
    drawn: list[tuple[list[list[int]], list[list[int]]]] = []

    def scores(heads: list[list[int]], tails: list[list[int]]) -> np.ndarray:
        drawn.append((heads, tails))
        return np.array(score(heads, tails))

    coefficient = float(run.ppo.initial_kl_coefficient or 0.2)
    algorithm = PPO(policy, reference, prompts, scores, run, runtime, coefficient)
    policy.lm.to(runtime.device)  # it samples before the loop moves it
    laps = ours.train(algorithm, run.ppo.optim, runtime)
    memory = peak_bytes(options.device)
    facts = {
        "logprob": mean_logprob(reference, *drawn[0]),
        "queries": [len(prompt) for prompt in prompts],
        "new": options.new,
        "epochs": options.epochs,
        "minibatch": options.minibatch,
        "loss": laps.losses[0],
    }
    return Record(laps.seconds(algorithm.period), float(options.queries), "episodes", memory, facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--queries", type=int, default=64, help="episodes of an iteration")
    made.add_argument("--new", type=int, default=24, help="tokens of each response")
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--minibatch", type=int, default=16)
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
