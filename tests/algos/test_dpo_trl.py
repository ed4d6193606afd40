"""DPO against TRL's trainer: the same loss and gradient; and TRL trains on the exported table."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.preference_groups import to_trl
from imdb_rlhf.models.policy import Policy, scratch, train_tokenizer
from tests import tiny

BETA = 0.3


def trl_trainer(model: PreTrainedModel, tokenizer: Any, table: pd.DataFrame, folder: Path, **changes: Any) -> Any:
    """TRL's trainer of a preference table: on the CPU, in float32, without a report."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    arguments = {
        "output_dir": str(folder),
        "beta": BETA,
        "per_device_train_batch_size": len(table),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(**{**arguments, **changes.pop("args", {})}),
        train_dataset=datasets.Dataset.from_pandas(table[["prompt", "chosen", "rejected"]], preserve_index=False),
        processing_class=tokenizer,
        **changes,
    )


TEXTS = [
    ("The film", " is good.", " is bad and dull."),
    ("The film", " is lovely, truly lovely.", " is bad and dull."),
    ("I saw it twice", "", " and I left."),  # the empty text is EOS alone
    ("A plot", " that is good.", " that is weak, slow and dull!"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([prompt + text for prompt, *texts in TEXTS for text in texts], 290, 290)


def scratch_policy(tokenizer: Any, seed: int) -> Policy:
    config = tiny.model(layers=2, context=48, tokenizer_size=290, vocabulary=290, init_seed=seed)
    policy = scratch(config, tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def test_loss_and_gradient_are_those_of_trl(tokenizer: Any, tmp_path: Path) -> None:
    reference, policy = scratch_policy(tokenizer, 0), scratch_policy(tokenizer, 1)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows, pairs = [], []
    for at, (prompt, *texts) in enumerate(TEXTS):
        for sample, text in enumerate(texts):
            prompt_ids, completion_ids = encode(prompt), [*encode(text), policy.eos_id]
            # TRL sees the same tokens
            assert encode(prompt + text + tokenizer.eos_token) == prompt_ids + completion_ids
            with torch.no_grad():
                ref_logprob = float(tiny.completion_logprob(reference.lm, prompt_ids, completion_ids))
            rows.append((at, sample, prompt_ids, completion_ids, 1.0 - sample, ref_logprob))
        pairs.append((2 * at, 2 * at + 1))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    algorithm = DPO(
        policy,
        pd.DataFrame(rows, columns=columns),
        Pairs(np.array(pairs), np.arange(len(pairs)), {}),
        tiny.run(DPORun, beta=BETA, policy=tiny.steps(batch_size=len(pairs))),
    )
    loss, _ = tiny.run_batch(algorithm, next(algorithm.batches(0)))
    gradient = tiny.gradients(policy.lm)

    table = pd.DataFrame(TEXTS, columns=["prompt", "chosen", "rejected"])
    trainer = trl_trainer(policy.lm, tokenizer, table, tmp_path, ref_model=reference.lm)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == 2 * len(TEXTS)
    trl_loss = trainer.compute_loss(trainer.model, batch)
    trl_loss.backward()

    assert abs(loss - math.log(2)) > 0.01  # the policy is not the reference
    assert loss == pytest.approx(float(trl_loss.detach()), abs=1e-5)
    trl_gradient = tiny.gradients(policy.lm)
    assert trl_gradient.norm() > 0.01
    assert (gradient - trl_gradient).norm() < 1e-4 * trl_gradient.norm()


def test_trl_trains_on_the_exported_table(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        (at, sample, prompt, text, reward)
        for at, (prompt, chosen, rejected) in enumerate(TEXTS)
        for sample, (text, reward) in enumerate([(rejected, -1.5), (chosen, 2.0), (chosen + "!", 0.5), (" so so", 0.5)])
    ]
    groups = pd.DataFrame(rows, columns=["prompt_id", "sample_id", "prompt", "completion", "reward_logit"])
    file = tmp_path / "preferences.parquet"
    to_trl(groups).to_parquet(file, index=False)
    table = pd.read_parquet(file)
    assert len(table) == 4 * 5  # of 6 pairs one is a tie

    policy = scratch_policy(tokenizer, 1)
    before = {name: p.detach().clone() for name, p in policy.lm.named_parameters()}
    args = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1}
    reference = scratch_policy(tokenizer, 1).lm
    trainer = trl_trainer(policy.lm, tokenizer, table, tmp_path / "trl", args=args, ref_model=reference)
    assert trainer.train().global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert math.isfinite(losses[1]) and losses[1] != losses[0]
    assert not all(p.equal(before[name]) for name, p in policy.lm.named_parameters())
