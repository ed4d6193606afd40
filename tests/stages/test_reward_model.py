"""The reward model's stage: it learns, keeps the best weights, normalises, resumes bit for bit, and is measured."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from imdb_rlhf.algos.reward_model import held_out
from imdb_rlhf.config.algos import RewardModelRun
from imdb_rlhf.config.machine import Precision
from imdb_rlhf.config.reward import Objective
from imdb_rlhf.data import groups
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.models.policy import Policy, scratch, train_tokenizer
from imdb_rlhf.rewards.learned import LearnedReward
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.tracking.jsonl import read
from imdb_rlhf.training import checkpoint
from imdb_rlhf.training.runtime import Runtime
from tests import tiny

CPU = torch.device("cpu")
TOKENS = range(10, 22)
VALUES = np.random.default_rng(7).normal(0, 2, 40)


def samples(prompts: int, k: int, seed: int) -> pd.DataFrame:
    """K completions per prompt; the reward is the sum of the tokens' values, later ones weighted slightly more."""
    random = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        prompt_ids = random.integers(22, 40, size=2 + prompt % 2).tolist()
        for number in range(k):
            completion_ids = random.choice(TOKENS, size=3).tolist()
            logit = float(VALUES[completion_ids] @ [0.9, 1.0, 1.1])
            rows.append(
                dict.fromkeys(groups.COLUMNS, "")
                | {"prompt_id": prompt, "sample_id": number, "prompt_ids": prompt_ids, "completion_ids": completion_ids}
                | {"finished": False, "reward": 1 / (1 + np.exp(-logit)), "reward_logit": logit, "ref_logprob": 0.0}
            )
    return pd.DataFrame(rows)


GROUPS = samples(60, 4, 0)
REFERENCE = pd.concat([samples(30, 4, seed).assign(split=split) for seed, split in ((1, "validation"), (2, "test"))])


def reward_model_run(
    preferences: str | None = None,
    precision: Precision = Precision.float32,
    checkpoint_every: int = 0,
    **changes: Any,
) -> RewardModelRun:
    """A run whose `reward_model` section has these changes."""
    optim = tiny.adamw(lr=0.02, warmup_steps=2, beta2=0.99, eps=1e-8)
    section = {"epochs": 3.0, "batch_size": 32, "optim": optim, **changes}
    return tiny.run(
        RewardModelRun,
        algo="reward_model",
        data=tiny.data(preferences=preferences),
        trainer=tiny.trainer(precision=precision, checkpoint_every=checkpoint_every),
        reward_model=tiny.reward_model(**section),
    )


def policy() -> Policy:
    return scratch(tiny.model(), train_tokenizer(["the film"], 270, 270))


def stage_of(run: RewardModelRun) -> TrainedRewardModel:
    flow = Flow(run, Runtime(run.trainer), Console(quiet=True), [TrainedRewardModel])
    return flow.get(TrainedRewardModel)


Hook = Callable[[Any], None]  # is given the stage


