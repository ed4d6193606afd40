"""TRL's DPOTrainer with the callback: the same training, and the same log but for reward and KL."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from imdb_rlhf import FrontierCallback
from tests import tiny
from tests.api.worlds import world

PAIRS = [{"prompt": "bc", "chosen": letter + "de", "rejected": "gh" + letter} for letter in "bcdefghi"]
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def trained(folder: Path, callbacks: list[Any]) -> DPOTrainer:
    lm, reference = (tiny.scattered_gpt2(2, dropout=rate) for rate in (0.1, 0.0))
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    values: dict[str, Any] = {"max_steps": 4, "learning_rate": 0.05, "logging_steps": 2, "beta": 0.3}
    values |= {"per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    args = DPOConfig(output_dir=str(folder), disable_tqdm=True, bf16=False, gradient_checkpointing=False, **values)
    data = Dataset.from_list(PAIRS)
    trainer = DPOTrainer(lm, reference, args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer


def test_dpo_is_the_same_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "runs" / "trl"
    callback = FrontierCallback(world(), every=1, folder=folder, knob="beta")
    plain, measured = trained(tmp_path / "plain", []), trained(tmp_path / "measured", [callback])
    assert torch.equal(tiny.weights(plain.model), tiny.weights(measured.model))
    rows = [row for row in measured.state.log_history if "eval_kl" not in row]
    for one, other in zip(plain.state.log_history, rows, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}
    kl = [row["eval_kl"] for row in measured.state.log_history if "eval_kl" in row]
    assert len(kl) == 4 and kl[-1] > 0.01
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["variant"] == "TRL DPO" and summary["knob"] == {"name": "beta", "value": 0.3}
    assert summary["trainer"]["trl"] and summary["kl"] == pytest.approx(kl[-1])
