"""Real reviews in the Hub's layout, with a true reward that is trained on them."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from imdb_rlhf.artifacts.files import check_manifest
from tests.command import train
from tests.experiments import (
    PLAIN,
    STEPS,
    one_line,
    runs,
    stages_made,
    well,
)

# --- real reviews and a reward that is trained


def review(split: str, number: int) -> str:
    opinion = "a wonderful and moving film that I loved" if number % 2 else "a dull and lifeless film that I hated"
    return f"Number {number} of {split} is {opinion}.<br /><br />The story of {number} people goes on for some time."


@pytest.fixture
def reviews(tmp_path) -> Path:
    """Parquet files in the Hub's layout."""
    folder = tmp_path / "reviews"
    (folder / "plain_text").mkdir(parents=True)
    for split in ("train", "test", "unsupervised"):
        texts = [review(split, number) for number in range(80)]
        labels = [-1] * 80 if split == "unsupervised" else [number % 2 for number in range(80)]
        frame = pd.DataFrame({"text": [*texts, texts[0], "", "A film."], "label": [*labels, *labels[:1] * 3]})
        frame.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


REAL = [*PLAIN, "data=imdb", "data.sft_reviews=60", "data.min_characters=8"]


def test_real_reviews_and_a_two_label_reward(reviews, tmp_path):
    reward = ["reward=two_label", "reward.held_out=20", "reward.epochs=1", "reward.batch_size=16"]
    values = [*REAL, *reward, *STEPS, "pairs.min_margin=0", f"data.path={reviews}", f"paths.outputs={tmp_path}/outputs"]
    answer = well(train(*values))
    stages = ["data", "sft", "labelled", "two_label", "groups", "reference"]
    assert list(stages_made(answer).items()) == [(name, True) for name in stages]
    assert "3 duplicate, 3 short and 3 empty reviews left out" in answer.out
    (folder,) = runs(tmp_path / "outputs")
    assert check_manifest(folder) is None
    keys = json.loads((folder / "artifacts.json").read_text())
    artifact = tmp_path / "outputs" / "artifacts" / "two_label" / keys["two_label"]
    report = json.loads((artifact / "report.json").read_text())
    assert report["held_out"] == 20 and 0 <= report["accuracy"] <= 1 and 0 <= report["ngram_accuracy"] <= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["reward_name"], summary["data_name"]) == ("two_label", "imdb")
    assert 0 < summary["reward"] < 1
    # the folder may move: what counts is what is in it
    moved = reviews.rename(tmp_path / "moved")
    again = well(train(*values, f"data.path={moved}"))
    assert "finished already" in again.out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "data.path={path}: no such folder; give one that exists"),
        ("empty", "data.path={path} holds no data (one of .parquet, .csv, "),
        ("column", "{path}/plain_text/train-00000-of-00001.parquet has no column 'text' (it has "),
        (
            "label",
            "{path}/plain_text/train-00000-of-00001.parquet row 3: label 2 is not one of [-1, 0, 1]; mend the file",
        ),
        ("few", "data.prompts.test=8 is more than the 5 usable reviews left in test of {path}; ask for fewer"),
        ("blank", "data.prompts.test=8 is more than the 0 usable reviews left in test of {path}; ask for fewer"),
    ],
)
def test_a_data_folder_that_cannot_be_used(reviews, tmp_path, damage, message):
    train_file, test_file = (reviews / "plain_text" / f"{s}-00000-of-00001.parquet" for s in ("train", "test"))
    frame = pd.read_parquet(train_file)
    if damage == "missing":
        shutil.rmtree(reviews)
    elif damage == "empty":
        shutil.rmtree(reviews / "plain_text")
    elif damage == "column":
        frame.rename(columns={"text": "review"}).to_parquet(train_file)
    elif damage == "label":
        frame.assign(label=[0, 1, 0, 2, *[0] * (len(frame) - 4)]).to_parquet(train_file)
    elif damage == "few":
        frame.head(5).to_parquet(test_file)
    elif damage == "blank":
        frame.assign(text=None).to_parquet(test_file)
    answer = train(*REAL, f"data.path={reviews}", f"paths.outputs={tmp_path}/new")
    one_line(answer, 1, f"failed: {message.format(path=reviews)}")
    assert not runs(tmp_path / "new") or not (runs(tmp_path / "new")[0] / "DONE").exists()
