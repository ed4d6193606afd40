"""The Large Movie Review Dataset from a folder or the Hub, in the Hub's parquet layout, checked row by row."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from imdb_rlhf.config.data import Br, ImdbData
from imdb_rlhf.errors import RunError


def split_files(folder: Path, split: str, key: str = "data.path") -> list[Path]:
    """The parquet files of a split, in `plain_text/` or in the folder itself.

    Raises:
        RunError: the folder has no parquet, or none of that split.
    """
    every = sorted(folder.glob("plain_text/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not every:
        raise RunError(f"{key}={folder} holds no parquet; expected plain_text/{split}-00000-of-00001.parquet")
    files = [path for path in every if path.name.startswith(f"{split}-") or path.stem == split]
    if not files:
        raise RunError(
            f"{key}={folder} holds no parquet of split {split}; there are {', '.join(p.name for p in every)}"
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
        A frame with columns `text` and `label`, and the number of null or empty texts that were skipped.

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
        wrong = np.flatnonzero(~strings & frame["text"].notna())  # a null is None or nan, as pandas likes it
        if len(wrong):
            raise RunError(f"{path} row {int(wrong[0])}: text is not a string; mend the file")
        frames.append(frame)
    reviews = pd.concat(frames, ignore_index=True)
    text = reviews["text"].astype(object).where(reviews["text"].notna(), "").astype(str).str.strip()
    if br == Br.newline:
        text = text.str.replace(r"(?:\s*<br\s*/?>\s*)+", "\n", regex=True).str.strip()
    reviews["text"] = text
    kept = reviews[text != ""]
    return kept.astype({"label": int}).reset_index(drop=True), len(reviews) - len(kept)


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
