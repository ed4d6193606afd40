"""Real reviews, good and bad, as they are stored and as they are used."""

from pathlib import Path

import pandas as pd
import pytest

from imdb_rlhf.config.data import Br
from imdb_rlhf.data import imdb
from imdb_rlhf.data.containers import read_split
from imdb_rlhf.data.imdb import Kind
from imdb_rlhf.data.split_files import files_of
from imdb_rlhf.errors import RunError
from tests import tiny
from tests.data.tables import imdb_data, write_split

REAL = Path(__file__).parents[3] / "shared" / "imdb"


def reviews(name: str, count: int) -> list[str]:
    return [f"This {name} review has number {index}." for index in range(count)]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("train", "test"):
        write_split(tmp_path, name, reviews(name, 8))
    write_split(tmp_path, "unsupervised", reviews("unsupervised", 8), [-1] * 8)
    return tmp_path


def read(folder: Path, split: str, br: Br, *, labels: bool) -> tuple[pd.DataFrame, int]:
    files = read_split(folder, split, ["text", "label"], "data.path")
    return imdb.cleaned(imdb.reviews_of(files, "text", "label", labels=labels), br)


def check(folder: Path, **changes) -> None:
    imdb.Kind(imdb_data(path=str(folder), **changes)).check()


# --- reading


def test_a_split_is_read_in_order(folder):
    frame, skipped = read(folder, "train", Br.keep, labels=True)
    assert list(frame["text"]) == reviews("train", 8)
    assert list(frame["label"]) == [0, 1] * 4
    assert skipped == 0


def test_the_files_of_a_split_follow_each_other(tmp_path):
    write_split(tmp_path, "train", ["c", "d"], file="train-00001-of-00002.parquet")
    write_split(tmp_path, "train", ["a", "b"], file="train-00000-of-00002.parquet")
    write_split(tmp_path, "test", ["e"])
    assert list(read(tmp_path, "train", Br.keep, labels=True)[0]["text"]) == ["a", "b", "c", "d"]


def test_files_may_lie_in_the_folder_itself(tmp_path):
    write_split(tmp_path, "train", ["a", "b"], file="train.parquet")
    assert len(read(tmp_path / "plain_text", "train", Br.keep, labels=True)[0]) == 2


@pytest.mark.parametrize(
    ("text", "expected", "newline"),
    [
        ("One.<br /><br />Two.", "One.<br /><br />Two.", "One.\nTwo."),
        ("One. <br/> Two.", "One. <br/> Two.", "One.\nTwo."),
        ("<br />One.<br />", "<br />One.<br />", "One."),
        ("  One.\nTwo. ", "One.\nTwo.", "One.\nTwo."),
        ("a < b > c", "a < b > c", "a < b > c"),
    ],
)
def test_line_breaks(tmp_path, text, expected, newline):
    write_split(tmp_path, "train", [text])
    assert read(tmp_path, "train", Br.keep, labels=True)[0]["text"].tolist() == [expected]
    assert read(tmp_path, "train", Br.newline, labels=True)[0]["text"].tolist() == [newline]


def test_empty_and_null_texts_are_skipped_and_counted(tmp_path):
    write_split(tmp_path, "train", ["one", "", None, "  \n", "<br /><br />", "two"], [0, 0, 0, 0, 0, 1])
    frame, skipped = read(tmp_path, "train", Br.newline, labels=True)
    assert (frame["text"].tolist(), frame["label"].tolist(), skipped) == (["one", "two"], [0, 1], 4)
    assert read(tmp_path, "train", Br.keep, labels=True)[1] == 3  # here `<br />` is text


def test_characters_are_those_of_the_file(tmp_path):
    write_split(tmp_path, "train", ["  one\n", "a<br /><br />b", None, "caf\u00e9"])
    frame, _ = read(tmp_path, "train", Br.newline, labels=True)
    assert dict(zip(frame["text"], frame["characters"], strict=True)) == {"one": 6, "a\nb": 14, "caf\u00e9": 4}


def test_a_split_of_nothing_but_nulls(tmp_path):
    write_split(tmp_path, "train", [None, None], [0, 1])
    assert read(tmp_path, "train", Br.newline, labels=True)[1] == 2


def test_unlabelled_reviews_have_minus_one(folder):
    frame, _ = read(folder, "unsupervised", Br.newline, labels=False)
    assert set(frame["label"]) == {-1}
    assert frame["label"].dtype.kind == "i"


