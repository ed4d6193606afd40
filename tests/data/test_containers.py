"""The same rows in every container, whole or refused."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imdb_rlhf.data import containers
from imdb_rlhf.data.containers import content_of, read_split
from imdb_rlhf.data.imdb import Kind
from imdb_rlhf.errors import RunError
from tests.data.tables import imdb_data

TEXTS = ["A film.", 'With "quotes", commas\nand lines', "NA", "12", "null", "2020-01-01", "naïve — 映画", " blanks "]
LABELS = [0, 1, 0, 1, 0, 1, 0, 1]
SPLITS = {"train": (TEXTS, LABELS), "test": (TEXTS[::-1], LABELS), "unsupervised": (TEXTS[2:], [-1] * 6)}


def frame(split: str) -> pd.DataFrame:
    texts, labels = SPLITS[split]
    return pd.DataFrame({"text": texts, "label": labels, "more": range(len(texts))})


def table(split: str) -> datasets.Dataset:
    return datasets.Dataset.from_pandas(frame(split), preserve_index=False)


def parquet(folder: Path) -> None:
    (folder / "plain_text").mkdir()
    for split in SPLITS:
        frame(split).to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")


def parts(folder: Path) -> None:
    """In several files, under data/."""
    (folder / "data").mkdir()
    for split in SPLITS:
        for number, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, None))):
            frame(split)[rows].to_parquet(folder / "data" / f"{split}-0000{number}-of-00003.parquet")


def converted(folder: Path) -> None:
    """As the Hub's branch of parquet conversions."""
    for split in SPLITS:
        (folder / "plain_text" / split).mkdir(parents=True)
        frame(split)[:3].to_parquet(folder / "plain_text" / split / "0000.parquet")
        frame(split)[3:].to_parquet(folder / "plain_text" / split / "0001.parquet")


def older(folder: Path) -> None:
    """As that branch was at first, with what describes it."""
    (folder / "plain_text").mkdir()
    (folder / "dataset_infos.json").write_text(json.dumps({"plain_text": {"splits": ["train", "test"]}}))
    for split in SPLITS:
        frame(split).to_parquet(folder / "plain_text" / f"imdb-{split}.parquet")


def csv(folder: Path) -> None:
    for split in SPLITS:
        frame(split).to_csv(folder / f"{split}.csv", index=False)


def tsv(folder: Path) -> None:
    for split in SPLITS:
        frame(split).to_csv(folder / f"{split}.tsv.gz", index=False, sep="\t")


def jsonl(folder: Path) -> None:
    for split in SPLITS:
        frame(split).to_json(folder / f"{split}.jsonl", orient="records", lines=True, date_format=None)


def json_list(folder: Path) -> None:
    for split in SPLITS:
        (folder / f"{split}.json").write_text(json.dumps(frame(split).to_dict("records")))


def arrow(folder: Path) -> None:
    for split in SPLITS:
        table(split).save_to_disk(folder / "aside" / split)
        (only,) = (folder / "aside" / split).glob("*.arrow")
        only.rename(folder / f"{split}.arrow")
    for path in (folder / "aside").rglob("*.json"):
        path.unlink()


def saved(folder: Path) -> None:
    datasets.DatasetDict({split: table(split) for split in SPLITS}).save_to_disk(folder / "saved")
    for path in (folder / "saved").iterdir():
        path.rename(folder / path.name)


def class_labels(folder: Path) -> None:
    names = datasets.ClassLabel(names=["neg", "pos"])
    (folder / "data").mkdir()
    for split in SPLITS:
        table(split).cast_column("label", names).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def class_labels_the_other_way_round(folder: Path) -> None:
    """Class 0 is positive here, as its name says."""
    names = datasets.ClassLabel(names=["pos", "neg"])
    for split in SPLITS:
        other = frame(split)["label"].map({0: 1, 1: 0, -1: -1})
        table = datasets.Dataset.from_pandas(frame(split).assign(label=other), preserve_index=False)
        table.cast_column("label", names).to_parquet(folder / f"{split}.parquet")


