"""Any Hugging Face two-label sequence classifier as a reward."""

import re
from collections.abc import Sequence
from contextlib import suppress
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
from imdb_rlhf.models.contract import check_finite, check_weights
from imdb_rlhf.models.sampling import batches_by_length
from imdb_rlhf.models.tokens import check_vocabulary, control_ids, encoder, template, try_out
from imdb_rlhf.rewards import Reward, RewardKind, Scores, sigmoid

# A label that is the word itself, in any case, beside a number or LABEL_: "POSITIVE", "pos", "LABEL_1: positive",
# "1 (positive)". Any other with such a word in it may mean something else: "barely positive", "pos_tag".
POSITIVE = re.compile(r"(label[ _-]?)?([0-9]+)?[ :=_-]*\(?(positive|pos)\)?")
# No token's id.
NO_TOKEN = -1
# What a classifier reads at most where neither it nor its tokenizer states it.
UNLIMITED = 1 << 20


def positive_index(id2label: dict[int, str], wanted: str | None, key: str) -> int:
    """Which of two labels is the positive one.

    Args:
        id2label: the model's label names.
        wanted: the name, or None to find the one that is the word "positive" or "pos" (`POSITIVE`), which the other
            must not hold.
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
        matches = [index for index, name in names.items() if POSITIVE.fullmatch(name.strip().lower())]
        others = [set(re.findall("[a-z]+", name.lower())) for index, name in names.items() if index not in matches]
        matches = [] if any(words & {"positive", "pos"} for words in others) else matches
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
        self.tokenizer, self.model = _load(folder, key)
        try:
            self.before, self.after = template(self.tokenizer)
        except ValueError as error:
            raise RunError(f"{key}={folder}: {error}; give a model with another tokenizer") from error
        self.types = self._token_types()
        if bos != Bos.auto:
            self.before, self.after = beginning(self.tokenizer.bos_token_id if bos == Bos.always else None), []
            self.types = None
        self.encode = encoder(self.tokenizer)
        self.ranking = ranking
        self.positive = positive_index(self.model.config.id2label, positive_label, key)
        problem = self.model.config.problem_type
        if problem == "regression":
            raise RunError(f"{key}={folder} gives two numbers that are no labels' (regression); give a classifier")
        self.exclusive = problem != "multi_label_classification"
        pads = self._find_padding()
        # heads that read the last token locate it by this id; the configuration's own may differ from the tokenizer's
        self.model.config.pad_token_id = self.tokenizer.pad_token_id if pads else NO_TOKEN
        self.model.eval()
        self.batch_size = batch_size
        self.limit = self._longest(f"{key}={folder}")  # on the CPU, where a position too far is an error like others
        self.side = self._padding_side() if pads else None
        self.model.to(device)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Scores:
        """Score texts, sorted by length and batched so that little is padded."""
        longest = self.limit - len(self.before) - len(self.after)
        cut = slice(-longest, None) if self.tokenizer.truncation_side == "left" else slice(longest)
        rows = [[*self.before, *row[cut], *self.after] for row in self.encode(list(texts))]
        # an empty text has no token that a head could read
        rows = [row or [self.tokenizer.pad_token_id] for row in rows]
        logits = np.zeros((len(rows), 2), dtype=np.float64)  # of the positive label, of the other
        for part in self._batches([len(row) for row in rows]):
            logits[part] = self._logits([rows[index] for index in part], self.side or "right")
        log_odds = logits[:, 0] - logits[:, 1] if self.exclusive else logits[:, 0]
        return Scores(sigmoid(log_odds), log_odds if self.ranking == Ranking.log_odds else logits[:, 0])

    def _batches(self, lengths: list[int]) -> list[np.ndarray]:
        """Indices of texts that are scored together: of like length, or of the same where padding changes scores."""
        if self.side is None:
            return batches_by_length(lengths, self.batch_size)
        order = np.argsort(lengths, kind="stable")
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def _logits(self, rows: list[list[int]], side: str) -> np.ndarray:
        """(rows, 2) float64 logits of the positive label and the other; shorter rows are padded on a side."""
        device, inputs = self.model.device, {"input_ids": rows}
        if self.types is not None:
            before, own, after = self.types
            inputs["token_type_ids"] = [
                [*before, *[own] * (len(row) - len(before) - len(after)), *after] for row in rows
            ]
        padded = self.tokenizer.pad(
            inputs, padding_side=side, return_attention_mask=True, return_tensors="pt", verbose=False
        )
        with torch.autocast(device.type, enabled=False):
            logits = self.model(**padded.to(device)).logits.float()
        return logits[:, [self.positive, 1 - self.positive]].double().cpu().numpy()

    def _find_padding(self) -> bool:
        """Give the tokenizer a padding token if it has none; whether rows can be padded with it.

        They cannot where a row may hold it: a head would take an earlier token for the last one.
        """
        if self.tokenizer.pad_token_id is not None:
            return True
        never = {self.tokenizer.eos_token_id, *control_ids(self.tokenizer)} - {None, *self.before, *self.after}
        number = min(never, default=self.tokenizer.unk_token_id or 0)
        self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(number)
        return bool(never)

    def _some_ids(self) -> list[int]:
        """Ids that texts have, at least one."""
        never = control_ids(self.tokenizer) | {self.tokenizer.pad_token_id}
        return sorted(set(self.tokenizer.get_vocab().values()) - never) or [0]

    @torch.no_grad()
    def _longest(self, where: str) -> int:
        """The longest row that the model reads: as stated, or some tokens less where positions begin after 0."""
        stated = min(_stated_length(self.model.config), self.tokenizer.model_max_length)
        if stated >= UNLIMITED:
            return stated
        for spare in range(5):
            with suppress(IndexError, RuntimeError):
                self._logits([self._some_ids()[:1] * (stated - spare)], "right")
                return stated - spare
        raise RunError(f"{where} cannot read a row of {stated} tokens, which it states; mend its config.json")

    def _token_types(self) -> tuple[list[int], int, list[int]] | None:
        """The segments that the tokenizer gives to what is before a text, to a text's tokens, and to what is after."""
        types = self.tokenizer("x").get("token_type_ids")
        if types is None or "token_type_ids" not in self.tokenizer.model_input_names:
            return None
        first, last = len(self.before), len(types) - len(self.after)
        return types[:first], types[first], types[last:]

    @torch.no_grad()
    def _padding_side(self) -> str | None:
        """The side that can be padded without a change of scores, the tokenizer's own first; None if neither can."""
        room = int(min(9, self.limit - len(self.before) - len(self.after)))
        words = self._some_ids()
        bodies = [[words[(7 * at + 3) % len(words)] for at in range(length)] for length in (room, room // 2, 1)]
        rows = [[*self.before, *body, *self.after] for body in bodies if body]
        own = str(self.tokenizer.padding_side)
        alone = np.concatenate([np.zeros((0, 2)), *(self._logits([row], own) for row in rows)])
        for side in (own, "left" if own == "right" else "right"):
            if not rows or np.allclose(self._logits(rows, side), alone, rtol=1e-3, atol=1e-4):
                return side
        return None


def _load(folder: Path, key: str) -> tuple[Any, Any]:
    """The tokenizer and the float32 model of a folder, checked; messages name `key`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        try_out(tokenizer)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        reason = first_line(error)
        raise RunError(f"{key}={folder} cannot be loaded as a sequence classifier: {reason}") from error
    check_weights(model, loaded, folder, key, "sequence classifier")
    check_finite(model, folder, key)
    check_vocabulary(len(model.get_input_embeddings().weight), tokenizer, folder, key, spare=True)
    return tokenizer, model


def _stated_length(config: Any) -> int:
    """The longest row that a classifier's configuration allows, in tokens."""
    limit = int(getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 512)
    if limit <= 0:  # XLNet's says -1
        return UNLIMITED
    return limit - (2 if "roberta" in str(config.model_type) else 0)


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
