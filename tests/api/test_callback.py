"""FrontierCallback: a training is the same with it, its numbers are those of plain forward passes, its run is drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from imdb_rlhf import ConfigError, Frontier, FrontierCallback, RunError, World
from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.frontier.__main__ import main as frontier
from imdb_rlhf.tracking.jsonl import read
from tests import tiny
from tests.api.worlds import PROMPTS, brute, models, share_of_vowels, world

ROWS = Dataset.from_list([{"input_ids": [i % 18 + 1, 5, 9, 15], "labels": [i % 18 + 1, 5, 9, 15]} for i in range(24)])


class Tracker(TrainerCallback):
    """A tracker such as W&B's: what the trainer logs, as it is told of it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.rows.append({"step": state.global_step} | logs)


def policy() -> PreTrainedModel:
    """A model in training mode, with dropout, that starts at the reference."""
    lm = tiny.scattered_gpt2(2, dropout=0.2)
    lm.config.loss_type = "ForCausalLM"
    return lm.train()


def train(folder: Path, callbacks: list[TrainerCallback], model: Any = None, **changes: Any) -> Trainer:
    values: dict[str, Any] = {
        "max_steps": 6,
        "learning_rate": 0.05,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "seed": 3,
    }
    values |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    resume = changes.pop("resume", None)
    args = TrainingArguments(output_dir=str(folder / "trainer"), **(values | changes))
    trainer = Trainer(model=policy() if model is None else model, args=args, train_dataset=ROWS, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Trainer) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


def run_folder(tmp_path: Path, name: str = "mine") -> Path:
    return tmp_path / "outputs" / "runs" / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, FrontierCallback, Tracker]:
    folder, tracker = tmp_path_factory.mktemp("trained"), Tracker()
    callback = FrontierCallback(world(), every=4, folder=run_folder(folder), method="Mine", knob="learning_rate")
    return folder, train(folder, [tracker, callback]), callback, tracker


def test_a_training_is_the_same_bit_for_bit(trained: tuple[Path, Trainer, Any, Any], tmp_path: Path) -> None:
    def draws(texts: list[str]) -> list[float]:
        torch.rand(3), np.random.rand(2)  # a reward may use random numbers, and a training sees none of it
        return share_of_vowels(texts)

    plain = train(tmp_path, [])
    every = FrontierCallback(
        World(models()[1], tiny.tokenizer(), PROMPTS, draws, max_new_tokens=2), every=1, folder=None
    )
    for other in (trained[1], train(tmp_path, [every])):
        assert losses(other) == losses(plain) and len(losses(plain)) == 3
        assert torch.equal(tiny.weights(other.model), tiny.weights(plain.model))
    assert all(module.training for module in plain.model.modules())


def test_the_trainers_log_has_reward_and_exact_kl(trained: tuple[Path, Trainer, FrontierCallback, Tracker]) -> None:
    _, trainer, callback, tracker = trained
    logged = {row["step"]: row for row in trainer.state.log_history if "eval_kl" in row}
    assert list(logged) == [4, 6] == [row["step"] for row in callback.history]  # the last step, too
    told = [row for row in tracker.rows if "eval_kl" in row]
    assert [row | {"step": row["step"]} for row in told] == list(logged.values())
    found = world().measure(trainer.model)
    assert logged[6]["eval_reward"] == pytest.approx(found.reward)
    assert logged[6]["eval_kl"] == pytest.approx(found.kl) and found.kl > 0.01


