"""The two-label reward: a classifier that stage `two_label` trains on labelled reviews."""

import json
from pathlib import Path
from typing import Any

import torch

from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.reward import TwoLabelReward
from imdb_rlhf.rewards import Reward, RewardKind
from imdb_rlhf.rewards.classifier import ClassifierReward


class Kind(RewardKind[TwoLabelReward]):
    """p(positive) of the classifier that this project trains."""

    trained = True

    @property
    def held_out(self) -> int:
        """As configured."""
        return self.config.held_out

    def identity(self, key: str | None) -> Any:
        """The trained artifact, and the batch size, on which padding and so rounding depend."""
        return {"two_label": key, "batch": self.config.score_batch_size}

    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Load the trained classifier."""
        assert artifact is not None  # a trained reward has one
        # texts are read as they were in training
        bos = Bos(json.loads((artifact / "report.json").read_text()).get("bos", Bos.never))
        return ClassifierReward(artifact / "model", None, self.config.score_batch_size, device, "two_label", bos=bos)
