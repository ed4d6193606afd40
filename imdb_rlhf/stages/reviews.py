"""Stages `data` and `labelled`: which review serves what, the tokenizer, SFT rows and prompts."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.places import hashed
from imdb_rlhf.data import prompts
from imdb_rlhf.data.reviews import PROMPT_ROLES, content_of, dataset_of, divide_reviews
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.tokens import encoder, load_tokenizer
from imdb_rlhf.rewards import kind_of
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging

EVALUATED_SPLITS = ("validation", "test")
# The text that a tokenizer is trained on: characters per review, and reviews.
TOKENIZER_CHARACTERS, TOKENIZER_REVIEWS = 1000, 20_000


class Dataset:
    """The dataset of a flow: one object, so that what is hashed is what is used."""

    def __init__(self, flow: Flow) -> None:
        self.kind = dataset_of(flow.run.data)


def data_config(flow: Flow) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of `data` that every stage depends on, and those that only labels depend on.

    Where the reviews are stored is in neither: their content is hashed instead.

    Raises:
        RunError: the dataset's `label_keys` names a key that it does not have.
    """
    data, dataset = hashed(flow.run.data), flow.get(Dataset).kind
    for key in dataset.label_keys:
        if not hasattr(flow.run.data, key):
            raise RunError(f"{type(dataset).__module__}.Kind has {key} among its label_keys, and data.{key} is no key")
    labels = {key: data.pop(key) for key in dataset.label_keys if key in data}
    for key in ("preferences_eos", "bos"):  # no review depends on a preference file, or on the tokens before it
        data.pop(key)
    return data, labels