def words(folder: Path) -> None:
    """Labels by name."""
    for split in SPLITS:
        labels = frame(split)["label"].map({0: "negative", 1: "positive", -1: "unsup"})
        frame(split).assign(label=labels).to_csv(folder / f"{split}.csv", index=False)


def json_columns(folder: Path) -> None:
    for split in SPLITS:
        (folder / f"{split}.json").write_text(json.dumps(frame(split).to_dict("list"), indent=1))


def json_of_pandas(folder: Path) -> None:
    for split in SPLITS:
        frame(split).to_json(folder / f"{split}.json", date_format=None)


def json_indented(folder: Path) -> None:
    for split in SPLITS:
        (folder / f"{split}.json").write_text(json.dumps(frame(split).to_dict("records"), indent=2))


def tsv_all_quoted(folder: Path) -> None:
    for split in SPLITS:
        frame(split).to_csv(folder / f"{split}.tsv", index=False, sep="\t", quoting=2)


CONTAINERS = [parquet, parts, converted, older, csv, tsv, jsonl, json_list, arrow, saved, class_labels, words]
CONTAINERS += [class_labels_the_other_way_round, json_columns, json_of_pandas, json_indented, tsv_all_quoted]


def content(place: Path, **changes: Any) -> str:
    return Kind(imdb_data(path=str(place), **changes)).content()


