"""TRL's preference format: an exported table by hand, files good and bad, and a round trip."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs, draw_pairs
from imdb_rlhf.data.preferences import check_preferences, from_preferences, to_trl
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.tokens import decode, encoder
from tests import tiny
from tests.data.tables import group_table
from tests.vocabularies import llama_tokenizer

EOS = 9

# --- out


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


# --- in


def encode(texts: list[str]) -> list[list[int]]:
    """One token per character."""
    return [[ord(letter) for letter in text] for text in texts]


def write(folder: Path, rows: list[tuple[Any, ...]], columns: str = "prompt chosen rejected") -> Path:
    pd.DataFrame(rows, columns=columns.split()).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def take(file: Path, append_eos: bool = True, context: int = 100, bos: int | None = None) -> tuple[pd.DataFrame, Pairs]:
    return from_preferences(file, encode, EOS, bos, append_eos=append_eos, context=context)


def test_a_preference_file_becomes_groups(tmp_path: Path) -> None:
    rows = [("p", "a", "b"), ("q", "c", "d"), ("p", "a", "c"), ("p", "b", "c")]
    groups, pairs = take(write(tmp_path, rows))
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
    file = write(tmp_path, [("p", "ab", "c")])
    assert [ids[-1] for ids in take(file)[0]["completion_ids"]] == [EOS, EOS]
    groups, _ = take(file, append_eos=False)
    assert groups["completion_ids"].tolist() == [[ord("a"), ord("b")], [ord("c")]]
    assert not groups["finished"].any()


def test_prompts_begin_with_bos_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    file = write(tmp_path, [("p", "a", "b"), ("", "a", "b"), ("p", "a" * 8, "b")])
    groups, pairs = take(file, append_eos=False, context=9, bos=7)
    assert groups["prompt_ids"].tolist() == [[7, ord("p")]] * 2
    assert groups["completion_ids"].tolist() == [[ord("a")], [ord("b")]] and groups["prompt"].tolist() == ["p", "p"]
    assert pairs.dropped == {"same completion": 0, "empty": 1, "longer than the context": 1}  # BOS takes the last place


def test_a_completion_that_names_eos_ends_in_eos_all_the_same(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(["a film"])
    eos, file = tokenizer.eos_token_id, write(tmp_path, [("a film", " good<eos>", " <eos> bad")])
    groups, _ = from_preferences(file, encoder(tokenizer), eos, 1, append_eos=True, context=100)
    for ids, text in zip(groups["completion_ids"], groups["completion"], strict=True):
        assert (ids.count(eos), ids[-1]) == (1, eos)
        assert decode(tokenizer, [ids]) == [text]
    groups, _ = from_preferences(file, encoder(tokenizer), eos, 1, append_eos=False, context=100)
    assert not any(eos in ids for ids in groups["completion_ids"])


def test_pairs_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [("p", "a", "a"), ("", "a", "b"), ("p", "", "b"), ("p", "a" * 9, "b"), ("p", "a" * 8, "b")]
    groups, pairs = take(write(tmp_path, rows), append_eos=False, context=9)
    assert groups["completion"].tolist() == ["a" * 8, "b"]
    assert pairs.dropped == {"same completion": 1, "empty": 2, "longer than the context": 1}
    # with EOS the empty text is EOS alone, and the longest has no room
    groups, pairs = take(write(tmp_path, rows), context=9)
    assert groups["completion_ids"].tolist() == [[EOS], [ord("b"), EOS]]
    assert pairs.dropped == {"same completion": 1, "empty": 1, "longer than the context": 2}


def test_no_usable_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no pair is left of 2 .*2 same completion"):
        take(write(tmp_path, [("p", "a", "a"), ("q", "b", "b")]))
    with pytest.raises(RunError, match="no pair is left of 0"):
        take(write(tmp_path, []))


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_a_value_that_is_no_string_is_refused(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "pairs.parquet"
    good = [["x"], ["x"]] if isinstance(value, list) else ["x", "y"] if value is None else [1, 2]
    rejected = [*good[:1], value]
    pd.DataFrame({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": rejected}).to_parquet(file)
    with pytest.raises(RunError, match=rf"row {1 if value is None else 0}: rejected is not a string"):
        take(file)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no column 'rejected' \\(it has prompt, chosen, bad\\)"):
        check_preferences(write(tmp_path, [("p", "a", "b")], "prompt chosen bad"))
    with pytest.raises(RunError, match="no such file"):
        check_preferences(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("prompt,chosen,rejected")
    with pytest.raises(RunError, match="not a readable parquet") as caught:
        check_preferences(tmp_path / "text.parquet")
    assert "\n" not in str(caught.value)


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    file = write(tmp_path, [("b", 1.0, "a", "p")], "rejected score chosen prompt")
    groups, pairs = take(file)
    assert groups["completion"].tolist() == ["a", "b"]
    assert pairs.rows.tolist() == [[0, 1]]


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
