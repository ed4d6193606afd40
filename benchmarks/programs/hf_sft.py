"""The peer: a plain training step of the same model, transformers' own loss under autocast, fused AdamW."""

import argparse

import torch
from transformers import AutoModelForCausalLM

from benchmarks.programs.record import Record, autocast, begin, finish, parser, read, timed


def measure(options: argparse.Namespace) -> Record:
    """Time steps: forward, backward, gradient norm, optimizer."""
    begin(options)
    rows = torch.tensor(read(options.folder, "rows"))
    lm = AutoModelForCausalLM.from_pretrained(options.folder / "reference", dtype=torch.float32).to(options.device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)
    losses: list[float] = []

    def once() -> None:
        at = (len(losses) * options.batch) % (len(rows) - options.batch + 1)
        ids = rows[at : at + options.batch].to(options.device)
        optimizer.zero_grad()
        with autocast(options):
            loss = lm(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))

    seconds = timed(once, options.repetitions, options.device)
    return Record(seconds, float(options.batch * (rows.shape[1] - 1)), "tokens", facts={"loss": losses[0]})


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=64, help="rows of a step")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
