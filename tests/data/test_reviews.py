"""The role of each review: disjoint, in the order of the splits, a function of the seed."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.config.data import DataConfig, EmbeddedData, ImdbData, PromptsConfig
from imdb_rlhf.data.reviews import PROMPT_ROLES, Reviews, content_of, dataset_of, divide_reviews
from imdb_rlhf.errors import RunError
from imdb_rlhf.stages.reviews import data_config
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.command import run_of
from tests.data.tables import imdb_data, write_split

LENGTHS = PromptsConfig(train=20, validation=5, test=10, min_tokens=2, max_tokens=8)


def imdb_config(**changes: Any) -> ImdbData:
    return imdb_data(**{"sft_reviews": 30, "prompts": LENGTHS, **changes})


def embedded_config(**changes: Any) -> EmbeddedData:
    return tiny.data(**{"sft_reviews": 30, "labelled_reviews": 12, "prompts": LENGTHS, **changes})


def review(split: str, number: int) -> str:
    return f"Review {number} of the {split} split is long enough to make a prompt of."


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "test"):
        write_split(tmp_path, split, [review(split, number) for number in range(40)])
    write_split(tmp_path, "unsupervised", [review("unsupervised", number) for number in range(40)], [-1] * 40)
    return tmp_path


# --- roles


def divide(config: DataConfig, held_out: int, folder: Path | None = None) -> Reviews:
    """The reviews of a dataset, real ones from this folder."""
    if isinstance(config, ImdbData):
        config.path = str(folder)
    return dataset_of(config).divide(held_out)


def roles(reviews: Reviews) -> list[set[str]]:
    return [set(reviews.texts[role]) for role in ("sft", *PROMPT_ROLES)]


def assert_disjoint(reviews: Reviews, sizes: list[int]) -> None:
    sets = roles(reviews)
    assert [len(texts) for texts in sets] == sizes
    assert len(set[str]().union(*sets)) == sum(sizes)


def test_no_text_serves_twice(folder):
    reviews = divide(imdb_config(), 0, folder)
    assert_disjoint(reviews, [30, 20, 5, 10])
    assert reviews.report["reviews"] == {"sft": 30, "train": 20, "validation": 5, "test": 10}
    assert len(reviews.labelled) == len(reviews.held_out) == 0


def test_splits_are_asked_in_their_order(folder):
    reviews = divide(imdb_config(sft_reviews=45), 0, folder)
    assert all(" test split" in text for text in reviews.texts["test"])
    assert all(" train split" in text for role in ("train", "validation") for text in reviews.texts[role])
    of_split = Counter("unsupervised" in text for text in reviews.texts["sft"])
    assert of_split == {True: 40, False: 5}


def test_prompts_go_on_in_the_next_split(folder):
    wanted = PromptsConfig(train=50, validation=5, test=10, min_tokens=2, max_tokens=8)
    reviews = divide(imdb_config(prompts=wanted, sft_reviews=25), 0, folder)
    assert Counter("unsupervised" in text for text in reviews.texts["train"]) == {False: 35, True: 15}
    assert_disjoint(reviews, [25, 50, 5, 10])


def test_a_reward_is_held_to_account_on_reviews_that_nothing_else_sees(folder):
    reviews = divide(imdb_config(), 7, folder)
    assert len(reviews.held_out) == 7 and set(reviews.held_out.columns) >= {"text", "label"}
    held = set(reviews.held_out["text"])
    assert all(" test split" in text for text in held)
    assert not held & set[str]().union(*roles(reviews))
    assert set(reviews.labelled["label"]) == {0, 1}
    everything = {review("train", number) for number in range(40)}
    assert set(reviews.labelled["text"]) == everything - set(reviews.texts["validation"])
    assert not held & set(reviews.labelled["text"])


def test_labels_stay_with_their_texts(folder):
    reviews = divide(imdb_config(), 7, folder)
    for frame in (reviews.labelled, reviews.held_out):
        assert [int(re.findall(r"\d+", text)[0]) % 2 for text in frame["text"]] == frame["label"].tolist()


def test_two_splits_with_labels(folder):
    reviews = divide(imdb_config(labelled_splits=["train", "test"]), 7, folder)
    everything = {review(split, number) for split in ("train", "test") for number in range(40)}
    apart = set(reviews.held_out["text"]) | set(reviews.texts["test"]) | set(reviews.texts["validation"])
    assert set(reviews.labelled["text"]) == everything - apart
    assert len(reviews.labelled) == 80 - 7 - 10 - 5


@pytest.mark.parametrize("kind", ["imdb", "embedded"])
def test_who_serves_what_does_not_depend_on_what_is_held_out(folder, kind):
    config = imdb_config(labelled_splits=["train", "test"]) if kind == "imdb" else embedded_config()
    none, some, more = (divide(config, count, folder) for count in (0, 5, 9))
    assert none.texts == some.texts == more.texts
    assert some.held_out["text"].tolist() == more.held_out["text"].tolist()[:5]


def test_one_split_can_serve_everything(folder):
    everywhere = {name: ["train"] for name in ("prompt_splits", "test_splits", "sft_splits")}
    reviews = divide(imdb_config(sft_reviews=2, **everywhere), 3, folder)
    assert_disjoint(reviews, [2, 20, 5, 10])
    assert len(reviews.labelled) == 40 - 3 - 10 - 5  # neither held out nor a test or validation prompt's
    assert not set(reviews.held_out["text"]) & (set(reviews.labelled["text"]) | set[str]().union(*roles(reviews)))


def test_duplicates_are_removed_and_counted(tmp_path):
    write_split(tmp_path, "test", [*(review("test", n) for n in range(12)), review("test", 3), review("test", 3)])
    same = [
        review("test", 0).upper(),
        review("test", 1).replace(" ", "  "),
        review("test", 2).replace("is", "<br />is"),
    ]
    write_split(tmp_path, "train", [*(review("train", n) for n in range(30)), review("train", 4), *same])
    unsupervised = [review("unsupervised", n) for n in range(30)]
    write_split(tmp_path, "unsupervised", [*unsupervised, review("train", 7), review("test", 5)], [-1] * 32)
    reviews = divide(imdb_config(sft_reviews=30), 0, tmp_path)
    assert reviews.report["duplicates_removed"] == {
        "test": {"within": 2, "also in an earlier split": 0},
        "train": {"within": 1, "also in an earlier split": 3},
        "unsupervised": {"within": 0, "also in an earlier split": 2},
    }
    assert set(reviews.texts["sft"]) == set(unsupervised)  # 30 asked for, and no duplicate among them
    with pytest.raises(RunError, match="data.prompts.train=30 is more than the 25 usable"):
        wanted = PromptsConfig(train=30, validation=5, test=10, min_tokens=2, max_tokens=8)
        divide(imdb_config(prompts=wanted, prompt_splits=["train"]), 0, tmp_path)


def test_empty_texts_and_short_ones_are_counted(folder):
    texts = [review("train", number) for number in range(25)]
    write_split(folder, "train", [*texts, "", None, *(f"Short {n}." for n in range(300))], [0] * 327)
    reviews = divide(imdb_config(sft_splits=["unsupervised"]), 0, folder)
    assert reviews.report["empty_texts_skipped"] == {"test": 0, "train": 2, "unsupervised": 0}
    assert set(reviews.texts["train"]) | set(reviews.texts["validation"]) == set(texts)
    # all 25 long ones are wanted, so nearly all of the 300 short ones are passed over, and none twice
    assert 200 < reviews.report["too_short_for_a_prompt"] <= 300


def test_short_reviews_are_used_for_nothing_and_counted(tmp_path):
    """10 words in 20 to 24 characters; the shortest that is used has 22, `<br />` included."""
    words = " ".join("abcdefghij")  # 19 characters
    texts = [f"{words}{'.' * more}{number}" for number, more in enumerate([0, 1, 2, 3, 4])]  # 20 to 24
    for split in ("train", "test"):
        write_split(tmp_path, split, [f"{split[1]}{text[1:]}" for text in texts])
    write_split(tmp_path, "unsupervised", [f"u{text[1:]}" for text in texts] + [words[:-3] + "<br />"], [-1] * 6)
    wanted = PromptsConfig(train=2, validation=1, test=3, min_tokens=2, max_tokens=8)
    config = imdb_config(prompts=wanted, sft_reviews=4, min_characters=22)
    reviews = divide(config, 0, tmp_path)
    assert reviews.report["short_texts_skipped"] == {"test": 2, "train": 2, "unsupervised": 2}
    used = [text for role in ("sft", *PROMPT_ROLES) for text in reviews.texts[role]]
    assert len(used) == 10 and all(len(text) >= 22 or text == words[:-3].strip() for text in used)
    kept = divide(imdb_config(prompts=wanted, sft_reviews=4), 0, tmp_path)
    assert kept.report["short_texts_skipped"] == {"test": 0, "train": 0, "unsupervised": 0}
    with pytest.raises(
        RunError, match=r"^data.sft_reviews=5 is more than the 4 usable reviews left in .*; ask for fewer"
    ):
        divide(imdb_config(prompts=wanted, sft_reviews=5, min_characters=22), 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "held_out", "key"),
    [
        ({"sft_reviews": 100}, 0, "data.sft_reviews=100 is more than the 55 usable"),
        ({"prompts": PromptsConfig(70, 5, 10, 2, 8), "sft_reviews": 1}, 0, None),
        ({"prompts": PromptsConfig(76, 5, 10, 2, 8), "sft_reviews": 1}, 0, "data.prompts.train=76 is more than the 75"),
        ({"prompts": PromptsConfig(20, 81, 10, 2, 8)}, 0, "data.prompts.validation=81 is more than the 80"),
        ({"prompts": PromptsConfig(20, 5, 41, 2, 8)}, 0, "data.prompts.test=41 is more than the 40"),
        ({}, 31, "reward.held_out=31 is more than the 30"),
    ],
)
def test_fewer_reviews_than_asked_for(folder, changes, held_out, key):
    if key is None:
        divide(imdb_config(**changes), held_out, folder)
        return
    with pytest.raises(RunError) as caught:
        divide(imdb_config(**changes), held_out, folder)
    assert str(caught.value).startswith(key)
    assert str(caught.value).endswith(f"of {folder}; ask for fewer")


def test_too_few_remain_after_the_empty_ones(folder):
    write_split(folder, "test", [review("test", 0), *[""] * 39])
    with pytest.raises(RunError, match="data.prompts.test=10 is more than the 1 usable reviews left in test of"):
        divide(imdb_config(), 0, folder)


def test_labels_are_checked_where_they_are_needed_alone(folder):
    write_split(folder, "train", [review("train", number) for number in range(40)], [-1] * 40)
    divide(imdb_config(), 0, folder)
    with pytest.raises(RunError, match=r"train.*row 0: label -1 is not one of \[0, 1\]"):
        divide(imdb_config(), 5, folder)


def test_one_label_is_no_two_label_reward(folder):
    write_split(folder, "train", [review("train", number) for number in range(40)], [1] * 40)
    with pytest.raises(RunError, match="train has one label only; a two-label reward needs both"):
        divide(imdb_config(), 5, folder)


def test_generated_reviews_are_disjoint_too():
    reviews = divide(embedded_config(), 6)
    assert_disjoint(reviews, [30, 20, 5, 10])
    assert (len(reviews.labelled), len(reviews.held_out)) == (12, 6)
    labelled, held = set(reviews.labelled["text"]), set(reviews.held_out["text"])
    assert not (labelled & held or (labelled | held) & set[str]().union(*roles(reviews)))
    assert len(divide(embedded_config(), 0).labelled) == 0


def divided(kind: str, folder: Path, seed: int) -> dict[str, list[str]]:
    config = imdb_config(seed=seed) if kind == "imdb" else embedded_config(seed=seed)
    return divide(config, 3, folder).texts


@pytest.mark.parametrize("kind", ["imdb", "embedded"])
def test_a_function_of_the_seed(folder, kind):
    assert divided(kind, folder, 0) == divided(kind, folder, 0)
    first, other = divided(kind, folder, 0), divided(kind, folder, 1)
    assert all(first[role] != other[role] for role in first)


def test_more_reviews_for_sft_leave_the_prompts_alone(folder):
    few, many = (divide(imdb_config(sft_reviews=n), 0, folder).texts for n in (10, 40))
    assert all(few[role] == many[role] for role in PROMPT_ROLES)
    assert many["sft"][:10] == few["sft"]


# --- a dataset that is not whole


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_use_without_reviews(monkeypatch):
    config, kind = embedded_config(), type(dataset_of(embedded_config()))
    whole = kind(config).divide(0)
    for role in ("sft", *PROMPT_ROLES):
        texts = {key: value for key, value in whole.texts.items() if key != role}
        for left in (texts, texts | {role: []}):
            monkeypatch.setattr(kind, "divide", lambda self, held_out, left=left: replace(whole, texts=left))
            message = f"data={config.name}: imdb_rlhf.data.embedded.Kind.divide leaves {role} without reviews"
            assert refusal(divide_reviews, dataset_of(config), 0) == message


def test_labels_that_are_not_there(monkeypatch):
    config, kind = embedded_config(), type(dataset_of(embedded_config()))
    whole = kind(config).divide(0)
    monkeypatch.setattr(kind, "divide", lambda self, held_out: whole)
    assert divide_reviews(dataset_of(config), 0) is whole
    assert refusal(divide_reviews, dataset_of(config), 5).endswith(
        "Kind.divide leaves labelled without rows of text and label"
    )


@pytest.mark.parametrize("content", [None, "", 3])
def test_a_content_that_is_no_hash(monkeypatch, content):
    config = embedded_config()
    monkeypatch.setattr(type(dataset_of(config)), "content", lambda self: content)
    assert refusal(content_of, dataset_of(config)) == (
        f"data={config.name}: imdb_rlhf.data.embedded.Kind.content returns {content!r}; return a hash"
    )


def test_a_label_key_may_be_a_place_and_must_be_a_key(monkeypatch, tmp_path):
    run = run_of("data=imdb", f"data.path={tmp_path}", f"paths.outputs={tmp_path}")
    flow = Flow(run, Runtime(run.trainer), Console(quiet=True), ())
    kind = type(dataset_of(run.data))
    monkeypatch.setattr(kind, "label_keys", ("path", "labelled_splits"))
    data, labels = data_config(flow)
    assert labels == {"labelled_splits": ["train"]} and "path" not in data
    monkeypatch.setattr(kind, "label_keys", ("labels",))
    message = "imdb_rlhf.data.imdb.Kind has labels among its label_keys, and data.labels is no key"
    assert refusal(data_config, flow) == message
