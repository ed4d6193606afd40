"""Tables that the tests of this room share: groups from their rewards, reviews in the Hub's layout, preferences."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.config.data import Bos, Br, ImdbData
from imdb_rlhf.data.preferences import PreferenceData
from tests import tiny


def group_table(rewards: list[list[float]]) -> pd.DataFrame:
    """A group of distinct completions per list, with these log-odds."""
    rows = [
        {"prompt_id": prompt, "sample_id": sample, "completion_ids": [sample, prompt], "reward_logit": reward}
        for prompt, group in enumerate(rewards)
        for sample, reward in enumerate(group)
    ]
    return pd.DataFrame(rows).assign(prompt="a film", reward=0.0, finished=True, ref_logprob=-1.0)


def within(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count is within 4 standard deviations of its mean."""
    return abs(count - trials * probability) <= 4 * math.sqrt(trials * probability * (1 - probability))


def imdb_data(**changes: Any) -> ImdbData:
    values = {"name": "imdb", "seed": 0, "sft_reviews": 4, "prompts": tiny.prompts(train=2), "preferences": None}
    source = {"bos": Bos.auto, "preferences_eos": True, "hub_id": "stanfordnlp/imdb", "revision": "main", "path": None}
    source |= {"preferences_revision": None, "preferences_split": "train"}
    source |= {"text_column": "text", "label_column": "label"}
    splits = {"prompt_splits": ["train", "unsupervised"], "test_splits": ["test"], "labelled_splits": ["train"]}
    splits["sft_splits"] = ["unsupervised", "train"]
    return ImdbData(**{**values, **source, "br": Br.newline, "min_characters": None, **splits, **changes})


def write_split(
    folder: Path, split: str, texts: list[Any], labels: list[Any] | None = None, file: str | None = None
) -> Path:
    """A split's parquet file in the Hub's layout; labels alternate between 0 and 1 if none are given."""
    path = folder / "plain_text" / (file or f"{split}-00000-of-00001.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [index % 2 for index in range(len(texts))] if labels is None else labels
    pd.DataFrame({"text": texts, "label": labels}).to_parquet(path)
    return path


def write_pairs(folder: Path, rows: list[tuple[Any, ...]], columns: str = "prompt chosen rejected") -> Path:
    """A parquet file of preferences."""
    pd.DataFrame(rows, columns=columns.split()).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def preference_data(place: Path) -> PreferenceData:
    return PreferenceData(str(place), None, "train")