def test_the_run_holds_what_plain_forward_passes_give(trained: tuple[Path, Trainer, Any, Any]) -> None:
    folder, trainer, *_ = trained
    run = run_folder(folder)
    assert check_manifest(run) is None
    lm, rows = trainer.model.eval(), world().measure(trainer.model).rows
    trainer.model.train()
    last = pd.read_parquet(run / "evaluations.parquet").query("step == 6 and split == 'test'")
    for stored, row in zip(last.to_dict("records"), rows.to_dict("records"), strict=True):
        lm.eval()
        expected = brute(lm, models()[1], row["prompt_ids"], row["completion_ids"])
        assert [stored["kl"], stored["kl_k1"]] == pytest.approx(expected, abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kl"] == pytest.approx(last["kl"].mean()) and summary["step"] == 6
    assert summary["knob"] == {"name": "learning_rate", "value": 0.05} and summary["variant"] == "Mine"
    metrics = read(run / "metrics.jsonl")
    assert [row["step"] for row in metrics if "train/loss" in row] == [2, 4, 6]
    assert [row["step"] for row in metrics if "eval/kl" in row] == [4, 6]


def test_a_frontier_draws_the_run(trained: tuple[Path, Trainer, Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained[0]
    assert frontier([str(run_folder(folder)), "--to", str(folder / "drawn")]) == 0
    assert "Mine" in capsys.readouterr().out
    content = json.loads((folder / "drawn" / "frontier.json").read_text())
    summary = json.loads((run_folder(folder) / "summary.json").read_text())
    assert [point["step"] for point in content["points"]] == [4, 6]
    assert content["points"][1]["kl"] == pytest.approx(summary["kl"]) and content["points"][1]["last"]
    assert content["reference"]["reward"] == pytest.approx(summary["reference"]["reward"])
    assert Frontier.from_runs(run_folder(folder)).to_frame()["reward"].iloc[-1] == pytest.approx(summary["reward"])
    page = (folder / "drawn" / "report.html").read_text()
    assert summary["command"].split()[1] in page and 'python train.py"' not in page


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"batch_size": 2}, None),
        ({"temperature": 0.9}, "generation.temperature"),
        ({"seed": 1}, "evaluation.seed"),
        ({"reference": tiny.scattered_gpt2(5)}, "sft.weights"),
        ({"validation_prompts": ["kk", "bb"]}, "data.prompts"),
        ({"reward": lambda texts: [2 * value for value in share_of_vowels(texts)]}, "reward.scores"),
    ],
)
def test_only_runs_of_one_world_share_axes(
    trained: tuple[Path, Trainer, Any, Any], changes: dict[str, Any], why: str | None
) -> None:
    folder, number = trained[0], len(list(run_folder(trained[0]).parent.glob("other*")))
    other, changes = run_folder(folder, f"other{number}"), dict(changes)
    reference, reward = changes.pop("reference", models()[1]), changes.pop("reward", share_of_vowels)
    arguments: dict[str, Any] = {"max_new_tokens": 3, "samples": 3, "bootstrap": 200}
    arguments |= {"validation_prompts": ["cb", "ed"]} | changes
    made = World(reference, tiny.tokenizer(), PROMPTS, reward, **arguments)
    train(folder, [FrontierCallback(made, every=2, folder=other, method="Other")], max_steps=2)
    if why is None:
        assert set(Frontier.from_runs(run_folder(folder), other).to_frame()["method"]) == {"Mine", "Other"}
    else:
        with pytest.raises(ConfigError, match="cannot be compared: they differ in .*" + why.replace(".", r"\.")):
            Frontier.from_runs(run_folder(folder), other)


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 4}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [FrontierCallback(world(), every=2, folder=run_folder(tmp_path)), Stop()], **saving)
    with pytest.raises(ConfigError, match="unfinished run of other settings"):
        train(tmp_path, [FrontierCallback(world(), every=2, folder=run_folder(tmp_path))], learning_rate=0.1)
    checkpoint = str(tmp_path / "trainer" / "checkpoint-4")
    train(tmp_path, [FrontierCallback(world(), every=2, folder=run_folder(tmp_path))], resume=checkpoint, **saving)
    whole = run_folder(tmp_path / "whole")
    train(tmp_path / "whole", [FrontierCallback(world(), every=2, folder=whole)], **saving)
    one, other = (pd.read_parquet(run / "evaluations.parquet") for run in (run_folder(tmp_path), whole))
    pd.testing.assert_frame_equal(one, other)


def test_an_adapter_is_measured_in_place(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=2, lora_alpha=8, target_modules=["c_attn"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(policy(), adapter)
    callback = FrontierCallback(world(), every=3, folder=run_folder(tmp_path))
    trainer = train(tmp_path, [callback], adapted, max_steps=3)
    (logged,) = (row for row in trainer.state.log_history if "eval_kl" in row)
    merged = trainer.model.merge_and_unload().eval()
    assert logged["eval_kl"] == pytest.approx(world().measure(merged).kl, rel=1e-4) and logged["eval_kl"] > 0.01
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["knob"] is None


def test_what_is_refused(trained: tuple[Path, Trainer, Any, Any], tmp_path: Path) -> None:
    one = world()
    with pytest.raises(ConfigError, match="holds a finished run"):
        FrontierCallback(one, every=1, folder=run_folder(trained[0]))
    with pytest.raises(ConfigError, match="give outputs/runs/mine"):
        FrontierCallback(one, every=1, folder=tmp_path / "mine")
    with pytest.raises(ConfigError, match="every=0"):
        FrontierCallback(one, every=0, folder=None)
    with pytest.raises(ConfigError, match="needs validation prompts"):
        FrontierCallback(world(validation_prompts=None), every=1, folder=run_folder(tmp_path))
    lm = policy()
    with pytest.raises(RunError, match="shares weights with it"):
        train(tmp_path, [FrontierCallback(world(lm), every=1, folder=None)], lm)
    with pytest.raises(ConfigError, match="knob='beta' is no number"):
        train(tmp_path, [FrontierCallback(one, every=1, folder=None, knob="beta")])
    with pytest.raises(RunError, match="the model has 21 entries and the reference 19"):
        train(tmp_path, [FrontierCallback(one, every=1, folder=None)], tiny.gpt2(vocabulary=21))
