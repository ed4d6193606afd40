"""Random reviews and preferences in random containers, some of them damaged: the right rows, or one line."""

import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdb_rlhf.config.data import Br
from imdb_rlhf.data.containers import read_split
from imdb_rlhf.data.imdb import Kind, cleaned, label_of, reviews_of
from imdb_rlhf.data.preference_groups import from_preferences
from imdb_rlhf.data.preferences import PreferenceData
from imdb_rlhf.errors import RunError
from tests.data.tables import imdb_data

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        [
            "",
            " ",
            "NA",
            "null",
            "1",
            "<br />",
            "a<br /><br />b",
            "\r\n",
            "\x00",
            "\ufeffx",
            '"',
            '"a',
            'a 5"',
            '"a ""b"""',
            "2020-01-01",
            "a,b\tc",
            "<|endoftext|>",
        ]
    ),
)
LABEL = st.one_of(st.sampled_from([0, 1, -1, "pos", "neg", "1", 1.0, True]), st.integers(-3, 3), st.none(), TEXT)


def csv(frame: pd.DataFrame, file: Path) -> None:
    frame.to_csv(file, index=False)


def tsv(frame: pd.DataFrame, file: Path) -> None:
    """Without quoting, as many tsv files are."""
    lines = [["text", "label"], *([str(text), str(label)] for text, label in frame[["text", "label"]].to_numpy())]
    if any(character in value for line in lines for value in line for character in "\t\r\n"):
        raise ValueError("tsv has no way to write it")
    if any(not "".join(line) for line in lines):
        raise ValueError("an empty line is no row")
    file.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8", newline="")


def json_columns(frame: pd.DataFrame, file: Path) -> None:
    file.write_text(json.dumps(frame.to_dict("list"), indent=1))


def jsonl(frame: pd.DataFrame, file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))


def parquet(frame: pd.DataFrame, file: Path) -> None:
    frame.to_parquet(file)


def arrow(frame: pd.DataFrame, file: Path) -> None:
    datasets.Dataset.from_pandas(frame, preserve_index=False).save_to_disk(file)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": csv,
    "jsonl": jsonl,
    "tsv": tsv,
    "json": json_columns,
    "parquet": parquet,
    "saved": arrow,
}


@contextmanager
def one_line() -> Any:
    """What is refused is refused in one line."""
    try:
        yield
    except RunError as error:
        assert str(error) and "\n" not in str(error), str(error)


def damaged(data: st.DataObject, folder: Path) -> None:
    """Overwrite, cut or lengthen one file at a random place."""
    file = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content)))
    how = data.draw(st.sampled_from(["overwrite", "cut", "insert", "empty"]))
    noise = data.draw(st.binary(max_size=40))
    if how == "overwrite":
        content[at : at + len(noise)] = noise
    elif how == "cut":
        del content[at:]
    elif how == "insert":
        content[at:at] = noise
    else:
        content.clear()
    file.write_bytes(content)


def stored(data: st.DataObject, frame: pd.DataFrame, kind: str, folder: Path) -> Path:
    """Write a table; pandas and pyarrow refuse some, which is no case of ours."""
    place = folder / f"train.{kind}"
    WRITERS[kind](frame, place)
    return place


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_reviews(kind: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(TEXT, LABEL), min_size=1, max_size=6))
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    if kind in ("parquet", "saved", "tsv"):  # a column has one type there
        labels = [str(label) for label in labels]
    frame = pd.DataFrame({"text": texts, "label": pd.Series(labels, dtype=object)})
    with tempfile.TemporaryDirectory() as name, suppress(ValueError, OverflowError):
        place = stored(data, frame, kind, Path(name))
        with one_line():
            files = read_split(place, "train", ["text", "label"], "data.path")
            found = reviews_of(files, "text", "label", labels=False)
            expected = [label_of(label) for label in frame["label"]] if kind != "csv" else None
            if expected is not None:
                assert found["label"].tolist() == expected
            # csv keeps neither a carriage return nor its kind
            if kind != "csv":
                for text, given in zip(found["text"], frame["text"], strict=True):
                    # what begins and ends with a quote may be what a writer puts around a text
                    assert text == given or (kind == "tsv" and len(given) > 3 and given[0] == given[-1] == '"')
            for br in Br:
                kept, left_out = cleaned(found, br)
                assert len(kept) + left_out == len(found) and (kept["text"] != "").all()


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_damaged_reviews(kind: str, data: st.DataObject) -> None:
    frame = pd.DataFrame({"text": [f"A review {number}." for number in range(8)], "label": [0, 1] * 4})
    with tempfile.TemporaryDirectory() as name:
        stored(data, frame, kind, Path(name))
        damaged(data, Path(name))
        place = Path(name) / f"train.{kind}"
        everywhere = dict.fromkeys(("prompt_splits", "test_splits", "sft_splits", "labelled_splits"), ["train"])
        with one_line():
            Kind(imdb_data(path=str(place), **everywhere)).check()


MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT})
SIDE = st.one_of(TEXT, st.lists(MESSAGE, max_size=3), st.none(), st.integers())


ROW = st.fixed_dictionaries({"chosen": SIDE, "rejected": SIDE}, optional={"prompt": SIDE})


@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_preferences(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = PreferenceData(str(file), None, "train")
        with one_line():
            examples = source.examples(None)
            table, pairs, _ = from_preferences(
                examples, as_bytes, 300, None, append_eos=True, context=10**6, where="data.preferences=x"
            )
            assert len(pairs.rows) + sum(pairs.dropped.values()) == len(rows)
            for row in pairs.rows.flatten():
                ids = table["prompt_ids"][row] + table["completion_ids"][row][:-1]
                assert bytes(ids).decode() == table["prompt"][row] + table["completion"][row]


def as_bytes(texts: list[str]) -> list[list[int]]:
    """A token per byte."""
    return [list(text.encode()) for text in texts]
