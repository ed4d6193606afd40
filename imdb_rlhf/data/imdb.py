"""The Large Movie Review Dataset from a folder or the Hub, in the Hub's parquet layout, checked row by row."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from imdb_rlhf.artifacts.files import hash_folder
from imdb_rlhf.config.data import Br, ImdbData
from imdb_rlhf.data import hub
from imdb_rlhf.data.reviews import DatasetKind, Reviews
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator


def split_files(folder: Path, split: str, key: str = "data.path") -> list[Path]:
    """The parquet files of a split, in `plain_text/` or in the folder itself.

    Raises:
        RunError: the folder has no parquet, or none of that split.
    """
    all_files = sorted(folder.glob("plain_text/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not all_files:
        raise RunError(f"{key}={folder} holds no parquet; expected plain_text/{split}-00000-of-00001.parquet")
    files = [path for path in all_files if path.name.startswith(f"{split}-") or path.stem == split]
    if not files:
        raise RunError(
            f"{key}={folder} holds no parquet of split {split}; there are {', '.join(p.name for p in all_files)}"
        )
    return files


def read_split(folder: Path, split: str, br: Br, *, labels: bool, key: str = "data.path") -> tuple[pd.DataFrame, int]:
    """The reviews of a split.

    Args:
        folder: with parquet files that have columns `text` and `label`.
        split: train, test or unsupervised.
        br: what becomes of `<br />`.
        labels: whether labels must be 0 or 1; elsewhere -1 is allowed too.
        key: config key that messages name.

    Returns:
        A frame with columns `text`, `label` and `characters` (of the text as the file has it), and the number of null
        or empty texts that were skipped.

    Raises:
        RunError: a column is missing, or a label is outside {0, 1} (and -1), naming file and row.
    """
    frames = []
    for path in split_files(folder, split, key):
        try:
            columns = pq.ParquetFile(path).schema_arrow.names
        except Exception as error:
            raise RunError(f"{path} is not a readable parquet file: {error}".splitlines()[0]) from error
        for column in ("text", "label"):
            if column not in columns:
                raise RunError(f"{path} has no column {column!r} (it has {', '.join(columns)}); see stanfordnlp/imdb")
        frame = pq.read_table(path, columns=["text", "label"]).to_pandas()
        allowed = [0, 1] if labels else [-1, 0, 1]
        wrong = np.flatnonzero(~frame["label"].isin(allowed))
        if len(wrong):
            row = int(wrong[0])
            raise RunError(f"{path} row {row}: label {frame['label'].iloc[row]} is not one of {allowed}; mend the file")
        strings = np.array([isinstance(text, str) for text in frame["text"]], dtype=bool)
        wrong = np.flatnonzero(~strings & frame["text"].notna())  # pandas reads a null as None or nan
        if len(wrong):
            raise RunError(f"{path} row {int(wrong[0])}: text is not a string; mend the file")
        frames.append(frame)
    reviews = pd.concat(frames, ignore_index=True)
    text = reviews["text"].astype(object).where(reviews["text"].notna(), "").astype(str)
    reviews["characters"] = text.map(len)
    text = text.str.strip()
    if br == Br.newline:
        text = text.str.replace(r"(?:\s*<br\s*/?>\s*)+", "\n", regex=True).str.strip()
    reviews["text"] = text
    filled = reviews[text != ""]
    return filled.astype({"label": int}).reset_index(drop=True), len(reviews) - len(filled)


def check_folder(folder: Path, config: ImdbData) -> None:
    """Refuse a folder before any stage starts: every split that is needed has its files and columns.

    Raises:
        RunError: naming the file.
    """
    for split in {*config.sft_splits, *config.prompt_splits, *config.test_splits, *config.labelled_splits}:
        for path in split_files(folder, split):
            try:
                names = pq.ParquetFile(path).schema_arrow.names
            except Exception as error:
                raise RunError(f"{path} is not a readable parquet file: {error}".splitlines()[0]) from error
            for column in ("text", "label"):
                if column not in names:
                    raise RunError(f"{path} has no column {column!r} (it has {', '.join(names)}); see stanfordnlp/imdb")


def divide(config: ImdbData, held_out: int, folder: Path) -> Reviews:
    """Give every review its use, a function of the configuration and the files alone.

    Args:
        config: sizes, splits and seed.
        held_out: labelled reviews that a trained reward is measured on; 0 where no reward is trained.
        folder: of the parquet files.

    Raises:
        RunError: fewer usable reviews than asked for.
    """
    pools, report = _read_pools(config, held_out, folder)
    words = config.prompts.max_tokens  # a token never spans two words, so this many words are enough tokens
    short: set[tuple[str, int]] = set()  # reviews that were passed over at least once

    def take(splits: Sequence[str], count: int, what: str, *, long: bool) -> pd.DataFrame:
        parts, missing = [], count
        for split in splits:
            pool = pools[split]
            fits = pool["words"] >= words if long else pool["words"] > 0
            chosen = pool[fits].head(missing)
            if len(chosen):
                passed = fits.loc[: chosen.index[-1]]
                short.update((split, int(row)) for row in passed.index[~passed])
            parts.append(chosen)
            pools[split] = pool.drop(chosen.index)
            missing -= len(chosen)
        if missing:
            raise RunError(
                f"{what}={count} is more than the {count - missing} usable reviews left in {'+'.join(splits)} of "
                f"{folder}; ask for fewer"
            )
        return pd.concat(parts)

    labelled = pd.concat([pools[split] for split in config.labelled_splits]) if held_out else pd.DataFrame()
    test = take(config.test_splits, config.prompts.test, "data.prompts.test", long=True)
    validation = take(config.prompt_splits, config.prompts.validation, "data.prompts.validation", long=True)
    train = take(config.prompt_splits, config.prompts.train, "data.prompts.train", long=True)
    sft = take(config.sft_splits, config.sft_reviews, "data.sft_reviews", long=False)
    held_out_reviews = take(
        config.test_splits, held_out, "reward.held_out", long=False
    )  # last, so that the others do not depend on it
    report["too_short_for_a_prompt"] = len(short)
    texts = {"sft": sft, "train": train, "validation": validation, "test": test}
    report["reviews"] = {role: len(frame) for role, frame in texts.items()}
    if held_out:
        apart = {*held_out_reviews["name"], *test["name"], *validation["name"]}
        labelled = labelled[~labelled["name"].isin(apart)]
        if labelled["label"].nunique() < 2:
            raise RunError(
                f"{folder}: {'+'.join(config.labelled_splits)} has one label only; a two-label reward needs both"
            )
    return Reviews(
        {role: list(frame["text"]) for role, frame in texts.items()},
        labelled.reindex(columns=["text", "label"]).reset_index(drop=True),
        held_out_reviews.reindex(columns=["text", "label"]).reset_index(drop=True),
        report,
    )


def _read_pools(config: ImdbData, held_out: int, folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Each split, shuffled, without short texts and those that are in it twice or in an earlier split (test first)."""
    splits = list(dict.fromkeys([*config.test_splits, *config.prompt_splits, *config.sft_splits]))
    needs_labels = {*config.labelled_splits, *config.test_splits} if held_out else set()
    splits += [split for split in config.labelled_splits if held_out and split not in splits]
    pools: dict[str, pd.DataFrame] = {}
    seen: set[str] = set()
    report: dict[str, Any] = {"empty_texts_skipped": {}, "short_texts_skipped": {}, "duplicates_removed": {}}
    for split in splits:
        frame, skipped = read_split(folder, split, config.br, labels=split in needs_labels)
        short = frame["characters"] < (config.min_characters or 0)
        frame = frame[~short]
        key = frame["text"].str.replace("<br />", " ").str.lower().str.split().str.join(" ")
        within, across = key.duplicated(), key.isin(seen)
        seen.update(key)
        report["empty_texts_skipped"][split] = skipped
        report["short_texts_skipped"][split] = int(short.sum())
        report["duplicates_removed"][split] = {
            "within": int(within.sum()),
            "also in an earlier split": int((across & ~within).sum()),
        }
        frame = frame[~(within | across)]
        order = generator(config.seed, "data", split).permutation(len(frame))
        frame = frame.iloc[order].reset_index(drop=True)
        frame["words"] = frame["text"].map(lambda text: len(text.split()))
        frame["name"] = [f"{split}/{row}" for row in range(len(frame))]
        pools[split] = frame
    return pools, report


class Kind(DatasetKind[ImdbData]):
    """Reviews from a folder or the Hub."""

    labelled = True
    label_keys = ("labelled_splits",)

    @cached_property
    def folder(self) -> Path:
        """Its folder on this machine, downloaded if need be."""
        config = self.config
        if config.path is not None:
            return hub.local_folder(config.path, "data.path")
        return hub.fetch(config.hub_id, config.revision, "data.path", "dataset")

    def check(self) -> None:
        """Refuse a local folder that lacks a file or a column."""
        if self.config.path is not None:
            check_folder(self.folder, self.config)

    def fetch(self) -> None:
        """Download it."""
        _ = self.folder

    def content(self) -> str:
        """A hash of the parquet files, or the Hub's id and commit."""
        config = self.config
        if config.path is not None:
            return hash_folder(self.folder, "**/*.parquet")
        return hub.identity(config.hub_id, config.revision, "data.path")

    def divide(self, held_out: int) -> Reviews:
        """Split by split, without duplicates."""
        return divide(self.config, held_out, self.folder)
