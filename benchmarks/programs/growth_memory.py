"""Ours: the memory that log-probs (and their gradients) and the exact KL take, over tokens and vocabularies.

A matrix of logits would be 4 bytes for each token and entry. Counted exactly are the tensors that the work makes, above
its inputs and the gradients that it returns; beside it the process's peak, where a single point is asked for.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.programs import memory
from benchmarks.programs.record import Record, begin, finish, now, parser
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows, token_logprobs
from imdb_rlhf.models.policy import freeze

ROW = 64  # tokens of a completion that is compared
Work = Callable[[], object]


def logprobs(options: argparse.Namespace, tokens: int, vocabulary: int) -> tuple[Work, int]:
    """Forward and backward of `token_logprobs`; the work, and the bytes of the gradients that it leaves."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, options.width, generator=random).to(options.device).requires_grad_()
        for size in (tokens, vocabulary)
    )
    targets = torch.randint(vocabulary, (tokens,), generator=random).to(options.device)

    def work() -> None:
        hidden.grad = weight.grad = None
        token_logprobs(hidden, weight, None, targets).sum().backward()

    return work, 4 * options.width * (tokens + vocabulary)


def divergence(options: argparse.Namespace, tokens: int, vocabulary: int) -> tuple[Work, int]:
    """`compare` of two models of one narrow layer; it leaves three numbers a row."""
    rows = tokens // ROW
    config = GPT2Config(vocab_size=vocabulary, n_positions=ROW + 1, n_embd=options.width, n_layer=1, n_head=1)
    config._attn_implementation = "eager"
    policy, reference = (freeze(GPT2LMHeadModel(config).to(options.device)) for _ in range(2))
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, ROW + 1), generator=random)
    batch = Rows(ids, torch.ones(rows, dtype=torch.int64), torch.full((rows,), ROW + 1)).to(policy.device)
    return lambda: compare(policy, reference, batch), 0


TASKS = {"token_logprobs": logprobs, "compare": divergence}


def points(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each point took."""
    for vocabulary in options.vocabulary:
        for tokens in options.tokens:
            work, kept = TASKS[options.task](options, tokens, vocabulary)
            point = {"tokens": tokens, "vocabulary": vocabulary, "logits": 4 * tokens * vocabulary}
            if len(options.vocabulary) * len(options.tokens) == 1:
                before = memory.mark(options.device)
                work()
                point["process"] = memory.above(options.device, before) - kept
            found = memory.live_bytes(work)
            yield point | {"above": found.most - kept, "largest": found.largest}


def measure(options: argparse.Namespace) -> Record:
    """Measure all points of the grid; the time is of the whole grid and of no interest."""
    begin(options)
    began = now(options.device)
    found = list(points(options))
    return Record([now(options.device) - began], float(len(found)), "points", facts={"points": found})


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--task", choices=list(TASKS), required=True)
    made.add_argument("--tokens", type=int, nargs="+", required=True, help=f"multiples of {ROW}")
    made.add_argument("--vocabulary", type=int, nargs="+", required=True)
    made.add_argument("--width", type=int, default=64)
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
