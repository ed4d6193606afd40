"""Ours: DPO steps on 64 pairs through the package's own algorithm and loop.

`--reference stored` takes the reference's log-probs from a file, as a run takes them from its groups; `once` scores the
workload's completions, times that, and writes the file; `step` scores a batch's completions again in every step, as a
trainer does that stores nothing.
"""

import argparse
import json
from typing import Any, cast

import numpy as np
import pandas as pd

from benchmarks.programs import ours
from benchmarks.programs.record import Record, begin, finish, parser, read, timed
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.preferences import PairBatch, RankingBatch
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy, freeze
from imdb_rlhf.training.loop import Algorithm
from imdb_rlhf.training.runtime import Runtime

# TRL's defaults: AdamW at 1e-6, constant here, gradient norm 1.
OPTIMIZERS = {
    "adamw": ["optim@policy.optim=adamw", "policy.optim.lr=1e-6", "policy.optim.warmup_steps=0"],
    "rmsprop": ["optim@policy.optim=rmsprop", "policy.optim.lr=1e-6", "policy.optim.warmup_steps=0"],
}


class ReferenceInStep(DPO):
    """DPO that scores each batch's completions under the reference before it trains on them."""

    reference: Any
    runtime: Runtime

    def batch(self, chosen: np.ndarray) -> PairBatch | RankingBatch:
        """The global batch of these (batch,) pairs."""
        found = super().batch(chosen)
        assert isinstance(found, PairBatch)
        rows = np.unique(found.pairs)
        known = self.completions.ref_logprob.copy()  # pandas lends its own, which may not be written to
        known[rows] = score(self.reference, self.completions_of(rows), self.runtime)
        self.completions.ref_logprob = known
        return found

    def completions_of(self, rows: np.ndarray) -> Rows:
        """The token rows of some completions."""
        prompt_ids, completion_ids = self.completions.prompt_ids, self.completions.completion_ids
        return Rows.of([prompt_ids[i] for i in rows], [completion_ids[i] for i in rows])


def score(reference: Any, rows: Rows, runtime: Runtime) -> np.ndarray:
    """(rows,) log-probs under the reference, in the precision that trains."""
    with runtime.autocast():
        return sequence_logprobs(reference, rows).double().cpu().numpy()


def table_of(groups: list[dict[str, Any]]) -> pd.DataFrame:
    """The workload's groups in the columns that DPO reads, reference log-probs 0."""
    rows = [
        (number, which, group["prompt_ids"], completion["ids"], 0.0)
        for number, group in enumerate(groups)
        for which, completion in enumerate(group["completions"])
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "sample_id", "prompt_ids", "completion_ids", "ref_logprob"])


def pairs_of(pairs: list[list[list[int]]], k: int) -> Pairs:
    """The workload's pairs as rows of that table."""
    rows = np.array([[group * k + which for group, which in pair] for pair in pairs], dtype=np.int64)
    return Pairs(rows, rows[:, 0] // k, {})


def measure(options: argparse.Namespace) -> Record:
    """Time steps, or the reference's scoring where that is asked for."""
    begin(options)
    drawn_as = read(options.folder, "pairs")[options.pairs]
    groups = read(options.folder, "groups")
    groups, k = groups[: 1 + max(group for pair in drawn_as for group, _ in pair)], len(groups[0]["completions"])
    run = ours.composed(
        options,
        DPORun,
        *OPTIMIZERS[options.optimizer],
        "policy.optim.max_grad_norm=1.0",
        f"policy.batch_size={len(drawn_as)}",
        f"policy.steps={options.repetitions + 1}",
    )
    runtime = Runtime(run.trainer)
    table, drawn = table_of(groups), pairs_of(drawn_as, k)
    used = np.unique(drawn.rows)
    lengths = [(len(p) + len(c), len(c)) for p, c in zip(table["prompt_ids"], table["completion_ids"], strict=True)]
    facts: dict[str, Any] = {"rows": [lengths[i] for i in used], "distinct": len(used)}
    if options.reference == "once":
        return _once(options, ours.policy(options.folder, "reference", run), table, used, runtime, facts)
    policy = ours.policy(options.folder, "policy", run)
    algorithm: DPO
    if options.reference == "step":
        algorithm = ReferenceInStep(policy, table, drawn, run)
        algorithm.reference = freeze(ours.policy(options.folder, "reference", run).lm.to(runtime.device))
        algorithm.runtime = runtime
    else:
        stored = json.loads(_stored(options).read_text())
        table.loc[used, "ref_logprob"] = stored
        algorithm = DPO(policy, table, drawn, run)
    laps = ours.train(cast(Algorithm, algorithm), run.policy.optim, runtime)
    return Record(laps.seconds(), float(len(drawn_as)), "pairs", facts=facts | {"loss": laps.losses[0]})


def _once(
    options: argparse.Namespace, reference: Policy, table: pd.DataFrame, used: np.ndarray, runtime: Runtime, facts: Any
) -> Record:
    lm = freeze(reference.lm.to(runtime.device))
    chosen = table.iloc[used]
    rows = Rows.of(list(chosen["prompt_ids"]), list(chosen["completion_ids"]))
    seconds = timed(lambda: score(lm, rows, runtime), options.repetitions, options.device)
    _stored(options).write_text(json.dumps(score(lm, rows, runtime).tolist()))
    return Record(seconds, float(len(used)), "completions", facts=facts)


def _stored(options: argparse.Namespace) -> Any:
    return options.folder / f"reference-{options.pairs}-{options.device}-{options.precision}.json"


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw")
    made.add_argument("--pairs", choices=["prefix", "shuffled"], default="prefix")
    made.add_argument("--reference", choices=["stored", "once", "step"], default="stored")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
