"""Any Hugging Face two-label sequence classifier as a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.reward import ClassifierReward as ClassifierConfig
from imdb_rlhf.config.reward import Ranking
from imdb_rlhf.data import hub
from imdb_rlhf.data.prompts import beginning
from imdb_rlhf.errors import RunError, first_line
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.tokens import check_vocabulary, encoder, template
from imdb_rlhf.rewards import Reward, RewardKind, Scores, sigmoid


def positive_index(id2label: dict[int, str], wanted: str | None, key: str) -> int:
    """Which of two labels is the positive one.

    Args:
        id2label: the model's label names.
        wanted: the name, or None to find the one that contains "pos".
        key: config key that messages name.

    Raises:
        RunError: not two labels, or none or both of them fit.
    """
    names = {int(index): str(name) for index, name in id2label.items()}
    if len(names) != 2:
        raise RunError(f"{key} has {len(names)} labels ({', '.join(names.values())}); give a two-label classifier")
    if wanted is not None:
        matches = [index for index, name in names.items() if name == wanted]
    else:
        matches = [index for index, name in names.items() if "pos" in name.lower()]
    if len(matches) != 1:
        raise RunError(
            f"{key}: which of {', '.join(names.values())} is positive? set reward.positive_label to its name"
        )
    return matches[0]


class ClassifierReward:
    """p(positive) and the log-odds logit(positive) - logit(other) of whole texts, in float32.

    With `ranking=positive_logit` the ranking scale is the positive logit alone.
    """

    def __init__(
        self,
        folder: Path,
        positive_label: str | None,
        batch_size: int,
        device: torch.device,
        key: str = "reward.path",
        ranking: Ranking = Ranking.log_odds,
        bos: Bos = Bos.auto,
    ) -> None:
        """Load the classifier of a folder.

        Args:
            folder: written by `save_pretrained`, tokenizer included.
            positive_label: the name of the positive label, or None to find it.
            batch_size: texts scored at once.
            device: where the model goes.
            key: config key that messages name.
            ranking: which logits rank texts.
            bos: what a text stands behind; auto is in the tokenizer's own template of special tokens.

        Raises:
            RunError: it cannot be loaded, or model and tokenizer cannot be used together.
        """
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:
            reason = first_line(error)
            raise RunError(f"{key}={folder} cannot be loaded as a sequence classifier: {reason}") from error
        if loaded["missing_keys"]:  # transformers would draw them at random
            raise RunError(
                f"{key}={folder} has no weights for {', '.join(sorted(loaded['missing_keys'])[:3])}; "
                "give a model that was trained as a sequence classifier"
            )
        policies.check_finite(self.model, folder, key)
        check_vocabulary(self.model.get_input_embeddings().num_embeddings, self.tokenizer, folder, key, spare=True)
        try:
            self.before, self.after = template(self.tokenizer)
        except ValueError as error:
            raise RunError(f"{key}={folder}: {error}; give a model with another tokenizer") from error
        if bos != Bos.auto:
            self.before, self.after = beginning(self.tokenizer.bos_token_id if bos == Bos.always else None), []
        self.encode = encoder(self.tokenizer)
        self.ranking = ranking
        self.positive = positive_index(self.model.config.id2label, positive_label, key)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # heads that read the last token locate it by this id; the configuration's own may differ from the tokenizer's
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()
        self.batch_size = batch_size
        config = self.model.config
        limit = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 512
        if int(limit) <= 0:
            raise RunError(
                f"{key}={folder} is a {config.model_type} classifier, whose configuration states no largest length; "
                "give another model"
            )
        self.limit = min(
            int(limit) - (2 if "roberta" in str(config.model_type) else 0), self.tokenizer.model_max_length
        )

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Scores:
        """Score texts, sorted by length and batched so that little is padded."""
        longest = self.limit - len(self.before) - len(self.after)
        cut = slice(-longest, None) if self.tokenizer.truncation_side == "left" else slice(longest)
        rows = [[*self.before, *row[cut], *self.after] for row in self.encode(list(texts))]
        # an empty text has no token that a head could read
        rows = [row or [self.tokenizer.pad_token_id] for row in rows]
        logits = np.zeros((len(rows), 2), dtype=np.float64)  # of the positive label, of the other
        order = np.argsort([len(row) for row in rows], kind="stable")
        for at in range(0, len(order), self.batch_size):
            part = order[at : at + self.batch_size]
            logits[part] = self._logits([rows[index] for index in part])
        log_odds = logits[:, 0] - logits[:, 1]
        return Scores(sigmoid(log_odds), log_odds if self.ranking == Ranking.log_odds else logits[:, 0])

    def _logits(self, rows: list[list[int]]) -> np.ndarray:
        device = self.model.device
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), int(self.tokenizer.pad_token_id))
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.autocast(device.type, enabled=False):
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        return logits[:, [self.positive, 1 - self.positive]].double().cpu().numpy()


class Kind(RewardKind[ClassifierConfig]):
    """p(positive) of a classifier from a folder or the Hub."""

    def check(self) -> None:
        """Refuse a local folder that holds no model."""
        config = self.config
        if hub.is_folder(config.path):
            policies.check_folder(hub.fetch(config.path, config.revision, "reward.path"), "reward.path")

    def identity(self, key: str | None) -> Any:
        """The model's content or commit, how its logits are read, and the batch size, on which rounding depends."""
        config = self.config
        return {
            "classifier": hub.identity(config.path, config.revision, "reward.path"),
            "positive": config.positive_label,
            "ranking": config.ranking,
            "batch": config.batch_size,
        }

    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Load the classifier, downloaded if need be."""
        config = self.config
        folder = hub.fetch(config.path, config.revision, "reward.path")
        return ClassifierReward(folder, config.positive_label, config.batch_size, device, ranking=config.ranking)
