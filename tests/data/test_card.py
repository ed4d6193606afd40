"""The dataset card, read by the Hub's own parsers."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import get_dataset_config_names, load_dataset
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard

from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.data.card import Exported, card, size_category, texts_of
from tests import tiny
from tests.command import run_of

PAIRS = {"prompt": ["A", "B"], "chosen": [" b", " c"], "rejected": [" d", " e"]}
SCORES = {"score_chosen": [1.0, 2.0], "score_rejected": [0.0, -1.0]}


@pytest.fixture
def folder(tmp_path) -> Path:
    pd.DataFrame(PAIRS | SCORES).to_parquet(tmp_path / "preferences.parquet", index=False)
    ids = {"prompt_ids": [[1], [1], [2]], "completion_ids": [[2, 3], [4], [5]]}
    pd.DataFrame(ids | {"reward": [0.1, 0.9, 0.5]}).to_parquet(tmp_path / "groups.parquet", index=False)
    return tmp_path


def metadata(text: str) -> Any:
    """What the Hub finds in a card."""
    return DatasetCard(text).data


def test_the_hub_reads_what_the_card_says(folder):
    text = card([Exported(folder, "0123", tiny.run(DPORun))])
    parsed = DatasetCard(text)
    data = parsed.data.to_dict()
    assert data["configs"] == [
        {
            "config_name": "preferences",
            "data_files": [{"split": "train", "path": "preferences.parquet"}],
            "default": True,
        },
        {"config_name": "groups", "data_files": [{"split": "train", "path": "groups.parquet"}]},
    ]
    assert data["size_categories"] == "n<1K" and data["language"] == "en" and "license" not in data
    assert {"imdb_rlhf", "preference", "trl"} <= set(data["tags"])
    infos = DatasetInfosDict.from_dataset_card_data(parsed.data)
    assert {name: info.splits["train"].num_examples for name, info in infos.items()} == {"groups": 3, "preferences": 2}
    assert list(infos["preferences"].features) == [*PAIRS, *SCORES]
    assert "# 2 preference pairs" in text and str(folder) not in text


def test_datasets_reads_the_folder(folder, tmp_path_factory):
    (folder / "README.md").write_text(card([Exported(folder, "0123", tiny.run(DPORun))]))
    cache = str(tmp_path_factory.mktemp("cache"))
    assert sorted(get_dataset_config_names(str(folder), cache_dir=cache)) == ["groups", "preferences"]
    assert load_dataset(str(folder), split="train", cache_dir=cache).to_dict() == PAIRS | SCORES
    assert load_dataset(str(folder), "groups", split="train", cache_dir=cache)["completion_ids"] == [[2, 3], [4], [5]]


def test_a_table_without_rows_is_no_configuration(folder):
    pd.DataFrame(PAIRS | SCORES).head(0).to_parquet(folder / "preferences.parquet", index=False)
    text = card([Exported(folder, "0123", tiny.run(DPORun))])
    (only,) = metadata(text).to_dict()["configs"]
    assert only["config_name"] == "groups" and only["default"]
    assert "load_dataset" not in text and "there are no preferences" in text


def test_several_groups_are_configurations_of_one_dataset(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in ("preferences", "groups"):
        (other / f"{name}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes())
    exports = [Exported(folder, "aa", tiny.run(DPORun)), Exported(other, "bb", tiny.run(DPORun))]
    data = metadata(card(exports, "me/x")).to_dict()
    names = ["preferences-aa", "groups-aa", "preferences-bb", "groups-bb"]
    assert [each["config_name"] for each in data["configs"]] == names
    assert data["configs"][2]["data_files"] == [{"split": "train", "path": "bb/preferences.parquet"}]
    assert [each.get("default", False) for each in data["configs"]] == [True, False, False, False]


def test_a_licence_is_stated_by_the_publisher_or_unknown(folder):
    real: Any = run_of("data=imdb")
    text = card([Exported(folder, "0", real)])
    data = metadata(text)
    assert data.license == "unknown" and data.source_datasets == ["stanfordnlp/imdb"] and data.language == "en"
    assert "Unknown: the prompts are the first words" in text and "maas2011" in text
    assert metadata(card([Exported(folder, "0", real)], stated_licence="cc-by-4.0")).license == "cc-by-4.0"


def test_where_texts_come_from():
    assert texts_of(run_of().data).generated and texts_of(run_of().data).hub_id is None
    data: Any = run_of("data=imdb").data
    assert (texts_of(data).hub_id, texts_of(data).revision) == ("stanfordnlp/imdb", data.revision)
    local = texts_of(run_of("data=imdb", "data.path=/secret/place").data)
    assert local.hub_id is None and not local.generated and "secret" not in local.description
    other = texts_of(run_of("data=imdb", "data.hub_id=me/reviews").data)
    assert (other.hub_id, other.language) == ("me/reviews", None)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (123_456, "100K<n<1M"),
        (10**9, "1B<n<10B"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(rows, name):
    assert size_category(rows) == name
