"""The peer: steps of TRL's DPOTrainer on the same 64 pairs, as a person would set it up for speed.

bf16 autocast on float32 weights as in our program; TRL's own optimizer (fused AdamW) and chunked log-probs; no
evaluation, no saving, no loader workers. Checkpointing of activations, TRL's default, is off: no block is computed
twice. `padding_free` is for FlashAttention only. The clock starts when the batch is there: collation is not counted.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.programs.program import Record, Setup


class Laps(TrainerCallback):
    """When each step began and ended."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.began, self.ended = setup, list[float](), list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A batch is there."""
        self.began.append(self.setup.now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The weights have changed."""
        self.ended.append(self.setup.now())


class Trainer(DPOTrainer):
    """A trainer of tokens: TRL would make other ones of texts."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def train(setup: Setup, precompute: bool = False) -> Record:
    """Time steps; with `precompute` the reference's log-probs are computed before the clock starts."""
    data = setup.data()
    pairs, completions = data["pairs"]["prefix"], data["completions"]
    examples = [
        {"prompt_ids": data["prompts"][w // 4], "chosen_ids": completions[w], "rejected_ids": completions[r]}
        for w, r in pairs
    ]
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(setup.model(name), dtype=torch.float32) for name in ("policy", "reference")
    )
    laps = Laps(setup)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=0.1,
            per_device_train_batch_size=len(pairs),
            max_steps=setup.repetitions + 1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            bf16=setup.precision == "bf16",
            use_cpu=setup.device == "cpu",
            gradient_checkpointing=False,
            precompute_ref_log_probs=precompute,
            dataloader_pin_memory=setup.device == "cuda",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=policy,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_list(examples),
            processing_class=AutoTokenizer.from_pretrained(setup.model("policy")),
            callbacks=[laps],
        )
        del reference
        if precompute:
            trainer.ref_model = None  # its log-probs are in the data
        trainer.train()
    seconds = [end - start for start, end in zip(laps.began, laps.ended, strict=True)][1:]
    return Record(seconds, float(len(pairs)), "pairs", facts={"loss": float(trainer.state.log_history[0]["loss"])})