@pytest.mark.parametrize("write", CONTAINERS)
def test_the_same_rows_have_the_same_content(write, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    parquet(tmp_path / "one")
    write(tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    files = read_split(tmp_path / "two", "train", ["text"], "data.path")
    assert [text for rows in files for text in rows.columns["text"]] == TEXTS


def test_classes_whose_names_tell_nothing(tmp_path):
    names = datasets.ClassLabel(names=["left", "right"])
    table("train").cast_column("label", names).to_parquet(tmp_path / "train.parquet")
    everywhere = dict.fromkeys(("prompt_splits", "test_splits", "sft_splits", "labelled_splits"), ["train"])
    message = refused(Kind(imdb_data(path=str(tmp_path), **everywhere)).check)
    assert message.endswith("train.parquet row 0: label left is not one of [-1, 0, 1]; mend the file")


def test_reviews_of_a_file_each(tmp_path):
    """As Maas et al. published them."""
    for split, name, count in (("train", "neg", 12), ("train", "pos", 2), ("train", "unsup", 1), ("test", "neg", 1)):
        (tmp_path / "aclImdb" / split / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "aclImdb" / split / name / f"{number}_7.txt").write_text(f"{name} {number}")
    read = read_split(tmp_path, "train", ["text", "label"], "data.path")
    assert [rows.columns["text"][0] for rows in read] == [*(f"neg {n}" for n in range(12)), "pos 0", "pos 1"]
    assert [rows.columns["label"][0] for rows in read] == ["neg"] * 12 + ["pos"] * 2
    (only,) = read_split(tmp_path, "unsupervised", ["text", "label"], "data.path")
    assert only.columns == {"text": ["unsup 0"], "label": ["unsup"]}
    (tmp_path / "aclImdb" / "train" / "neg" / "3_7.txt").unlink()
    message = refused(read_split, tmp_path, "train", ["text", "label"], "data.path")
    assert message.endswith("train/neg holds 11 of 12 reviews; number 3 is missing")
    assert "has no folder test/pos" in refused(read_split, tmp_path, "test", ["text", "label"], "data.path")


@pytest.mark.parametrize("name", ["reviews.csv", "a.jsonl"])
def test_one_file_is_split_train(tmp_path, name):
    path = tmp_path / name
    frame("train").to_csv(path, index=False) if name.endswith("csv") else frame("train").to_json(
        path, orient="records", lines=True
    )
    for place in (path, tmp_path):
        (rows,) = read_split(place, "train", ["text"], "data.path")
        assert rows.columns["text"] == TEXTS
    assert "there is no split test" in refused(read_split, path, "test", ["text"], "data.path")
    everywhere = dict.fromkeys(("prompt_splits", "test_splits", "sft_splits", "labelled_splits"), ["train"])
    assert content(path, **everywhere) == content(tmp_path, **everywhere)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    """Though it has the name, the size and the time of the one before: what `datasets` caches by is not enough."""
    everywhere = dict.fromkeys(("prompt_splits", "test_splits", "sft_splits", "labelled_splits"), ["train"])
    file, found = tmp_path / "train.jsonl.gz", []
    for word in ("good", "dull"):
        file.write_bytes(gzip.compress(b'{"text": "A %s film", "label": 1}\n' % word.encode(), 0, mtime=0))
        os.utime(file, (1, 1))
        found.append((file.stat().st_size, content(file, **everywhere)))
        (rows,) = read_split(file, "train", ["text"], "data.path")
        assert rows.columns["text"] == [f"A {word} film"]
    (size, first), (again, second) = found
    assert size == again and first != second


def test_another_row_is_another_content():
    rows: list[tuple[Any, ...]] = [("a", 1), ("b", 0)]
    others: list[list[tuple[Any, ...]]] = [
        [("a", 1)],
        [("b", 0), ("a", 1)],
        [("a", 1), ("b", 1)],
        [("a", 1), ("b", None)],
        [("a1", ""), ("b", 0)],
    ]
    assert len({content_of(rows), *(content_of(other) for other in others)}) == 6
    assert content_of([("ab", "c")]) != content_of([("a", "bc")])


# --- values as they are written


def texts_of(place: Path) -> list[Any]:
    (rows,) = read_split(place, "train", ["text", "label"], "data.path")
    return rows.columns["text"]


@pytest.mark.parametrize("dates", ["every text", "the last block"])
def test_texts_that_look_like_dates(tmp_path, dates):
    """The library that was used before guesses types for every 10 MB."""
    file = tmp_path / "train.jsonl"
    texts = ["1994-05-01"] * 9 if dates == "every text" else ["x" * 1_100_000] * 10 + ["1994-05-01", "1"]
    labels: list[Any] = [0] * (len(texts) - 1) + ["1"]
    file.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in zip(texts, labels, strict=True)))
    (rows,) = read_split(file, "train", ["text", "label"], "data.path")
    assert rows.columns == {"text": texts, "label": labels}


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (['"Quoted" at first\t1', "plain\t0", 'at "last"\t1'], ['"Quoted" at first', "plain", 'at "last"']),
        (['"open\t1', "plain\t0"], ['"open', "plain"]),
        (['"he said \\"wow\\" and"\t1', "plain\t0"], ['"he said \\"wow\\" and"', "plain"]),
        (['"a ""b"""\t1', "plain\t0"], ['a "b"', "plain"]),
        (['"a"\t1', '"b"\t0'], ["a", "b"]),
        (['"a\tb"\t1', "plain\t0"], ["a\tb", "plain"]),
        (['5" disc\t1', "plain\t0"], ['5" disc', "plain"]),
    ],
)
def test_quotes_in_tsv(tmp_path, lines, texts):
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    assert texts_of(tmp_path / "train.tsv") == texts


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.tsv", ['"open\t1', "plain\t0", 'a 5"\t1'], "row 0: a quote may be a character or the beginning of a text"),
        ("a.csv", ['"open,1', "plain,0", 'a 5",1'], "row 0: a quote may be a character or the beginning of a text"),
        ("a.tsv", ['"whole"\t1', "plain\t0"], "its quotes may be part of the texts or around them; use jsonl"),
        ("a.csv", ["plain,1", '"open,0'], "row 1: its quotes are broken ("),
        ("a.csv", ["plain,1", r'"he said \"wow\"",0'], "row 1: its quotes are broken ("),
        ("a.csv", ["plain,1", "short"], "row 1 has 1 values for 2 columns"),
    ],
)
def test_quotes_that_are_broken(tmp_path, name, lines, message):
    separator = "\t" if name == "a.tsv" else ","
    (tmp_path / name).write_text("\n".join([f"text{separator}label", *lines, ""]))
    assert f"{name} is not a readable csv file: {message}" in refused(texts_of, tmp_path / name)