def make(folder: Path, run: RewardModelRun, table: pd.DataFrame = GROUPS, hook: Hook = lambda stage: None) -> None:
    """Train the stage's reward model on a table of groups."""
    folder.mkdir(exist_ok=True)
    source = folder.with_name(f"{folder.name}-groups")
    source.mkdir(exist_ok=True)
    table.to_parquet(source / "groups.parquet", index=False)
    stage = stage_of(run)
    hook(stage)
    stage.train(folder, policy(), source, REFERENCE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "artifact"
    make(folder, reward_model_run())
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def scores_of(folder: Path, table: pd.DataFrame) -> np.ndarray:
    return LearnedReward(folder, CPU, 16).score_ids(list(table["prompt_ids"]), list(table["completion_ids"]))


def weights_of(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# --- what is left


def test_what_is_left_is_the_model_and_its_account(plain: Path) -> None:
    names = {"model", "normalisation.json", "report.json", "scores.parquet", "metrics.jsonl"}
    assert {path.name for path in plain.iterdir()} == names


def test_it_learns_the_reward(plain: Path) -> None:
    report = report_of(plain)
    assert report["accuracy"] > 0.85 and report["pearson"] > 0.8 and report["spearman"] > 0.8
    assert report["pairs"] + report["validation_pairs"] == 360
    low, high = report["accuracy_ci"]
    assert low < report["accuracy"] < high


def test_the_account_is_that_of_the_models_scores(plain: Path) -> None:
    test = REFERENCE[REFERENCE["split"] == "test"].reset_index(drop=True)
    scores, report = scores_of(plain, test), report_of(plain)
    table = pd.read_parquet(plain / "scores.parquet")
    assert list(table.columns) == ["prompt_id", "sample_id", "reward", "reward_logit", "score"]
    np.testing.assert_allclose(table["score"], scores, atol=1e-5)
    assert table["reward_logit"].tolist() == test["reward_logit"].tolist()
    right = [
        [(scores[a] > scores[b]) == (test["reward_logit"][a] > test["reward_logit"][b]) for a, b in pairs]
        for pairs in (list(combinations(range(4 * p, 4 * p + 4), 2)) for p in range(30))
    ]
    assert report["test_pairs"] == 180
    assert report["accuracy"] == pytest.approx(np.mean(right))
    assert report["pearson"] == pytest.approx(np.corrcoef(scores, test["reward_logit"])[0, 1], abs=1e-5)
    # probabilities are on the model's own scale: the first and last bin hold the pairs beyond log 9
    std = json.loads((plain / "normalisation.json").read_text())["std"]
    sure = sum(
        abs(scores[a] - scores[b]) * std >= np.log(9)
        for p in range(30)
        for a, b in combinations(range(4 * p, 4 * p + 4), 2)
    )
    assert report["reliability"][0]["count"] == report["reliability"][9]["count"] == sure > 0


def test_scores_are_normalised_on_prefixes_that_were_held_out(plain: Path) -> None:
    report = report_of(plain)
    inside = held_out([tuple(ids) for ids in GROUPS["prompt_ids"]], np.ones(len(GROUPS), bool), 0.3, 0)
    assert inside.sum() * 6 / 4 == report["validation_pairs"]  # four completions, six pairs
    scores = scores_of(plain, GROUPS)[inside]
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)


def test_the_best_evaluation_is_kept_and_told(plain: Path) -> None:
    rows = [row for row in read(plain / "metrics.jsonl") if "eval/accuracy" in row]
    report = report_of(plain)
    every = -(-report["steps"] // 5)
    assert [row["step"] for row in rows] == [*range(every, report["steps"], every), report["steps"]]
    assert all(row["eval/loss"] > 0 for row in rows)
    best = max(row["eval/accuracy"] for row in rows)
    assert report["validation_accuracy"] == best
    assert report["kept_step"] == next(row["step"] for row in rows if row["eval/accuracy"] == best)


def test_the_summary_line_names_accuracy_and_correlation(plain: Path, tmp_path: Path) -> None:
    stage, report = stage_of(reward_model_run()), report_of(plain)
    line = stage.summary_line(plain)
    assert f"{report['accuracy']:.1%}" in line and f"{report['pearson']:.2f}" in line
    (tmp_path / "report.json").write_text(json.dumps(report | {"accuracy": None, "pearson": None}))
    assert stage.summary_line(tmp_path).count("undefined") == 2


def test_training_begins_with_a_standard_deviation_of_one(tmp_path: Path) -> None:
    # a step so small that nothing moves leaves what it began with
    run = reward_model_run(epochs=0.01)
    run.reward_model.optim.lr = 1e-12
    make(tmp_path / "artifact", run)
    values = json.loads((tmp_path / "artifact" / "normalisation.json").read_text())
    assert values["std"] == pytest.approx(1, abs=1e-4)
    assert report_of(tmp_path / "artifact")["steps"] == 1


# --- the best is kept, whatever comes later


def recorded(accuracies: list[float], seen: list[dict[str, torch.Tensor]]) -> Hook:
    """Evaluations come to these accuracies, and the weights of each are noted."""

    def hook(stage: Any) -> None:
        keep = stage._keep_best

        def with_fake(algorithm: Any, *rest: Any) -> Any:
            rounds = iter(accuracies)

            def validate(size: int) -> dict[str, float]:
                seen.append({name: value.clone() for name, value in algorithm.plain.model.state_dict().items()})
                return {"eval/accuracy": next(rounds), "eval/loss": 1.0}

            algorithm.validate = validate
            return keep(algorithm, *rest)

        stage._keep_best = with_fake

    return hook


def test_the_weights_that_are_kept_are_the_earliest_of_the_best(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    make(tmp_path / "artifact", reward_model_run(), hook=recorded([0.5, 0.8, 0.7, 0.8, 0.6], seen))
    report = report_of(tmp_path / "artifact")
    assert (report["kept_step"], report["validation_accuracy"]) == (2 * -(-report["steps"] // 5), 0.8)
    model = LearnedReward(tmp_path / "artifact", CPU, 4).head.model
    assert all(model.state_dict()[name].equal(value) for name, value in seen[1].items())
    assert not model.score.weight.equal(seen[3]["score.weight"])


# --- going on


class Crash(Exception):
    pass


def crash_at(count: int) -> Hook:
    """The process dies in the middle of an evaluation."""

    def hook(stage: Any) -> None:
        keep = stage._keep_best

        def dying(*arguments: Any) -> Any:
            evaluate, calls = keep(*arguments), 0

            def then(step: int) -> dict[str, float]:
                nonlocal calls
                calls += 1
                values = evaluate(step)
                if calls == count:
                    raise Crash
                return values

            return then

        stage._keep_best = dying

    return hook


def same(first: Path, second: Path) -> bool:
    names = ("report.json", "normalisation.json", "scores.parquet", "model/model.safetensors")
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.parametrize("count", [1, 4])
def test_a_stage_goes_on_bit_for_bit(plain: Path, tmp_path: Path, count: int) -> None:
    folder, run = tmp_path / "artifact", reward_model_run(checkpoint_every=3)
    with pytest.raises(Crash):
        make(folder, run, hook=crash_at(count))
    before = checkpoint.load(folder)
    assert before is not None and before.step % 3 == 0
    assert not (folder / "model").exists()
    make(folder, run)
    assert same(folder, plain)
    steps = [row["step"] for row in read(folder / "metrics.jsonl")]
    assert steps == list(range(1, report_of(folder)["steps"] + 1))


def test_what_was_best_before_a_stop_is_still_best(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    folder, run = tmp_path / "artifact", reward_model_run(checkpoint_every=6)
    with pytest.raises(StopIteration):  # the third evaluation is not reached
        make(folder, run, hook=recorded([0.9, 0.5], seen))
    make(folder, run, hook=recorded([0.6, 0.7, 0.8], []))
    assert report_of(folder)["validation_accuracy"] == 0.9
    model = LearnedReward(folder, CPU, 4).head.model
    assert model.score.weight.equal(seen[0]["score.weight"])


def test_a_best_without_a_checkpoint_is_of_no_use_and_the_other_way_round(plain: Path, tmp_path: Path) -> None:
    for name, gone in (("a", "checkpoint"), ("b", "best")):
        folder, run = tmp_path / name, reward_model_run(checkpoint_every=6)
        with pytest.raises(StopIteration):
            make(folder, run, hook=recorded([2.0, 0.5], []))  # an accuracy that no evaluation reaches
        shutil.rmtree(folder / gone)
        make(folder, run)
        assert same(folder, plain)


def test_a_signal_stops_at_a_checkpoint(plain: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "artifact", reward_model_run()

    def hook(stage: Any) -> None:
        keep = stage._keep_best

        def signalled(*arguments: Any) -> Any:
            evaluate = keep(*arguments)

            def then(step: int) -> dict[str, float]:
                os.kill(os.getpid(), signal.SIGTERM)
                return evaluate(step)

            return then

        stage._keep_best = signalled

    with pytest.raises(Stopped):
        make(folder, run, hook=hook)
    make(folder, run)
    assert same(folder, plain)


# --- other settings


def test_one_choice_among_four_teaches_the_reward_too(tmp_path: Path) -> None:
    make(tmp_path / "artifact", reward_model_run(objective=Objective.best_of_k, batch_size=8, epochs=6.0))
    report = report_of(tmp_path / "artifact")
    assert report["objective"] == "best_of_k"
    assert report["pairs"] + report["validation_pairs"] == 60
    assert report["accuracy"] > 0.75 and report["pearson"] > 0.7


def test_a_bf16_run_is_accounted_for_in_float32(tmp_path: Path) -> None:
    make(tmp_path / "artifact", reward_model_run(precision=Precision.bf16, epochs=1.0))
    test = REFERENCE[REFERENCE["split"] == "test"]
    table = pd.read_parquet(tmp_path / "artifact" / "scores.parquet")
    np.testing.assert_allclose(table["score"], scores_of(tmp_path / "artifact", test), atol=1e-5)


def test_preferences_that_were_brought_are_not_what_scores_are_normalised_on(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    source = tmp_path / "artifact-groups"
    source.mkdir()
    rows = np.array([[4 * p + a, 4 * p + b] for p in range(60) for a, b in combinations(range(4), 2)])
    np.savez(source / "pairs.npz", rows=rows, prompts=rows[:, 0] // 4)
    (source / "report.json").write_text('{"dropped": {}}')
    make(folder, reward_model_run(preferences="mine.parquet", epochs=0.2))
    scores = scores_of(folder, REFERENCE[REFERENCE["split"] == "validation"])
    assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(1, abs=1e-5)


# --- nothing to learn


def test_equal_rewards_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="^reward_model: no preference pair is left .*another reward$"):
        make(tmp_path / "artifact", reward_model_run(), GROUPS.assign(reward_logit=1.0))


def test_scores_that_do_not_vary_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "imdb_rlhf.algos.reward_model.score_rows", lambda head, prompts, *rest: np.full(len(prompts), 0.1)
    )
    with pytest.raises(RunError, match="^reward_model: its scores have standard deviation 0"):
        make(tmp_path / "artifact", reward_model_run())
