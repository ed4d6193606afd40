"""The Large Movie Review Dataset, or any reviews with labels, from a folder, a file or the Hub, checked row by row."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.config.data import Br, ImdbData
from imdb_rlhf.data import hub
from imdb_rlhf.data.containers import Rows, content_of, content_once, read_splits
from imdb_rlhf.data.reviews import DatasetKind, Reviews
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator

LABEL = "label"  # the column of labels, if no other is named; it may be missing where no label is needed
# What a label may be called where it is a text.
NAMES = {"neg": 0, "negative": 0, "false": 0, "pos": 1, "positive": 1, "true": 1, "unsup": -1}


def label_of(value: Any) -> int | None:
    """A label as a whole number: 1, 1.0, True, "1", "1.0", "true" and "Positive" are 1; None for what is none."""
    if isinstance(value, str):
        word = value.strip().lower()
        return NAMES.get(word, int(float(word)) if re.fullmatch(r"-?[0-9]{1,9}(\.0+)?", word) else None)
    whole = isinstance(value, bool | int | np.integer) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole else None


def reviews_of(files: Sequence[Rows], text: str, label: str, *, labels: bool) -> pd.DataFrame:
    """The reviews of a split as they are stored.

    Args:
        files: with the column of texts; that of labels may be missing where they are not needed, and is -1 then.
        text: name of the column of texts.
        label: name of the column of labels.
        labels: whether labels must be 0 or 1; elsewhere -1 is allowed too.

    Returns:
        Columns `text` (null is "") and `label` (int).

    Raises:
        RunError: a text is no string, or a label is outside {0, 1} (and -1), naming file and row; or there are none.
    """
    allowed, texts, numbers = [0, 1] if labels else [-1, 0, 1], [], []
    for rows in files:
        if labels:
            _check_labelled(rows, label)
        given_labels = rows.columns.get(label) or [-1] * len(rows.columns[text])
        for row, (value, given) in enumerate(zip(rows.columns[text], given_labels, strict=True)):
            number = label_of(given)
            if number not in allowed:
                raise RunError(
                    f"{rows.place} row {row}: {label} {_shown(given)} is not one of {allowed}; mend the file"
                )
            if not isinstance(value, str | None):
                raise RunError(f"{rows.place} row {row}: {text} is not a string; mend the file")
            texts.append(value or "")
            numbers.append(number)
    return pd.DataFrame({"text": pd.Series(texts, dtype=object), "label": pd.Series(numbers, dtype=int)})


def _check_labelled(rows: Rows, label: str) -> None:
    if label not in rows.columns:
        raise RunError(f"{rows.place} has no column {label!r}, which a reward that is trained needs")


def _shown(value: Any) -> str:
    """A value in a message: one line, and not longer than that."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 40 else repr(value)[:40]


def cleaned(reviews: pd.DataFrame, br: Br) -> tuple[pd.DataFrame, int]:
    """The reviews of a split as they are used.

    Args:
        reviews: columns `text` and `label`.
        br: what becomes of `<br />`.

    Returns:
        A frame with columns `text`, `label` and `characters` (of the text as it is stored), and the number of empty
        texts that were left out.
    """
    texts = [one_per_line(text) if br == Br.newline else text.strip() for text in reviews["text"]]
    frame = reviews.assign(text=pd.Series(texts, dtype=object), characters=reviews["text"].map(len).astype(int))
    filled = frame[[text != "" for text in texts]]
    return filled.reset_index(drop=True), len(frame) - len(filled)


def one_per_line(text: str) -> str:
    """A text with a line break for each run of `<br />` and blanks around it, in time that grows as the text does."""
    parts = (part.strip() for part in re.split(r"<br\s*/?>", text))
    return "\n".join(part for part in parts if part)


