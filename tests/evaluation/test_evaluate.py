"""Evaluation: reward and KL of one policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from imdb_rlhf.config.machine import TrainerConfig
from imdb_rlhf.config.model import Attention, ScratchModel
from imdb_rlhf.config.stages import EvaluationConfig, GenerationConfig
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation.__main__ import overrides
from imdb_rlhf.evaluation.evaluate import COLUMNS, completion_text, evaluate, metrics
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards import Scores
from imdb_rlhf.runs import points
from imdb_rlhf.training.runtime import Runtime

TEXTS = ["the film is good. the film is bad. a good cast in a bad film."] * 20
EVALUATION = EvaluationConfig(seed=1, samples=3, every=1, batch_size=7, bootstrap=200, confidence=0.95)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return policies.train_tokenizer(TEXTS, 280, 280)


def tiny(tokenizer: object, seed: int) -> Policy:
    config = ScratchModel("t", Attention.eager, 1, 16, 2, 32, 280, 280, seed)
    return policies.scratch(config, tokenizer)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    from imdb_rlhf.config.machine import Device, Precision

    return Runtime(TrainerConfig(Device.cpu, Precision.float32, 1, 1, None, 0, 1))


class Length:
    """A reward that can be worked out by hand: the number of characters."""

    def score(self, texts: Sequence[str]) -> Scores:
        values = np.array([float(len(text)) for text in texts])
        return Scores(values, values)


PROMPTS = {"validation": [[40, 41]], "test": [[40, 41, 42], [50, 51], [60, 61, 62, 63]]}


def run(policy: Policy, reference: Policy, runtime: Runtime, **changes: object) -> pd.DataFrame:
    generation = GenerationConfig(max_new_tokens=6, shortest_limit=None, temperature=1.0)
    reward = changes.pop("reward", Length())
    return evaluate(policy, reference.lm, reward, PROMPTS, EVALUATION, generation, runtime, 5)  # type: ignore[arg-type]


def test_a_policy_is_at_no_distance_from_itself(tokenizer: object, runtime: Runtime) -> None:
    policy = tiny(tokenizer, 0)
    frame = run(policy, policy, runtime)
    assert list(frame.columns[: len(COLUMNS)]) == COLUMNS
    assert len(frame) == 4 * 3 and set(frame["step"]) == {5}
    assert frame["kl"].abs().max() == 0 and frame["kl_k1"].abs().max() == 0


def test_samples_do_not_depend_on_the_batch_size(tokenizer: object, runtime: Runtime) -> None:
    policy, reference = tiny(tokenizer, 0), tiny(tokenizer, 1)
    first = run(policy, reference, runtime)
    EVALUATION.batch_size, kept = 2, EVALUATION.batch_size
    second = run(policy, reference, runtime)
    EVALUATION.batch_size = kept
    assert first["completion"].tolist() == second["completion"].tolist()
    np.testing.assert_allclose(first["kl"], second["kl"], atol=1e-5)


def test_texts_and_rewards_belong_together(tokenizer: object, runtime: Runtime) -> None:
    frame = run(tiny(tokenizer, 0), tiny(tokenizer, 1), runtime)
    assert [len(p + c) for p, c in zip(frame["prompt"], frame["completion"], strict=True)] == frame["reward"].tolist()


def test_exact_kl_and_k1_estimate_the_same_number(tokenizer: object, runtime: Runtime) -> None:
    policy, reference = tiny(tokenizer, 0), tiny(tokenizer, 1)
    with torch.no_grad():
        for weight in policy.lm.parameters():
            weight.mul_(3)
    EVALUATION.samples, kept = 400, EVALUATION.samples
    frame = run(policy, reference, runtime)
    EVALUATION.samples = kept
    gap = frame["kl"] - frame["kl_k1"]
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert frame["kl"].std() < frame["kl_k1"].std()


def test_a_reward_that_is_not_finite_stops_it(tokenizer: object, runtime: Runtime) -> None:
    class Broken(Length):
        def score(self, texts: Sequence[str]) -> Scores:
            values = np.full(len(texts), np.nan)
            return Scores(values, values)

    policy = tiny(tokenizer, 0)
    with pytest.raises(RunError, match="reward is nan"):
        run(policy, policy, runtime, reward=Broken())


def test_metrics_by_hand() -> None:
    rows = [
        # split, prompt, reward, kl, length
        ("test", 0, 1.0, 2.0, 4),
        ("test", 0, 0.0, 4.0, 6),
        ("test", 1, 1.0, 1.0, 10),
        ("validation", 0, 0.25, 9.0, 3),
    ]
    frame = pd.DataFrame(rows, columns=["split", "prompt_id", "reward", "kl", "length"])
    frame = frame.assign(reward_logit=0.0, kl_k1=frame["kl"], finished=True, completion="a b a b")
    found = metrics(frame)
    assert found["eval/reward"] == 0.75  # the mean of 0.5 and 1, not of three samples
    assert found["eval/kl"] == 2.0
    assert found["eval/kl_per_token"] == pytest.approx(7 / 20)
    assert found["eval/validation_reward"] == 0.25
    assert found["eval/distinct_2"] == pytest.approx(2 / 9)


def test_completion_text_where_a_character_is_split() -> None:
    assert completion_text("The", "The film") == " film"
    assert completion_text("caf\ufffd", "café au lait") == "é au lait"


def test_the_best_step_is_chosen_on_validation_prompts() -> None:
    def point(validation: float, test: float) -> pd.DataFrame:
        rows = [("validation", validation), ("test", test)]
        frame = pd.DataFrame(rows, columns=["split", "reward"])
        return frame.assign(prompt_id=0, reward_logit=0.0, kl=0.0, kl_k1=0.0, length=1, finished=True, completion="a b")

    assert points.best_step({10: point(0.5, 0.9), 20: point(0.7, 0.1), 30: point(0.7, 0.2)}) == 20


@pytest.mark.parametrize(
    "path",
    [
        "outputs/runs/a/model",
        "owner/name",
        "it's",
        "a b, c",
        "[x]{y}",
        "k=v/model",
        "null",
        "1",
        r"a\b",
        "a\\",
        r"a\'b",
    ],
)
def test_any_path_is_one_value_for_hydra(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "=" in path:
        Path(path).mkdir(parents=True)
    algo, model, *others = overrides([path, "seed=1", "plan=true"])
    parsed = OverridesParser.create().parse_override(model)
    assert (algo, parsed.key_or_group, parsed.value()) == ("algo=own_model", "own_model.path", path)
    assert others == ["seed=1", "plan=true"]


@pytest.mark.parametrize("arguments", [[], [""], ["-m"], ["seed=1"], ["a", "b"], ["a", "--multirun"]])
def test_arguments_that_name_no_model_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="python -m imdb_rlhf.evaluation MODEL_DIR"):
        overrides(arguments)
