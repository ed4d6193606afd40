"""The files of a split: all of them and no others, or a refusal that names what is missing or too much."""

from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.data.split_files import files_of
from imdb_rlhf.errors import RunError


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00004.parquet"], "holds 1 of the 4 files of split train; number 1 is missing"),
        (
            ["train-00000-of-00002-0123456789abcdef.parquet"],
            "holds 1 of the 2 files of split train; number 1 is missing",
        ),
        (["train_0_of_2.csv"], "holds 1 of the 2 files of split train; number 1 is missing"),
        (
            ["train-1-of-4.csv", "train-3-of-4.csv", "train-4-of-4.csv"],
            "holds 3 of the 4 files of split train; number 2",
        ),
        (["train-000001-of-000002.csv"], "holds 1 of the 2 files of split train; number 0 is missing"),
        (
            ["train_a.csv", "train_b.csv"],
            "holds several sets of files of split train (train_a, train_b); leave one, or put",
        ),
        (
            ["train_prefs-00000-of-00001.csv", "train_sft-00000-of-00001.csv"],
            "holds several sets of files of split train",
        ),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "holds 2 of the 3 files of split train; number 1"),
        (["x/train/0001.parquet", "x/train/0002.parquet"], "holds 2 of the 3 files of split train; number 0"),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv"], "holds several sets of files of split train"),
        (["train.csv", "train-00000-of-00001.csv"], "holds several sets of files of split train"),
        (["train.csv", "train.parquet"], "holds split train more than once (train.csv, train.parquet); leave one"),
        (["a/train.csv", "b/train.csv"], "holds split train more than once (a/train.csv, b/train.csv); leave one"),
        (["test.csv"], "holds no file of split train; there are test.csv"),
        (["restraining.csv", "test.csv"], "holds no file of split train; there are restraining.csv, test.csv"),
        (["notes.txt", "dataset_infos.json"], "holds no data (one of .parquet, .csv"),
    ],
)
def test_files_that_are_not_one_whole_split(tmp_path, names, message):
    assert refused(files_of, touch(tmp_path, *names), "train", "data.path").startswith(
        f"data.path={tmp_path} {message}"
    )


@pytest.mark.parametrize(
    ("split", "names", "found"),
    [
        ("train", ["train-1-of-2.csv", "train-2-of-2.csv"], ["train-1-of-2.csv", "train-2-of-2.csv"]),
        (
            "train_prefs",
            ["train_prefs-00000-of-00001.csv", "train_sft-00000-of-00001.csv"],
            ["train_prefs-00000-of-00001.csv"],
        ),
        ("train", ["train_old.csv", "train.csv"], ["train.csv"]),
        ("train", ["train1.csv", "train2.csv"], ["train1.csv", "train2.csv"]),
        ("train", ["train/a.csv", "train/b.csv", "test/a.csv"], ["a.csv", "b.csv"]),
        ("train", ["latest.csv"], ["latest.csv"]),  # no split is named
        ("test", ["imdb_test.csv", "imdb_train.csv"], ["imdb_test.csv"]),
    ],
)
def test_the_files_that_a_split_means(tmp_path, split, names, found):
    assert [path.name for path in files_of(touch(tmp_path, *names), split, "data.path")] == found


def test_whole_splits(tmp_path):
    names = [f"train-0000{number}-of-00002.parquet" for number in range(2)]
    found = files_of(touch(tmp_path, *names, "test-00000-of-00001.parquet"), "train", "data.path")
    assert [path.name for path in found] == names
