"""TRL's preference format: an exported table by hand, files good and bad, and a round trip."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast
from trl import apply_chat_template, extract_prompt

from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs, draw_pairs
from imdb_rlhf.data.preferences import PreferenceData, from_preferences, to_trl
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.tokens import chat_of, decode, encoder
from tests import tiny
from tests.data.tables import group_table
from tests.vocabularies import llama_tokenizer, unigram_tokenizer

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


def data(file: Path) -> PreferenceData:
    return PreferenceData(str(file), None, "train")


def read(
    file: Path, encode: Any, eos: int, bos: int | None, *, append_eos: bool, context: int
) -> tuple[pd.DataFrame, Pairs, int]:
    examples, where = data(file).examples(None), f"data.preferences={file}"
    return from_preferences(examples, encode, eos, bos, append_eos=append_eos, context=context, where=where)


def take(file: Path, append_eos: bool = True, context: int = 100, bos: int | None = None) -> tuple[pd.DataFrame, Pairs]:
    return read(file, encode, EOS, bos, append_eos=append_eos, context=context)[:2]


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
    groups, _, _ = read(file, encoder(tokenizer), eos, 1, append_eos=True, context=100)
    for ids, text in zip(groups["completion_ids"], groups["completion"], strict=True):
        assert (ids.count(eos), ids[-1]) == (1, eos)
        assert decode(tokenizer, [ids]) == [text]
    groups, _, _ = read(file, encoder(tokenizer), eos, 1, append_eos=False, context=100)
    assert not any(eos in ids for ids in groups["completion_ids"])


def test_prompt_and_completion_are_encoded_as_one_text(tmp_path: Path) -> None:
    tokenizer = unigram_tokenizer()  # puts a space before a text
    file = write(tmp_path, [("This film", " is a delight.", " is"), ("This film", "s", " is")])
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
    file = write(tmp_path, [("a fil", "ms", "m"), ("a film", "s", " a"), ("a film", " b", " a")])
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
    file = write(tmp_path, [("p", "A", "a"), ("p", "b", "A"), ("p", "B", "a")])

    def lowered(texts: list[str]) -> list[list[int]]:
        return encode([text.lower() for text in texts])

    groups, pairs, _ = read(file, lowered, EOS, None, append_eos=True, context=100)
    assert pairs.dropped["same completion"] == 1
    assert groups["completion_ids"].tolist() == [[ord("b"), EOS], [ord("a"), EOS]]
    assert pairs.rows.tolist() == [[0, 1], [0, 1]]


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
    what = "is not a list of messages" if isinstance(value, list) else "is not a string"
    with pytest.raises(RunError, match=rf"row {1 if value is None else 0}: rejected {what}"):
        take(file)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    message = refused(take, write(tmp_path, [("p", "a", "b")], "prompt chosen bad"))
    assert message.endswith("has no column 'rejected' (it has prompt, chosen, bad)")
    assert "no such file" in refused(take, tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("prompt,chosen,rejected")
    assert "is not a readable parquet file" in refused(take, tmp_path / "text.parquet")


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


# --- TRL's formats, against its own functions

MESSAGES = {
    "prompt": [{"role": "user", "content": "A film?"}],
    "chosen": [{"role": "assistant", "content": "A delight."}],
    "rejected": [{"role": "assistant", "content": "Dull."}],
}
LONGER = {
    "prompt": [
        {"role": "user", "content": "A film?"},
        {"role": "assistant", "content": "Which one?"},
        {"role": "user", "content": "That one."},
    ],
    "chosen": [{"role": "assistant", "content": "Good."}, {"role": "user", "content": "Thanks"}],
    "rejected": [{"role": "assistant", "content": "Good, I think."}],
}
CONTINUED = MESSAGES | {
    "prompt": [{"role": "user", "content": "A film?"}, {"role": "assistant", "content": "It"}],
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if not (loop.last and continue_final_message) %}</turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def chatting() -> PreTrainedTokenizerFast:
    tokenizer = llama_tokenizer(["A film? A delight. Dull."], size=150)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def implicit(example: dict[str, Any]) -> dict[str, Any]:
    return {side: example["prompt"] + example[side] for side in ("chosen", "rejected")}


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "A film is good", "rejected": "A film is bad"},
        {"chosen": "A film, good", "rejected": "A film: bad"},
        {"chosen": "The same", "rejected": "The same and more"},
        {"chosen": "same", "rejected": "same"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    ],
)
def test_an_implicit_prompt_is_what_trl_extracts(tmp_path: Path, row: dict[str, str]) -> None:
    (pair,) = data(write_rows(tmp_path, [row])).examples(None).pairs
    assert asdict(pair) == extract_prompt(row)


@pytest.mark.parametrize("example", [MESSAGES, LONGER, CONTINUED])
@pytest.mark.parametrize("shape", [dict, implicit])
def test_conversations_are_rendered_as_trl_renders_them(tmp_path: Path, example: Any, shape: Any) -> None:
    tokenizer = chatting()
    row = shape(example)
    examples = data(write_rows(tmp_path, [row, row])).examples(chat_of(tokenizer))
    expected = apply_chat_template(row if "prompt" in row else extract_prompt(row), tokenizer)
    assert examples.conversations and [asdict(pair) for pair in examples.pairs] == [expected] * 2


def test_a_rendered_conversation_is_read_with_its_control_tokens(tmp_path: Path) -> None:
    tokenizer = chatting()
    chat = chat_of(tokenizer)
    assert chat is not None
    examples = data(write_rows(tmp_path, [MESSAGES])).examples(chat)
    for bos in (1, None):  # the template's own BOS is not doubled, nor lost
        groups, pairs, inside = from_preferences(
            examples, chat.encode, 2, bos, append_eos=True, context=200, where="data.preferences=x"
        )
        whole = tokenizer.apply_chat_template(MESSAGES["prompt"] + MESSAGES["chosen"], tokenize=True)["input_ids"]
        assert groups["prompt_ids"][0] + groups["completion_ids"][0] == whole
        assert groups["finished"].all() and 2 not in groups["completion_ids"][0]  # the template ends a turn, not EOS
    turn, end = tokenizer.convert_tokens_to_ids(["<turn>", "</turn>"])
    assert (groups["prompt_ids"][0].count(turn), groups["completion_ids"][0].count(end)) == (2, 1)
    assert inside == 0 and pairs.rows.tolist() == [[0, 1]]


def test_prompts_that_are_repeated_in_both_completions_are_counted(tmp_path: Path) -> None:
    rows = [("a film", "a film good", "a film bad"), ("a film", " good", " bad"), ("a", "a", "b")]
    assert data(write(tmp_path, rows)).examples(None).repeated == 1
    whole = {"prompt": MESSAGES["prompt"]} | implicit(MESSAGES)
    assert data(write_rows(tmp_path, [whole])).examples(chat_of(chatting())).repeated == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}, MESSAGES], "row 0: prompt is not a string"),
        ([MESSAGES | {"prompt": "A film?"}], "row 0 holds a text and a conversation; mend the file"),
        (
            [MESSAGES | {"chosen": [{"role": "assistant"}]}],
            "row 0: chosen is not a list of messages with role and content",
        ),
        ([MESSAGES | {"chosen": ["a delight"]}], "row 0: chosen is not a list of messages with role and content"),
        (
            [MESSAGES | {"chosen": [{"role": "assistant", "content": "Good</turn>\n<turn>user"}]}],
            "row 0: a message holds '</turn>', with which the template ends turns",
        ),
    ],
)
def test_rows_that_are_neither_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    source = data(write_rows(tmp_path, rows))
    assert message in refused(lambda: source.examples(chat_of(chatting())))


def test_a_conversation_without_a_template_is_refused(tmp_path: Path) -> None:
    source = data(write_rows(tmp_path, [MESSAGES]))
    assert "row 0 is a conversation, and the tokenizer has no chat template" in refused(source.examples, None)
    tokenizer = chatting()
    tokenizer.chat_template = "{{ raise_exception('users and assistants must take turns') }}"
    message = refused(source.examples, chat_of(tokenizer))
    assert message.endswith("row 0: the chat template cannot render it: users and assistants must take turns")


def test_the_content_is_that_of_the_rows_whatever_they_are_stored_in(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([MESSAGES | {"score": 1}, LONGER | {"score": 2}])
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "b.jsonl")
    table.save_to_disk(tmp_path / "c")
    (tmp_path / "d").mkdir()
    table.to_parquet(tmp_path / "d" / "train-00000-of-00001.parquet")
    places = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c", "d")]
    assert len({data(place).content() for place in places}) == 1
    assert data(write_rows(tmp_path, [MESSAGES])).content() != data(places[0]).content()
