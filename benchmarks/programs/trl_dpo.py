"""The peer: steps of TRL's DPOTrainer on the same 64 pairs, as a person would set it up for speed.

bf16 autocast on float32 weights as ours; TRL's own optimizer (fused AdamW) and chunked log-probs; no evaluation, no
saving, no loader workers. Of its settings, attention kernel and checkpointing of activations (TRL's default, made for
memory) change the step by less than a tenth at `mini`, where the vocabulary takes the time; without checkpointing
no block is computed twice at larger shapes. `padding_free` is for FlashAttention alone. What is timed begins when the
batch is there: its collation is not counted.
"""

import argparse
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.programs.record import Record, begin, finish, now, parser, read


class Laps(TrainerCallback):
    """When each step began and ended, and its loss."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.began: list[float] = []
        self.ended: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A batch is there."""
        self.began.append(now(self.device))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The weights have changed."""
        self.ended.append(now(self.device))

    def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
        """A step's metrics."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def dataset(groups: list[dict[str, Any]], pairs: list[list[list[int]]]) -> Dataset:
    """The pairs as texts; TRL adds EOS."""

    def text(which: list[int]) -> str:
        return str(groups[which[0]]["completions"][which[1]]["text"])

    return Dataset.from_list(
        [
            {"prompt": groups[winner[0]]["prompt"], "chosen": text(winner), "rejected": text(loser)}
            for winner, loser in pairs
        ]
    )


def measure(options: argparse.Namespace) -> Record:
    """Time steps of the trainer."""
    begin(options)
    groups, pairs = read(options.folder, "groups"), read(options.folder, "pairs")["prefix"]
    models = {
        name: AutoModelForCausalLM.from_pretrained(
            options.folder / name, dtype=torch.float32, attn_implementation=options.attention
        )
        for name in ("policy", "reference")
    }
    tokenizer = AutoTokenizer.from_pretrained(options.folder / "policy")
    laps = Laps(options.device)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=0.1,
            per_device_train_batch_size=len(pairs),
            max_steps=options.repetitions + 1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            bf16=options.precision == "bf16",
            use_cpu=options.device == "cpu",
            gradient_checkpointing=options.checkpointing,
            precompute_ref_log_probs=options.precompute,
            dataloader_pin_memory=options.device == "cuda",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=models["policy"],
            ref_model=models.pop("reference"),
            args=config,
            train_dataset=dataset(groups, pairs),
            processing_class=tokenizer,
            callbacks=[laps],
        )
        if options.precompute:
            trainer.ref_model = None  # its log-probs are in the data
        tokens = [[len(row[f"{which}_ids"]) for row in trainer.train_dataset] for which in ("chosen", "rejected")]
        expected = [len(groups[side[0]]["completions"][side[1]]["ids"]) for pair in pairs for side in pair]
        if sorted(sum(tokens, [])) != sorted(expected):
            raise SystemExit("TRL reads other tokens from the texts than the workload holds")
        trainer.train()
    seconds = [end - start for start, end in zip(laps.began, laps.ended, strict=True)][1:]
    return Record(seconds, float(len(pairs)), "pairs", facts={"loss": laps.losses[0]})


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--precompute", action="store_true", help="reference log-probs before training, not timed")
    made.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    made.add_argument("--checkpointing", action="store_true", help="as TRL's default has it")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
