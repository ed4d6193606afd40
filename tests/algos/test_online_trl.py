"""RLOO, GRPO and online DPO against TRL's trainers: the same advantages, loss and gradient on the same completions."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.config.online_algos import KLPlace, LengthNorm
from tests import tiny
from tests.algos.naive_ppo import MAX_NEW_TOKENS, disturb, score
from tests.algos.online_methods import BETA, make

# Of one length: TRL pads prompts on the left, and GPT-2 would count the padding as positions.
PROMPTS = [[1 + i, 8 - i] for i in range(8)]


def sampled(name: str, **changes: Any) -> tuple[Any, Any, list[list[int]]]:
    """The method, the minibatch of its second step on a batch, and the batch's completions; the weights have moved."""
    algorithm = make(name, minibatch_size=12, **changes)
    algorithm.prompts = PROMPTS
    batches = algorithm.batches(0)
    next(batches)
    rollout = algorithm.rollout
    spans = zip(rollout.ids.tolist(), rollout.lengths.tolist(), strict=True)
    return algorithm, next(batches), [row[2:length] for row, length in spans]


def trl_trainer(name: str, algorithm: Any, folder: Path, **changes: Any) -> Any:
    """TRL's trainer of the same policy and reference, with the method's constants."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    tokenizer = tiny.tokenizer(9, 0)
    tokenizer.pad_token = tokenizer.eos_token
    common = {"output_dir": str(folder), "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    if name == "online_dpo":
        online = pytest.importorskip("trl.experimental.online_dpo", reason="this TRL has no online DPO")
        kind, config = online.OnlineDPOTrainer, online.OnlineDPOConfig
        common |= {"beta": BETA, "per_device_train_batch_size": 6}
        changes["ref_model"] = algorithm.reference.lm
    else:
        kind, config = (trl.RLOOTrainer, trl.RLOOConfig) if name == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)
        # with a beta it would look for the reference under the model's name
        common |= {"beta": 0.0, "per_device_train_batch_size": 12, "num_generations": 4, "num_iterations": 2}
        common |= {"max_completion_length": MAX_NEW_TOKENS, "epsilon": 0.2}
    arguments = config(**common, **changes.pop("args", {}))
    trainer = kind(
        model=algorithm.policy.lm,
        args=arguments,
        reward_funcs=lambda **columns: [0.0],
        train_dataset=datasets.Dataset.from_dict({"prompt": ["bc"] * 12}),
        processing_class=tokenizer,
        **changes,
    )
    if name != "online_dpo":
        trainer.beta, trainer.ref_model = BETA, deepcopy(algorithm.reference.lm)
        trl.trainer.add_fused_lm_head(trainer.ref_model, temperature=1.0)
    return trainer


def rewards_of(algorithm: Any, completions: list[list[int]]) -> np.ndarray:
    return score([row[:2] for row in algorithm.rollout.ids.tolist()], completions)


def answer(trainer: Any, algorithm: Any, completions: list[list[int]]) -> dict[str, Any]:
    """What TRL makes of these completions, which it takes for its own."""
    prompts = [row[:2] for row in algorithm.rollout.ids.tolist()]
    rewards = torch.tensor(rewards_of(algorithm, completions), dtype=torch.float32)[:, None]
    texts = ["" for _ in completions]
    many: Any = (prompts, completions, None, texts, None, {}, None, None)
    trainer._generate = lambda _: many if hasattr(trainer, "loss_type") else (prompts, completions, texts)
    trainer._calculate_rewards = lambda *_: rewards
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return dict(trainer._generate_and_score_completions([{"prompt": "bc"}] * 12))


@pytest.mark.parametrize(
    ("name", "changes", "args"),
    [
        ("rloo", {}, {}),
        ("grpo", {}, {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": False}),
        ("grpo", {"kl_in": KLPlace.loss_corrected}, {"loss_type": "grpo", "use_bias_correction_kl": True}),
        (
            "grpo",
            {"scale_advantages": False, "length_norm": LengthNorm.constant},
            {"loss_type": "dr_grpo", "scale_rewards": "none", "use_bias_correction_kl": False},
        ),
    ],
)
def test_advantages_loss_and_gradient_are_those_of_trl(
    name: str, changes: dict[str, Any], args: dict[str, Any], tmp_path: Path
) -> None:
    algorithm, batch, completions = sampled(name, **changes)
    trainer = trl_trainer(name, algorithm, tmp_path, args=args)
    inputs = answer(trainer, algorithm, completions)
    torch.testing.assert_close(inputs["advantages"], algorithm.rollout.advantage, atol=1e-4, rtol=1e-4)
    disturb(algorithm)
    trl_loss = trainer._compute_loss(trainer.model, inputs)
    trl_loss.backward()
    gradient = tiny.gradients(algorithm.policy.lm)
    loss, metrics = tiny.run_batch(algorithm, batch)
    assert 0 < metrics["train/clip_fraction"] < 1
    assert loss == pytest.approx(float(trl_loss.detach()), abs=1e-5)
    assert gradient.norm() > 0.01
    assert (tiny.gradients(algorithm.policy.lm) - gradient).norm() < 1e-3 * gradient.norm()


def test_online_dpo_s_loss_and_gradient_are_those_of_trl(tmp_path: Path) -> None:
    algorithm, batch, completions = sampled("online_dpo", k=2)
    assert batch.size == 6  # no pair ties or is one completion twice
    trainer = trl_trainer("online_dpo", algorithm, tmp_path)
    order = [*range(0, 12, 2), *range(1, 12, 2)]  # TRL has all first completions, then all second ones
    rewards = torch.tensor(rewards_of(algorithm, completions)[order], dtype=torch.float32)
    width = max(map(len, completions))
    rollout = algorithm.rollout
    ids = torch.stack([rollout.ids[at, 2 : 2 + width] for at in order])
    prompts, mask = rollout.ids[order, :2], rollout.mask[order][:, :width].long()
    trainer._generate = lambda *_: (prompts, torch.ones_like(prompts), ids, mask, None)
    trainer._calculate_rewards_from_functions = lambda **_: rewards
    disturb(algorithm)
    trl_loss = float(trainer.training_step(trainer.model, {"prompt": ["bc"] * 6}))
    gradient = tiny.gradients(algorithm.policy.lm)
    algorithm.policy.lm.eval()
    loss, _ = tiny.run_batch(algorithm, batch)
    assert loss == pytest.approx(trl_loss, abs=1e-5)
    assert gradient.norm() > 0.01
    assert (tiny.gradients(algorithm.policy.lm) - gradient).norm() < 1e-3 * gradient.norm()
