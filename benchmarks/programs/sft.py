"""Ours: SFT steps on 64 rows of review text, every token but the first predicted, fused AdamW."""

import argparse

import numpy as np
import torch

from benchmarks.programs import ours
from benchmarks.programs.record import Record, begin, finish, parser, read
from imdb_rlhf.algos.sft import SFT, RowsBatch
from imdb_rlhf.config.algos import SFTRun
from imdb_rlhf.training.runtime import Runtime


def measure(options: argparse.Namespace) -> Record:
    """Time steps."""
    begin(options)
    rows = [np.array(row, dtype=np.int32) for row in read(options.folder, "rows")]
    epochs = options.batch * (options.repetitions + 1) / len(rows)
    run = ours.composed(
        options, SFTRun, "algo=sft", f"sft.batch_size={options.batch}", f"sft.epochs={epochs}", "sft.optim.lr=1e-4"
    )
    runtime = Runtime(run.trainer)
    algorithm = SFT(ours.policy(options.folder, "reference", run), rows, run.sft)
    length = len(rows[0])
    first = RowsBatch(rows, np.arange(options.batch), 1.0).parts(0, 1, None)[0]
    algorithm.module.to(runtime.device)
    with runtime.autocast(), torch.no_grad():  # of the peer's first rows: training goes through them in another order
        loss, _ = algorithm.loss(algorithm.module, first)
    laps = ours.train(algorithm, run.sft.optim, runtime)
    tokens = options.batch * (length - 1)
    facts = {"rows": [(length, length - 1)] * options.batch, "loss": float(loss) / tokens}
    return Record(laps.seconds(), float(tokens), "tokens", facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=64, help="rows of a step")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
