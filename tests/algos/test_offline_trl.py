"""f-DPO, EXO and KTO against TRL's trainers: the same loss and gradient on the same tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.exo import EXO
from imdb_rlhf.algos.kto import KTO
from imdb_rlhf.algos.method import PolicyMethod
from imdb_rlhf.config.algos import Divergence, DPORun
from imdb_rlhf.config.preference_algos import EXOConfig, EXORun, KTOConfig, KTORun
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.models.policy import Policy, train_tokenizer
from tests import tiny
from tests.algos.test_dpo_trl import scratch_policy, trl_trainer

BETA = 0.3
TEXTS = [
    ("The film", " is good.", " is bad and dull."),
    ("I saw it twice", "", " and I left."),  # the empty text is EOS alone
    ("A plot", " that is good.", " that is weak, slow and dull!"),
]
TABLE = pd.DataFrame(TEXTS, columns=["prompt", "chosen", "rejected"])
PAIRS = Pairs(np.array([[0, 3], [1, 4], [2, 5]]), np.arange(3), {})
STEPS = tiny.steps(batch_size=3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([prompt + text for prompt, *texts in TEXTS for text in texts], 290, 290)


@pytest.fixture(scope="module")
def reference(tokenizer: Any) -> Policy:
    return scratch_policy(tokenizer, 0)


def groups(reference: Policy) -> pd.DataFrame:
    """All winners, then all losers, each with an EOS, as TRL lays its examples out."""

    def encode(text: str) -> list[int]:
        return reference.tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = []
    for prompt, text in [(row[0], row[side]) for side in (1, 2) for row in TEXTS]:
        prompt_ids, completion_ids = encode(prompt), [*encode(text), reference.eos_id]
        with torch.no_grad():
            ref_logprob = float(tiny.completion_logprob(reference.lm, prompt_ids, completion_ids))
        rows.append((prompt_ids, completion_ids, ref_logprob))
    return pd.DataFrame(rows, columns=["prompt_ids", "completion_ids", "ref_logprob"])


def kto_trainer(model: Any, reference: Any, tokenizer: Any, folder: Path, **settings: Any) -> Any:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    arguments = {"output_dir": str(folder), "per_device_train_batch_size": 2 * len(TEXTS), "bf16": False}
    arguments |= {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, **settings}
    return trl.KTOTrainer(
        model=model,
        ref_model=reference,
        args=trl.KTOConfig(**arguments),
        train_dataset=datasets.Dataset.from_pandas(TABLE),
        processing_class=tokenizer,
    )


def assert_same(
    make: Callable[[Policy], PolicyMethod], trainer_of: Callable[[Policy], Any], policy: Policy
) -> dict[str, float]:
    """Loss and gradient of the first batch are those of TRL's trainer; returns the metrics."""
    algorithm = make(policy)
    batch = next(iter(algorithm.batches(0)))
    loss, metrics = tiny.run_batch(algorithm, batch, 2)
    gradient = tiny.gradients(policy.lm)
    trainer = trainer_of(policy)
    trl_loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    trl_loss.backward()
    assert loss == pytest.approx(float(trl_loss.detach()), abs=1e-5)
    trl_gradient = tiny.gradients(policy.lm)
    assert trl_gradient.norm() > 1e-3
    assert (gradient - trl_gradient).norm() < 1e-4 * trl_gradient.norm()
    return {**metrics, **batch.notes}


@pytest.mark.parametrize(
    ("divergence", "alpha", "name"),
    [
        (Divergence.forward_kl, None, "forward_kl"),
        (Divergence.js, None, "js_divergence"),
        (Divergence.alpha, 0.3, "alpha_divergence"),
    ],
)
def test_f_dpo(
    divergence: Divergence, alpha: float | None, name: str, tokenizer: Any, reference: Policy, tmp_path: Path
) -> None:
    dpo = tiny.dpo(divergence=divergence, divergence_alpha=alpha)
    run = tiny.run(DPORun, beta=BETA, dpo=dpo, policy=STEPS)
    # TRL's order is that of t^(a - 1): a = 1 - alpha
    args = {"f_divergence_type": name} | ({"f_alpha_divergence_coef": 1 - alpha} if alpha else {})
    assert_same(
        lambda policy: DPO(policy, groups(reference), PAIRS, run),
        lambda policy: trl_trainer(policy.lm, tokenizer, TABLE, tmp_path, args=args, ref_model=reference.lm),
        scratch_policy(tokenizer, 1),
    )


def test_exo(tokenizer: Any, reference: Policy, tmp_path: Path) -> None:
    run = tiny.run(EXORun, beta=BETA, exo=EXOConfig(0.01), policy=STEPS)
    args = {"loss_type": "exo_pair", "label_smoothing": 0.01}
    assert_same(
        lambda policy: EXO(policy, groups(reference), PAIRS, run),
        lambda policy: trl_trainer(policy.lm, tokenizer, TABLE, tmp_path, args=args, ref_model=reference.lm),
        scratch_policy(tokenizer, 1),
    )


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_kto(first: int, second: int, tokenizer: Any, tmp_path: Path) -> None:
    reference = scratch_policy(tokenizer, first)
    run = tiny.run(KTORun, beta=BETA, kto=KTOConfig(1.3, 0.8), policy=STEPS)
    settings = {"beta": BETA, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    metrics = assert_same(
        lambda policy: KTO(policy, reference.lm, groups(reference), PAIRS, run, tiny.runtime()),
        lambda policy: kto_trainer(policy.lm, reference.lm, tokenizer, tmp_path, **settings),
        scratch_policy(tokenizer, second),
    )
    estimate = metrics["train/kl_estimate"]
    assert estimate > 0.1 if first == 1 else estimate == 0  # its mean is above 0 one way, below it the other