def divide(config: ImdbData, held_out: int, splits_read: Mapping[str, Sequence[Rows]], place: Path) -> Reviews:
    """Give every review its use, a function of the configuration and the files alone.

    Args:
        config: sizes, splits and seed.
        held_out: labelled reviews that a trained reward is measured on; 0 where no reward is trained.
        splits_read: the rows of each split.
        place: where they are from, for messages.

    Raises:
        RunError: fewer usable reviews than asked for.
    """
    pools, report = _read_pools(config, held_out, splits_read)
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
                f"{place}; ask for fewer"
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
                f"{place}: {'+'.join(config.labelled_splits)} has one label only; a two-label reward needs both"
            )
    return Reviews(
        {role: list(frame["text"]) for role, frame in texts.items()},
        labelled.reindex(columns=["text", "label"]).reset_index(drop=True),
        held_out_reviews.reindex(columns=["text", "label"]).reset_index(drop=True),
        report,
    )


def _read_pools(
    config: ImdbData, held_out: int, splits_read: Mapping[str, Sequence[Rows]]
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Each split, shuffled, without short texts and those that are in it twice or in an earlier split (test first)."""
    splits = list(dict.fromkeys([*config.test_splits, *config.prompt_splits, *config.sft_splits]))
    needs_labels = {*config.labelled_splits, *config.test_splits} if held_out else set()
    splits += [split for split in config.labelled_splits if held_out and split not in splits]
    pools: dict[str, pd.DataFrame] = {}
    seen: set[str] = set()
    report: dict[str, Any] = {"empty_texts_skipped": {}, "short_texts_skipped": {}, "duplicates_removed": {}}
    for split in splits:
        stored = reviews_of(splits_read[split], config.text_column, config.label_column, labels=split in needs_labels)
        frame, skipped = cleaned(stored, config.br)
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
    def place(self) -> Path:
        """Its folder or file on this machine, downloaded if need be."""
        config = self.config
        if config.path is None:
            return hub.fetch(config.hub_id, config.revision, "data.path", "dataset")
        place = Path(config.path).expanduser()
        return place if place.is_file() else hub.local_folder(config.path, "data.path")

    @property
    def splits(self) -> list[str]:
        """Every split that is used, by name."""
        config = self.config
        return sorted({*config.test_splits, *config.prompt_splits, *config.sft_splits, *config.labelled_splits})

    @cached_property
    def splits_read(self) -> dict[str, list[Rows]]:
        """The rows of every split that is used, read once; with labels where there are some."""
        config = self.config
        columns = [[config.text_column], [config.label_column]]
        if config.label_column != LABEL:  # a name that someone gave is one that is meant
            columns = [[*columns[0], *columns[1]], []]
        return read_splits(self.place, self.splits, columns[0], "data.path", columns[1])

    def check(self) -> None:
        """Refuse what lacks a file or a column, or holds a row that is no review."""
        if self.config.path is not None:
            self.content()

    def check_labels(self) -> None:
        """Refuse a split without labels."""
        if self.config.path is not None:
            for split in {*self.config.labelled_splits, *self.config.test_splits}:
                for rows in self.splits_read[split]:
                    _check_labelled(rows, self.config.label_column)

    def fetch(self) -> None:
        """Download it."""
        _ = self.place

    def content(self) -> str:
        """A hash of the rows, whatever they are stored in; or the Hub's id and commit."""
        config = self.config
        if config.path is None:
            return hub.identity(config.hub_id, config.revision, "data.path", "dataset")
        return content_once(self.place, [config.text_column, config.label_column, *self.splits], self._content)

    def _content(self) -> str:
        config, hashes = self.config, []
        for split, files in self.splits_read.items():
            reviews = reviews_of(files, config.text_column, config.label_column, labels=False)
            hashes.append((split, content_of(list(zip(reviews["text"], reviews["label"].tolist(), strict=True)))))
        return content_of(hashes)

    def divide(self, held_out: int) -> Reviews:
        """Split by split, without duplicates."""
        return divide(self.config, held_out, self.splits_read, self.place)
