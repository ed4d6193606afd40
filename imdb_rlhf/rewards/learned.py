"""A trained reward model as a reward: normalised scores of token rows."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from imdb_rlhf.errors import RunError, first_line
from imdb_rlhf.models.heads import RewardHead, score_rows


class LearnedReward:
    """Scores with mean 0 and standard deviation 1 on samples of the reference policy (arXiv 1909.08593, section 2.1).

    Attributes:
        head: the network, frozen.
        mean: mean of the network's own scores on those samples.
        std: their standard deviation; the difference of two scores times `std` is on the Bradley-Terry scale.
    """

    def __init__(self, folder: Path, device: torch.device, batch_size: int) -> None:
        """Load `folder/model` and `folder/normalisation.json`.

        Raises:
            RunError: a file is missing or damaged, or the model is not a trained scalar head.
        """
        self.mean, self.std = _normalisation(folder / "normalisation.json")
        model = _classifier(folder / "model")
        self.head = RewardHead(model).to(device).requires_grad_(False).eval()
        self.batch_size = batch_size

    def score_ids(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """(n,) float64 normalised scores of n prompts with their completions, in the caller's autocast precision."""
        return (score_rows(self.head, prompt_ids, completion_ids, self.batch_size) - self.mean) / self.std


def _normalisation(path: Path) -> tuple[float, float]:
    """Mean and standard deviation, from `normalisation.json`."""
    try:
        values = json.loads(path.read_text())
        mean, std = float(values["mean"]), float(values["std"])
    except OSError as error:
        raise RunError(
            f"reward_model: {path} cannot be read ({error.strerror}); make the reward model again"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"reward_model: {path} holds no mean and std; make the reward model again") from error
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise RunError(f"reward_model: {path} holds mean {mean} and std {std}; make the reward model again")
    return mean, std


def _classifier(folder: Path) -> PreTrainedModel:
    """The sequence classifier of a folder, in float32."""
    if not (folder / "config.json").is_file():
        raise RunError(f"reward_model: {folder} holds no config.json; make the reward model again")
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        message = f"reward_model: {folder} cannot be loaded as a sequence classifier: {first_line(error)}"
        raise RunError(message) from error
    if loaded["missing_keys"]:  # transformers draws these at random instead of refusing
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise RunError(f"reward_model: {folder} has no weights for {missing}; make the reward model again")
    if model.config.num_labels != 1:
        raise RunError(f"reward_model: {folder} has {model.config.num_labels} labels; a reward model has one")
    return model