# --- refusals: one line that names the file and the way out


def refused(call, *arguments, **named) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_data(tmp_path):
    (tmp_path / "readme.txt").touch()
    assert refused(check, tmp_path).startswith(f"data.path={tmp_path} holds no data (one of .parquet, .csv,")


def test_a_split_that_is_missing(folder):
    (folder / "plain_text" / "test-00000-of-00001.parquet").unlink()
    message = refused(check, folder)
    assert message.startswith(f"data.path={folder} holds no file of split test; there are plain_text/train-00000")
    check(folder, test_splits=["train"])


def test_a_missing_column(folder):
    path, column = folder / "plain_text" / "train-00000-of-00001.parquet", "text"
    pd.read_parquet(path).rename(columns={column: "review"}).to_parquet(path)
    message = refused(check, folder)
    assert message.startswith(f"{path} has no column {column!r} (it has ") and "review" in message
    pd.read_parquet(path).rename(columns={"review": column}).to_parquet(path)
    check(folder)


def test_columns_of_other_names(folder):
    content = imdb.Kind(imdb_data(path=str(folder))).content()
    for path in (folder / "plain_text").iterdir():
        pd.read_parquet(path).rename(columns={"text": "review", "label": "stars"}).to_parquet(path)
    named = imdb.Kind(imdb_data(path=str(folder), text_column="review", label_column="stars"))
    assert named.content() == content  # where it is stored does not matter
    assert named.divide(0).texts["test"] == imdb.Kind(named.config).divide(0).texts["test"]


@pytest.mark.parametrize("damage", [b"", b"no parquet at all", b"PAR1 cut short"])
def test_a_file_that_is_no_parquet(folder, damage):
    path = folder / "plain_text" / "train-00000-of-00001.parquet"
    path.write_bytes(damage)
    assert refused(check, folder).startswith(f"{path} is not a readable parquet file: ")


def test_a_damaged_page(folder):
    """Its schema is whole, so that only reading shows it."""
    path = write_split(folder, "train", reviews("train", 2000))
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    assert refused(check, folder).startswith(f"{path} is not a readable parquet file: ")


def test_a_column_that_was_the_index(folder):
    path = folder / "plain_text" / "train-00000-of-00001.parquet"
    expected = read(folder, "train", Br.keep, labels=True)[0]
    pd.read_parquet(path).set_index("text").to_parquet(path)
    pd.testing.assert_frame_equal(read(folder, "train", Br.keep, labels=True)[0], expected)


def test_blanks_without_end():
    """They took time that grew with their square: minutes here."""
    text = "One." + " " * 300_000 + "Two. <br />" + "\n" * 300_000 + "<br />" + "\t" * 300_000 + "Three."
    assert imdb.one_per_line(text).split() == ["One.", "Two.", "Three."]


@pytest.mark.parametrize("wrong", [2, -2, 17])
@pytest.mark.parametrize("labels", [True, False])
def test_a_label_outside_its_range(tmp_path, wrong, labels):
    path = write_split(tmp_path, "train", ["a", "b", "c"], [0, 1, wrong])
    message = refused(read, tmp_path, "train", Br.keep, labels=labels)
    allowed = "[0, 1]" if labels else "[-1, 0, 1]"
    assert message == f"{path} row 2: label {wrong} is not one of {allowed}; mend the file"


def test_minus_one_where_labels_are_needed(folder):
    assert "row 0: label -1 is not one of [0, 1]" in refused(read, folder, "unsupervised", Br.keep, labels=True)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, 1),
        (True, 1),
        (-1, -1),
        (1.0, 1),
        ("0", 0),
        (" 1 ", 1),
        ("-1", -1),
        ("1.0", 1),  # as csv has it
        ("False", 0),
        ("pos", 1),
        ("Negative", 0),
        ("unsup", -1),
    ],
)
def test_labels_and_what_they_may_be_called(value, label):
    assert imdb.label_of(value) == label


@pytest.mark.parametrize("value", [None, 0.5, "", "good", "positively", "1.5", "0x1", [1], float("nan"), "9" * 400])
def test_what_is_no_label(value):
    assert imdb.label_of(value) is None


