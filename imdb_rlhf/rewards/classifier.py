"""Any Hugging Face two-label sequence classifier as a reward."""

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
from imdb_rlhf.rewards.labels import positive_index

# No token's id.
NO_TOKEN = -1
# What a classifier reads at most where neither it nor its tokenizer states it.
UNLIMITED = 1 << 20


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
        self.model.eval()
        self.batch_size, self.where = batch_size, f"{key}={folder}"
        self._set_up(f"{key}={folder}")  # on the CPU, where a position too far is an error like others
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
            logits[part] = self._read([rows[index] for index in part], self.side or "right")
        log_odds = logits[:, 0] - logits[:, 1] if self.exclusive else logits[:, 0]
        return Scores(sigmoid(log_odds), log_odds if self.ranking == Ranking.log_odds else logits[:, 0])

    def _batches(self, lengths: list[int]) -> list[np.ndarray]:
        """Indices of texts that are scored together: of like length, or of the same where padding changes scores."""
        if self.side is None:
            return batches_by_length(lengths, self.batch_size)
        order = np.argsort(lengths, kind="stable")
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def _read(self, rows: list[list[int]], side: str) -> np.ndarray:
        """The same as `_logits`; a forward that fails is told in one line."""
        try:
            return self._logits(rows, side)
        except Exception as error:
            raise RunError(
                f"{self.where} ({type(self.model).__name__}) cannot read rows of {min(map(len, rows))} to "
                f"{max(map(len, rows))} tokens: {first_line(error)}; give another classifier, or a smaller batch size"
            ) from error

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

    @torch.no_grad()
    def _set_up(self, where: str) -> None:
        """Find the longest row, and how rows are padded so that each scores as the model scores it alone.

        Raises:
            RunError: the model cannot read a row.
        """
        stored = self.model.config.pad_token_id
        pads = self._find_padding(stored)
        room = self._try_a_row(where)
        self.limit = self._longest(where)
        meant = stored is None or stored in control_ids(self.tokenizer)  # else it is a word, of which texts end
        alone = self._alone(room) if meant else None
        # heads that read the last token locate it by this id; the configuration's own may differ from the tokenizer's
        self.model.config.pad_token_id = self.tokenizer.pad_token_id if pads else NO_TOKEN
        alone = self._alone(room) if alone is None else alone
        self.side = self._padding_side(alone, room) if pads else None
        if self.side is None and not _equal(self._alone(room), alone):
            self.model.config.pad_token_id, self.batch_size = stored, 1

    def _find_padding(self, stored: int | None) -> bool:
        """Give the tokenizer a padding token that no row can hold; whether there is one.

        Where a row may hold it, a head takes an earlier token for the last one. A model whose own padding, `stored`, is
        a part of every row was trained like that.
        """
        held, rows = {*self.before, *self.after}, _entries(self.model) or 0
        never = {number for number in control_ids(self.tokenizer) - held if number < rows}
        own = self.tokenizer.pad_token_id
        if stored in held:
            never = {stored}
        if own not in never:
            number = min(never, default=own if own is not None else self.tokenizer.unk_token_id or 0)
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(number)
        return bool(never)

    def _some_ids(self) -> list[int]:
        """Ids that texts have, at least one."""
        never = control_ids(self.tokenizer) | {self.tokenizer.pad_token_id}
        return sorted(set(self.tokenizer.get_vocab().values()) - never) or [0]

    def _row(self, length: int) -> list[int]:
        """A row of some words, with what the tokenizer puts around them."""
        words = self._some_ids()
        return [*self.before, *(words[(7 * at + 3) % len(words)] for at in range(length)), *self.after]

    def _try_a_row(self, where: str) -> int:
        """Read a row of a few words; return how many.

        Raises:
            RunError: the model cannot.
        """
        stated = min(_stated_length(self.model.config), self.tokenizer.model_max_length)
        room = int(max(1, min(9, stated - 4 - len(self.before) - len(self.after))))
        try:
            self._logits([self._row(room)], "right")
        except Exception as error:
            raise RunError(
                f"{where} ({type(self.model).__name__}) cannot read a row of {room} words: {first_line(error)}; give "
                "another classifier"
            ) from error
        return room

    def _longest(self, where: str) -> int:
        """The longest row that the model reads: as stated, or some tokens less where positions begin after 0."""
        stated = int(min(_stated_length(self.model.config), self.tokenizer.model_max_length))
        if stated >= UNLIMITED:
            return stated
        around = len(self.before) + len(self.after)
        problem: Exception | None = None
        for spare in range(min(5, stated - around)):
            try:
                self._logits([self._row(stated - spare - around)], "right")
                return stated - spare
            except Exception as error:
                problem = problem or error
        reason = "it is too short" if problem is None else first_line(problem)
        raise RunError(
            f"{where} cannot read a row of {stated} tokens, which it states ({reason}); mend its config.json"
        )

    def _token_types(self) -> tuple[list[int], int, list[int]] | None:
        """The segments that the tokenizer gives to what is before a text, to a text's tokens, and to what is after."""
        types = self.tokenizer("x").get("token_type_ids")
        if types is None or "token_type_ids" not in self.tokenizer.model_input_names:
            return None
        first, last = len(self.before), len(types) - len(self.after)
        return types[:first], types[first], types[last:]

    def _trial(self, room: int) -> list[list[int]]:
        """Rows of different lengths, at most `room` words each."""
        return [self._row(length) for length in (room, room // 2, 1) if length]

    @torch.no_grad()
    def _alone(self, room: int) -> np.ndarray:
        """(rows, 2) logits of trial rows, one at a time."""
        return np.concatenate([self._read([row], str(self.tokenizer.padding_side)) for row in self._trial(room)])

    @torch.no_grad()
    def _padding_side(self, alone: np.ndarray, room: int) -> str | None:
        """The side that can be padded without a change of scores, the tokenizer's own first; None if neither can."""
        own = str(self.tokenizer.padding_side)
        for side in (own, "left" if own == "right" else "right"):
            with suppress(IndexError, RuntimeError, ValueError):  # some cannot pad at all
                if _equal(self._logits(self._trial(room), side), alone):
                    return side
        return None


def _equal(logits: np.ndarray, others: np.ndarray) -> bool:
    return bool(np.allclose(logits, others, rtol=1e-3, atol=1e-4))


def _entries(model: Any) -> int | None:
    """The rows of a model's embedding of tokens; None where it has none, as Canine, which hashes characters."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):
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
    entries = _entries(model)
    if entries is None:
        raise RunError(f"{key}={folder} ({type(model).__name__}) has no embedding of tokens; give another classifier")
    check_vocabulary(entries, tokenizer, folder, key, spare=True)
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