class Reviews(Stage):
    """Disjoint reviews, the tokenizer, SFT rows and prompts."""

    name = "data"

    def inputs(self) -> dict[str, Any]:
        """The dataset's content and division, the tokenizer, and what rows begin with."""
        run, base = self.flow.run, self.flow.get(Base)
        model = base.scratch
        return {
            "config": data_config(self.flow)[0],
            "content": content_of(self.flow.get(Dataset).kind),
            "tokenizer": base.identity
            if model is None
            else {"size": model.tokenizer_size, "vocabulary": model.vocabulary},
            "sft_tokens": None if run.sft.path else run.sft.max_tokens,
        } | base.bos_identity

    def check(self) -> None:
        """Refuse a dataset or a model folder that cannot be used."""
        self.flow.get(Base).check()
        self.flow.get(Dataset).kind.check()

    def fetch(self) -> None:
        """Download the model that SFT starts from, and the reviews."""
        self.flow.get(Base).fetch()
        self.flow.get(Dataset).kind.fetch()

    def make(self, folder: Path) -> None:
        """Divide the reviews and encode them."""
        run, base = self.flow.run, self.flow.get(Base)
        if self.runtime.rank:
            return
        reviews = divide_reviews(self.flow.get(Dataset).kind, 0)
        if base.scratch is None:
            tokenizer: Any = self.tokenizer()
        else:
            texts = [text[:TOKENIZER_CHARACTERS] for text in reviews.texts["sft"][:TOKENIZER_REVIEWS]]
            tokenizer = policies.train_tokenizer(texts, base.scratch.tokenizer_size, base.scratch.vocabulary)
            tokenizer.save_pretrained(folder / "tokenizer")
        encode, bos_id = encoder(tokenizer), base.bos_id
        prompt_ids = {
            role: prompts.encode_prompts(reviews.texts[role], role, run.data.prompts, run.data.seed, encode, bos_id)
            for role in PROMPT_ROLES
        }
        eos_id = int(tokenizer.eos_token_id)
        rows = prompts.encode_reviews(reviews.texts["sft"], run.sft.max_tokens, eos_id, encode, bos_id)
        prompts.write(folder, reviews, prompt_ids, rows, None if bos_id is None else str(tokenizer.bos_token))

    def check_after(self, built: Stage) -> None:
        """Refuse rows that an earlier version made for a Hub's model: their key does not hold what they begin with."""
        base = self.flow.get(Base)
        if built is self and not base.is_here:
            expected = None if base.bos_id is None else str(self.tokenizer().bos_token)
            if self.bos != expected:
                raise RunError(
                    f"data: the rows in {self.path} begin with {self.bos or 'text'}, not with {expected or 'text'}; "
                    f"set data.bos={Bos.never if expected is None else Bos.always} to make them anew"
                )

    def summary_line(self, folder: Path) -> str:
        """Duplicates, how many test prompts are training prompts too, and BOS if rows begin with it."""
        report = json.loads((folder / "report.json").read_text())
        duplicates = sum(sum(counts.values()) for counts in report.get("duplicates_removed", {}).values())
        empty = sum(report.get("empty_texts_skipped", {}).values())
        short = sum(report.get("short_texts_skipped", {}).values())
        shared = report["test_prompts_also_training_prompts"]
        left_out = f"{duplicates} duplicate, {short} short" if short else f"{duplicates} duplicate"
        begins = f", rows begin with {report['bos']}" if report.get("bos") else ""
        return f"{left_out} and {empty} empty reviews left out, {shared:.0%} of test prompts also in training{begins}"

    def size(self) -> Disk:
        """About 400 bytes per SFT review."""
        return unchanging(400 * self.flow.run.data.sft_reviews)

    # --- how it is opened ------------------------------------------------------------------------------------------

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reference's tokenizer: the source's own, or the one that is trained here, which needs the artifact."""
        source = self.flow.get(Base).source
        return self.trained_tokenizer(self.path) if source is None else source.tokenizer()

    def known_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The reference's tokenizer, or None while it is still to be trained."""
        if self.flow.get(Base).source is not None or self.name in self.flow.artifacts:
            return self.tokenizer()
        folder = self.flow.find(Reviews)
        return None if folder is None else self.trained_tokenizer(folder)

    @staticmethod
    def trained_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer of an artifact."""
        return load_tokenizer(folder / "tokenizer", "data")

    @property
    def bos(self) -> str | None:
        """The token that rows begin with, in letters; None for rows that begin with text."""
        begins: str | None = json.loads((self.path / "report.json").read_text()).get("bos")
        return begins

    def sft_rows(self) -> list[np.ndarray]:
        """The rows that SFT trains on, (tokens,) int32 each."""
        return prompts.read_rows(self.path)

    @cached_property
    def training_prompts(self) -> list[list[int]]:
        """The training prompts as token rows."""
        return prompts.read_prompts(self.path, "train")

    @cached_property
    def evaluation_prompts(self) -> dict[str, list[list[int]]]:
        """Split -> prompts as token rows, of the splits that are evaluated."""
        return {split: prompts.read_prompts(self.path, split) for split in EVALUATED_SPLITS}


class Labelled(Stage):
    """Labelled reviews that a two-label reward is trained on, and others that it is held to account on."""

    name = "labelled"

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where the true reward is trained."""
        return cls(flow) if kind_of(flow.run.reward).trained else None

    def inputs(self) -> dict[str, Any]:
        """The dataset's content and division, labels included."""
        data, labels = data_config(self.flow)
        return {
            "config": data | labels,
            "content": content_of(self.flow.get(Dataset).kind),
            "held_out": kind_of(self.flow.run.reward).held_out,
        }

    def check(self) -> None:
        """Refuse a dataset without labels."""
        run = self.flow.run
        if not self.flow.get(Dataset).kind.labelled:
            raise RunError(
                f"reward={run.reward.name} is trained on labelled reviews, and data={run.data.name} has none; "
                "choose another reward or another dataset"
            )
        self.flow.get(Dataset).kind.check_labels()

    def make(self, folder: Path) -> None:
        """Keep the labelled reviews and the held-out ones."""
        if self.runtime.rank:
            return
        reviews = divide_reviews(self.flow.get(Dataset).kind, kind_of(self.flow.run.reward).held_out)
        write_table(folder / "labelled.parquet", reviews.labelled)
        write_table(folder / "held_out.parquet", reviews.held_out)
        counts = {"labelled": len(reviews.labelled), "held_out": len(reviews.held_out)}
        write_json(folder / "report.json", counts)

    def summary_line(self, folder: Path) -> str:
        """How many there are."""
        report = json.loads((folder / "report.json").read_text())
        return f"{report['labelled']} reviews with labels, {report['held_out']} held out"

    def size(self) -> Disk:
        """The dataset's own estimate."""
        return unchanging(self.flow.get(Dataset).kind.labelled_bytes)

    def reviews(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Labelled and held-out reviews: columns `text` and `label` (0 or 1)."""
        return pd.read_parquet(self.path / "labelled.parquet"), pd.read_parquet(self.path / "held_out.parquet")