@pytest.mark.parametrize("labels", [["good", "bad"], [0.5, 1.0], [None, 1.0], [[0], [1]]])
def test_labels_that_are_no_whole_numbers(tmp_path, labels):
    write_split(tmp_path, "train", ["a", "b"], labels)
    assert "row 0: label " in refused(read, tmp_path, "train", Br.keep, labels=True)


@pytest.mark.parametrize("texts", [[1, 2], [b"a", b"b"], [["a"], ["b"]]])
def test_texts_that_are_no_strings(tmp_path, texts):
    path = write_split(tmp_path, "train", texts)
    assert refused(read, tmp_path, "train", Br.keep, labels=True).startswith(f"{path} row 0: text is not a string")


def test_a_split_without_rows(tmp_path):
    write_split(tmp_path, "train", [])
    frame, skipped = read(tmp_path, "train", Br.newline, labels=True)
    assert (len(frame), skipped) == (0, 0)


# --- the dataset itself


@pytest.mark.skipif(not (REAL / "plain_text").is_dir(), reason=f"no IMDb parquet in {REAL}")
@pytest.mark.parametrize(
    ("name", "size", "labels"),
    [
        ("train", 25_000, {0, 1}),
        ("test", 25_000, {0, 1}),
        pytest.param("unsupervised", 50_000, {-1}, marks=pytest.mark.slow),
    ],
)
def test_a_split_of_the_real_dataset(name, size, labels):
    check(REAL)
    frame, skipped = read(REAL, name, Br.newline, labels=name != "unsupervised")
    assert len(frame) + skipped == size
    assert set(frame["label"]) == labels
    assert not frame["text"].str.contains("<br />", regex=False).any()


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "plain_text").is_dir(), reason=f"no IMDb parquet in {REAL}")
def test_the_real_dataset_divided():
    prompts = tiny.prompts(train=2000, validation=100, test=200, max_tokens=8)
    reviews_by_role = imdb.Kind(imdb_data(sft_reviews=5000, prompts=prompts, path=str(REAL))).divide(500)
    removed = reviews_by_role.report["duplicates_removed"]
    assert removed["test"]["within"] > 0 and removed["train"]["within"] > 0
    assert removed["train"]["also in an earlier split"] > 0
    assert reviews_by_role.report["reviews"] == {"sft": 5000, "train": 2000, "validation": 100, "test": 200}
    texts = [text for role in reviews_by_role.texts.values() for text in role]
    assert len(set(texts)) == 7300
    validation = 100  # of the train split; its training prompts' labels may be used
    assert len(reviews_by_role.labelled) + sum(removed["train"].values()) + validation == 25_000


@pytest.mark.skipif(not (REAL / "plain_text").is_dir(), reason=f"no IMDb parquet in {REAL}")
def test_the_reviews_that_trls_example_keeps():
    """`len(x["review"]) > 200`, of the texts as they are."""
    texts = pd.concat(pd.read_parquet(path) for path in files_of(REAL, "train", "data.path"))["text"]
    kept = sum(len(text) > 200 for text in texts)
    frame, _ = read(REAL, "train", Br.newline, labels=True)
    assert int((frame["characters"] >= 201).sum()) == kept
    assert 24_000 < kept < 25_000


def test_labels_are_asked_for_only_where_a_reward_is_trained(tmp_path):
    texts = [f"A review, number {number}." for number in range(30)]
    for split in ("train", "test", "unsupervised"):
        pd.DataFrame({"text": [f"{split}: {text}" for text in texts]}).to_parquet(tmp_path / f"{split}.parquet")
    kind = Kind(imdb_data(path=str(tmp_path)))
    kind.check()
    assert len(kind.divide(0).texts["train"]) == 2
    for call in (kind.check_labels, lambda: kind.divide(2)):
        with pytest.raises(RunError, match="has no column 'label', which a reward that is trained needs$"):
            call()
    with pytest.raises(RunError, match="has no column 'sentiment'"):
        Kind(imdb_data(path=str(tmp_path), label_column="sentiment")).check()


def test_labels_that_are_not_needed_change_no_key_where_they_are(tmp_path):
    for split in ("train", "test", "unsupervised"):
        write_split(tmp_path, split, ["a", "b"])
    kind = Kind(imdb_data(path=str(tmp_path)))
    (rows,) = kind.splits_read["train"]
    assert rows.columns["label"] == [0, 1]
    kind.check_labels()
