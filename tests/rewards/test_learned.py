"""A trained reward model as a reward: normalised scores by hand, and unusable folders, refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2ForSequenceClassification

from imdb_rlhf.errors import RunError
from imdb_rlhf.rewards.learned import LearnedReward
from tests import tiny

CPU = torch.device("cpu")
PROMPTS = [[1, 2], [3], [4, 5, 6], [3]]
COMPLETIONS = [[7, 8, 0], [9], [10, 0], [0, 0]]  # 0 is EOS and padding


def make(place: Path, labels: int = 1, **normalisation: Any) -> Path:
    model = tiny.gpt2_scorer(0, labels=labels, layers=1, spread=0.3, pad_token_id=0)
    model.save_pretrained(place / "model")
    (place / "normalisation.json").write_text(json.dumps({"mean": 0.5, "std": 2.0} | normalisation))
    return place


def by_hand(folder: Path) -> list[float]:
    """(score - 0.5) / 2, the score from the last state of each row alone."""
    model = GPT2ForSequenceClassification.from_pretrained(folder / "model").eval()
    scores = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        with torch.no_grad():
            state = model.transformer(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0, -1]
            scores.append((float(model.score(state)) - 0.5) / 2)
    return scores


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_are_normalised_scores_of_token_rows(tmp_path: Path, batch_size: int) -> None:
    folder = make(tmp_path)
    reward = LearnedReward(folder, CPU, batch_size)
    assert (reward.mean, reward.std) == (0.5, 2.0)
    scores = reward.score_ids(PROMPTS, COMPLETIONS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, by_hand(folder), atol=1e-5)
    assert len(set(np.round(scores, 3))) == 4
    assert reward.score_ids([], []).shape == (0,)


def test_it_is_frozen(tmp_path: Path) -> None:
    reward = LearnedReward(make(tmp_path), CPU, 4)
    assert not any(p.requires_grad for p in reward.head.parameters())
    assert not any(module.training for module in reward.head.modules())


def test_the_callers_precision_is_used(tmp_path: Path) -> None:
    reward = LearnedReward(make(tmp_path), CPU, 4)
    exact = reward.score_ids(PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = reward.score_ids(PROMPTS, COMPLETIONS)
    assert (exact != rounded).any()
    np.testing.assert_allclose(exact, rounded, atol=0.1)


def refused(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        LearnedReward(folder, CPU, 4)
    message = str(caught.value)
    assert message.startswith("reward_model: ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["normalisation.json", "model/config.json", "model/model.safetensors"])
def test_a_file_is_missing(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    (folder / name).unlink()
    refused(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"mean": 0.0}', '{"mean": "a", "std": 1.0}'])
def test_a_file_that_holds_no_normalisation(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path)
    (folder / "normalisation.json").write_text(text)
    assert "holds no mean and std" in refused(folder)


@pytest.mark.parametrize("values", [{"std": 0.0}, {"std": -1.0}, {"std": float("nan")}, {"mean": float("inf")}])
def test_a_normalisation_that_cannot_be_used(tmp_path: Path, values: dict[str, Any]) -> None:
    assert "make the reward model again" in refused(make(tmp_path, **values))


def test_damaged_weights(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "model" / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded as a sequence classifier" in refused(folder)


def test_missing_weights(tmp_path: Path) -> None:
    folder = make(tmp_path)
    GPT2ForSequenceClassification.from_pretrained(folder / "model").transformer.save_pretrained(tmp_path / "body")
    (tmp_path / "body" / "model.safetensors").replace(folder / "model" / "model.safetensors")
    assert "has no weights for score.weight" in refused(folder)


def test_a_model_with_two_labels(tmp_path: Path) -> None:
    assert "has 2 labels" in refused(make(tmp_path, labels=2))
