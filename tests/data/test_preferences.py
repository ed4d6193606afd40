"""TRL's formats, against its own functions; rows and files that are none."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast
from trl import apply_chat_template, extract_prompt, maybe_extract_prompt

from imdb_rlhf.data.preference_groups import from_preferences
from imdb_rlhf.data.preferences import Example
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.tokens import chat_of
from tests.data.tables import preference_data, write_pairs
from tests.vocabularies import llama_tokenizer


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_a_value_that_is_no_string_is_refused(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "pairs.parquet"
    good = [["x"], ["x"]] if isinstance(value, list) else ["x", "y"] if value is None else [1, 2]
    rejected = [*good[:1], value]
    pd.DataFrame({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": rejected}).to_parquet(file)
    what = "is not a list of messages" if isinstance(value, list) else "is not a string"
    with pytest.raises(RunError, match=rf"row {1 if value is None else 0}: rejected {what}"):
        preference_data(file).examples(None)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    message = refused(preference_data(write_pairs(tmp_path, [("p", "a", "b")], "prompt chosen bad")).examples, None)
    assert message.endswith("has no column 'rejected' (it has prompt, chosen, bad)")
    assert "no such file" in refused(preference_data(tmp_path / "absent.parquet").examples, None)
    (tmp_path / "text.parquet").write_text("prompt,chosen,rejected")
    assert "is not a readable parquet file" in refused(preference_data(tmp_path / "text.parquet").examples, None)


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, [("b", 1.0, "a", "p")], "rejected score chosen prompt")
    assert preference_data(file).examples(None).pairs == [Example("p", "a", "b")]


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
    (pair,) = preference_data(write_rows(tmp_path, [row])).examples(None).pairs
    assert asdict(pair) == extract_prompt(row)


@pytest.mark.parametrize("example", [MESSAGES, LONGER, CONTINUED])
@pytest.mark.parametrize("shape", [dict, implicit])
def test_conversations_are_rendered_as_trl_renders_them(tmp_path: Path, example: Any, shape: Any) -> None:
    tokenizer = chatting()
    row = shape(example)
    examples = preference_data(write_rows(tmp_path, [row, row])).examples(chat_of(tokenizer))
    expected = apply_chat_template(row if "prompt" in row else extract_prompt(row), tokenizer)
    assert examples.conversations and [asdict(pair) for pair in examples.pairs] == [expected] * 2


def test_a_rendered_conversation_is_read_with_its_control_tokens(tmp_path: Path) -> None:
    tokenizer = chatting()
    chat = chat_of(tokenizer)
    assert chat is not None
    examples = preference_data(write_rows(tmp_path, [MESSAGES])).examples(chat)
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
    assert preference_data(write_pairs(tmp_path, rows)).examples(None).repeated == 1
    whole = {"prompt": MESSAGES["prompt"]} | implicit(MESSAGES)
    assert preference_data(write_rows(tmp_path, [whole])).examples(chat_of(chatting())).repeated == 1


def test_a_prompt_as_text_beside_conversations_is_read_from_them(tmp_path: Path) -> None:
    """As UltraFeedback has it; so does TRL."""
    row = {"prompt": "A film?"} | implicit(MESSAGES)
    tokenizer = chatting()
    (pair,) = preference_data(write_rows(tmp_path, [row])).examples(chat_of(tokenizer)).pairs
    assert asdict(pair) == apply_chat_template(maybe_extract_prompt(row), tokenizer)
    other = row | {"prompt": "Another film?"}
    message = refused(lambda: preference_data(write_rows(tmp_path, [other])).examples(chat_of(tokenizer)))
    assert message.endswith("row 0 holds a text and a conversation; mend the file")


def test_a_prompt_is_no_completion_to_the_content(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    pairs = [{"chosen": "1", "rejected": "2"}, {"chosen": "3", "rejected": "4"}, {"chosen": "5", "rejected": "6"}]
    prompted = [{"prompt": "1", "chosen": "2", "rejected": "3"}, {"prompt": "4", "chosen": "5", "rejected": "6"}]
    three, two = write_rows(tmp_path, pairs), write_rows(tmp_path / "b", prompted)
    assert preference_data(three).content() != preference_data(two).content()


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
    source = preference_data(write_rows(tmp_path, rows))
    assert message in refused(lambda: source.examples(chat_of(chatting())))


def test_a_conversation_without_a_template_is_refused(tmp_path: Path) -> None:
    source = preference_data(write_rows(tmp_path, [MESSAGES]))
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
    assert len({preference_data(place).content() for place in places}) == 1
    assert preference_data(write_rows(tmp_path, [MESSAGES])).content() != preference_data(places[0]).content()


def test_a_conversation_is_the_same_text_on_any_day() -> None:
    """Llama 3.2's template writes the date."""
    tokenizer = chatting()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    chat, messages = chat_of(tokenizer), [{"role": "user", "content": "x"}]
    assert chat is not None and chat.render(messages, whole=True) == "26 Jul 2024 x"
    for other in ("{{ ['a', 'b'] | random }}", "{% set form = '%d' %}{{ strftime_now(form) }}"):
        tokenizer.chat_template = other
        with pytest.raises(ValueError, match="draws at random or tells the time"):
            chat.render(messages, whole=True)