def test_long_texts_in_csv(tmp_path):
    long = 'a "b", c\n' * 50_000
    pd.DataFrame({"text": [long, "x"], "label": [0, 1]}).to_csv(tmp_path / "a.csv", index=False)
    assert texts_of(tmp_path / "a.csv") == [long, "x"]


def test_a_column_that_is_there_twice(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "text": "b", "label": 1}\n')
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    pq.write_table(pa.table(columns, names=["text", "text", "label"]), tmp_path / "c.parquet")
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        assert "'text' twice" in refused(texts_of, tmp_path / name)


def test_columns_that_are_not_used_may_be_anything(tmp_path):
    other = {
        "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "view": pa.array([[1], []], pa.list_view(pa.int64())),
        "uuid": pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
        "bool8": pa.array([1, 0], pa.int8()).cast(pa.bool8()),
    }
    columns = {"text": pa.array(["a", "b"]), "label": pa.array([0, 1])}
    pq.write_table(pa.table(columns | {name: other[name] for name in ("map", "uuid", "bool8")}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table([*columns.values(), columns["text"], columns["text"]], names=["text", "label", "x", "x"]),
        tmp_path / "b.parquet",
    )
    with (
        pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, (table := pa.table(columns | other)).schema) as writer,
    ):
        writer.write_table(table)
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": 0, "m": 1}\n{"text": "b", "label": 1, "m": {"c": []}}\n')
    for name in ("a.parquet", "b.parquet", "c.arrow", "d.jsonl"):
        assert texts_of(tmp_path / name) == ["a", "b"]


def test_half_of_a_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b\\ud800", "label": 1}\n')
    assert "row 1: text holds half of a character" in refused(texts_of, tmp_path / "a.jsonl")


# --- refusals


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        "Great, they say,1\nBad, they say,0\n",  # pandas would take the first words for names of rows
        "Great, they say,1\nBad,0\n",
        "Great,1\nBad, they say,0\n",
    ],
)
def test_commas_outside_of_quotes(tmp_path, rows, capfd):
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    assert "train.csv is not a readable csv file: " in refused(read_split, tmp_path, "train", ["text", "label"], "x")
    assert capfd.readouterr() == ("", "")  # the library has nothing to add


@pytest.mark.parametrize(
    "name", ["train.csv", "train.json", "train.jsonl", "train.arrow", "train.parquet", "train.csv.gz"]
)
@pytest.mark.parametrize("damage", [b"", b"\x00\xff\xfe{[", b'{"text": "a"'])
def test_files_that_cannot_be_read(tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage)
    message = refused(read_split, tmp_path, "train", ["text", "label"], "data.path")
    assert message.startswith(f"{tmp_path / name} ")
    assert "is not a readable" in message or "has no column" in message


def test_a_folder_of_save_to_disk_without_a_split(tmp_path):
    saved(tmp_path)
    message = refused(read_split, tmp_path, "validation", ["text"], "data.path")
    assert message == f"data.path={tmp_path} has no split validation; there are test, train, unsupervised"
    assert "there is no split test" in refused(read_split, tmp_path / "train", "test", ["text"], "data.path")
    (only,) = (tmp_path / "train").glob("*.arrow")
    only.write_bytes(b"none")
    message = refused(read_split, tmp_path, "train", ["text"], "data.path")
    assert message.startswith(f"{tmp_path}/train cannot be read as save_to_disk left it: ")


def test_what_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    parquet(tmp_path)
    whole = containers.read_split

    def late(place: Path, split: str, *others: Any) -> Any:
        found = whole(place, split, *others)
        frame("test")[:3].to_parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet")
        return found

    monkeypatch.setattr("imdb_rlhf.data.containers.read_split", late)
    assert "changed while it was read" in refused(content, tmp_path)
