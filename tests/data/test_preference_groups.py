"""Groups as preferences, by hand; preferences as groups, token by token; and there and back."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs, draw_pairs
from imdb_rlhf.data.preference_groups import from_preferences, to_trl
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.tokens import decode, encoder
from tests import tiny
from tests.data.tables import group_table, preference_data, write_pairs
from tests.vocabularies import llama_tokenizer, unigram_tokenizer

EOS = 9


def encode(texts: list[str]) -> list[list[int]]:
    """One token per character."""
    return [[ord(letter) for letter in text] for text in texts]


def read(
    file: Path, encode: Any, eos: int, bos: int | None, *, append_eos: bool, context: int
) -> tuple[pd.DataFrame, Pairs, int]:
    examples, where = preference_data(file).examples(None), f"data.preferences={file}"
    return from_preferences(examples, encode, eos, bos, append_eos=append_eos, context=context, where=where)


def take(file: Path, append_eos: bool = True, context: int = 100, bos: int | None = None) -> tuple[pd.DataFrame, Pairs]:
    return read(file, encode, EOS, bos, append_eos=append_eos, context=context)[:2]


def test_the_exported_table_by_hand() -> None:
    groups = pd.DataFrame(
        {
            "prompt_id": [0, 0, 0, 1, 1],
            "prompt": ["The film"] * 3 + ["A plot"] * 2,
            "completion": [" is dull", " is good", " is dull", " x", " y"],
            "reward_logit": [-1.0, 2.0, -0.5, 1.0, 1.0],
        }
    )
    exported = to_trl(groups)
    assert exported.to_dict("list") == {
        "prompt": ["The film", "The film"],
        "chosen": [" is good", " is good"],
        "rejected": [" is dull", " is dull"],
        "score_chosen": [2.0, 2.0],
        "score_rejected": [-1.0, -0.5],
    }
    assert list(to_trl(groups[3:]).columns) == list(exported.columns)  # also where it has no rows


def test_a_preference_file_becomes_groups(tmp_path: Path) -> None:
    rows = [("p", "a", "b"), ("q", "c", "d"), ("p", "a", "c"), ("p", "b", "c")]
    groups, pairs = take(write_pairs(tmp_path, rows))
    assert list(groups.columns) == COLUMNS
    texts = list(zip(groups["prompt"], groups["completion"], strict=True))
    assert texts == [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d"), ("p", "c")]  # each completion once a prompt
    assert groups["completion_ids"].tolist() == [[ord(text), EOS] for _, text in texts]
    assert groups["prompt_ids"].tolist() == [[ord(prompt)] for prompt, _ in texts]
    assert groups["sample_id"].tolist() == [0, 1, 0, 1, 2]
    assert [tuple(texts[i] for i in pair) for pair in pairs.rows] == [
        (("p", "a"), ("p", "b")),
        (("p", "a"), ("p", "c")),
        (("p", "b"), ("p", "c")),
        (("q", "c"), ("q", "d")),
    ]
    assert pairs.prompts.tolist() == [0, 0, 0, 1]  # the pairs of a prompt are neighbours
    assert groups["reward"].tolist() == [1, 0, 1, 0, 0]  # b: chosen as often as rejected
    assert groups["ref_logprob"].isna().all()
    assert groups["finished"].all()


def test_eos_is_appended_only_where_it_is_wanted(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, [("p", "ab", "c")])
    assert [ids[-1] for ids in take(file)[0]["completion_ids"]] == [EOS, EOS]
    groups, _ = take(file, append_eos=False)
    assert groups["completion_ids"].tolist() == [[ord("a"), ord("b")], [ord("c")]]
    assert not groups["finished"].any()


def test_prompts_begin_with_bos_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, [("p", "a", "b"), ("", "a", "b"), ("p", "a" * 8, "b")])
    groups, pairs = take(file, append_eos=False, context=9, bos=7)
    assert groups["prompt_ids"].tolist() == [[7, ord("p")]] * 2
    assert groups["completion_ids"].tolist() == [[ord("a")], [ord("b")]] and groups["prompt"].tolist() == ["p", "p"]
    assert pairs.dropped == {"same completion": 0, "empty": 1, "longer than the context": 1}  # BOS takes the last place


def test_a_completion_that_names_eos_ends_in_eos_all_the_same(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(["a film"])
    eos, file = tokenizer.eos_token_id, write_pairs(tmp_path, [("a film", " good<eos>", " <eos> bad")])
    groups, _, _ = read(file, encoder(tokenizer), eos, 1, append_eos=True, context=100)
    for ids, text in zip(groups["completion_ids"], groups["completion"], strict=True):
        assert (ids.count(eos), ids[-1]) == (1, eos)
        assert decode(tokenizer, [ids]) == [text]
    groups, _, _ = read(file, encoder(tokenizer), eos, 1, append_eos=False, context=100)
    assert not any(eos in ids for ids in groups["completion_ids"])


def test_prompt_and_completion_are_encoded_as_one_text(tmp_path: Path) -> None:
    tokenizer = unigram_tokenizer()  # puts a space before a text
    file = write_pairs(tmp_path, [("This film", " is a delight.", " is"), ("This film", "s", " is")])
    groups, pairs, inside = read(file, encoder(tokenizer), 1, None, append_eos=False, context=100)
    rows = [
        prompt + completion for prompt, completion in zip(groups["prompt_ids"], groups["completion_ids"], strict=True)
    ]
    assert decode(tokenizer, rows) == ["This film is a delight.", "This film is", "This films"]
    assert rows == encoder(tokenizer)(["This film is a delight.", "This film is", "This films"])
    assert groups["prompt_ids"].tolist() == encoder(tokenizer)(["This film"]) * 3
    assert inside == 0 and pairs.rows.tolist() == [[0, 1], [2, 1]]


def test_a_token_in_which_the_prompt_ends_belongs_to_the_completions(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(["films"])  # f, fi, fil, film, films
    file = write_pairs(tmp_path, [("a fil", "ms", "m"), ("a film", "s", " a"), ("a film", " b", " a")])
    groups, pairs, inside = read(file, encoder(tokenizer), 2, 1, append_eos=False, context=100)
    a, blank, films, film = (tokenizer.convert_tokens_to_ids(name) for name in ("a", "▁", "films", "film"))
    b = tokenizer.convert_tokens_to_ids("b")
    assert groups["prompt_ids"].tolist() == [[1, a, blank]] * 4 + [[1, a, blank, film]] * 2
    assert groups["completion_ids"].tolist() == [
        *([films], [film]),
        *([films], [film, blank, a]),
        *([blank, b], [blank, a]),  # " a" again, after other tokens of the prompt
    ]
    assert inside == 2 and pairs.rows.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_completions_are_compared_as_tokens(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, [("p", "A", "a"), ("p", "b", "A"), ("p", "B", "a")])

    def lowered(texts: list[str]) -> list[list[int]]:
        return encode([text.lower() for text in texts])

    groups, pairs, _ = read(file, lowered, EOS, None, append_eos=True, context=100)
    assert pairs.dropped["same completion"] == 1
    assert groups["completion_ids"].tolist() == [[ord("b"), EOS], [ord("a"), EOS]]
    assert pairs.rows.tolist() == [[0, 1], [0, 1]]


def test_pairs_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [("p", "a", "a"), ("", "a", "b"), ("p", "", "b"), ("p", "a" * 9, "b"), ("p", "a" * 8, "b")]
    groups, pairs = take(write_pairs(tmp_path, rows), append_eos=False, context=9)
    assert groups["completion"].tolist() == ["a" * 8, "b"]
    assert pairs.dropped == {"same completion": 1, "empty": 2, "longer than the context": 1}
    # with EOS the empty text is EOS alone, and the longest has no room
    groups, pairs = take(write_pairs(tmp_path, rows), context=9)
    assert groups["completion_ids"].tolist() == [[EOS], [ord("b"), EOS]]
    assert pairs.dropped == {"same completion": 1, "empty": 1, "longer than the context": 2}


def test_no_usable_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no pair is left of 2 .*2 same completion"):
        take(write_pairs(tmp_path, [("p", "a", "a"), ("q", "b", "b")]))
    with pytest.raises(RunError, match="no pair is left of 0"):
        take(write_pairs(tmp_path, []))


def test_what_is_exported_can_be_read_back(tmp_path: Path) -> None:
    groups = group_table([[0.0, 1.0, 2.0, 3.0]] * 2)
    groups["prompt"] = [f"prompt {prompt}" for prompt in groups["prompt_id"]]
    groups["completion"] = [f" text {at}" for at in range(8)]
    to_trl(groups).to_parquet(tmp_path / "preferences.parquet", index=False)
    back, pairs = take(tmp_path / "preferences.parquet")
    texts = back["completion"].tolist()
    drawn = draw_pairs(groups, tiny.pairs(), 0)
    expected = {(f" text {best}", f" text {worst}") for best, worst in drawn.rows}
    assert {(texts[best], texts[worst]) for best, worst in pairs.rows} == expected
    assert len(pairs.rows) == 12
