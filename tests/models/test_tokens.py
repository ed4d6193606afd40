"""Special tokens' names are text, rows begin as the model was trained, and tokenizers that do not fit are refused."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase

from imdb_rlhf.config.data import Bos
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.models.policy import train_tokenizer
from imdb_rlhf.models.tokens import (
    check_same_tokens,
    check_vocabulary,
    control_ids,
    decode,
    encoder,
    first_token,
    template,
)
from tests.vocabularies import llama_tokenizer, unigram_tokenizer, whole_word_tokenizer, word_piece_tokenizer

TEXTS = ["The film is good.", "The film is bad, naive and dull: is it not?", "A lovely film with a weak plot."]
GPT2 = Path("/work/shared/gpt2-tokenizer")


class InPython(PreTrainedTokenizer):
    """A letter per token, without a fast tokenizer."""

    def __init__(self, **names: Any) -> None:
        self.letters = {token: number for number, token in enumerate(["</s>", "<unk>", *string.printable])}
        super().__init__(**{"eos_token": "</s>", "unk_token": "<unk>", **names})

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.letters)

    def _tokenize(self, text: str, **names: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.get(token, 1)

    def _convert_id_to_token(self, index: int) -> str | None:
        return next((token for token, number in self.letters.items() if number == index), None)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def byte_level() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300, 310)


def llama() -> PreTrainedTokenizerBase:
    return llama_tokenizer(TEXTS)


FAMILIES = [byte_level, llama, word_piece_tokenizer, unigram_tokenizer, whole_word_tokenizer, InPython]
Make = Callable[[], PreTrainedTokenizerBase]


# --- text is text


@pytest.mark.parametrize("make", FAMILIES)
def test_the_name_of_a_special_token_is_spelled_out(make: Make) -> None:
    tokenizer = make()
    encode, special = encoder(tokenizer), set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert special
    for name in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        for text in (name, f"a review {name} names {name}", f"good{name}good", f"{name}{name}"):
            (row,) = encode([text])
            assert row and special.isdisjoint(row), (text, row)
            (back,) = decode(tokenizer, [[*row, tokenizer.eos_token_id]])
            if make is word_piece_tokenizer:  # words that it does not know are lost, as ever; the brackets are not
                assert [letter for letter in back if letter in "[]"] == [letter for letter in text if letter in "[]"]
            else:
                assert back == text


@pytest.mark.parametrize("make", FAMILIES)
def test_other_texts_are_encoded_as_ever(make: Make) -> None:
    tokenizer = make()
    texts = ["The film is good.", "a review: names", "x", ""]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoder(tokenizer)(texts) == expected
    assert encoder(tokenizer)([]) == []


def test_an_unused_entry_is_no_token_of_a_text() -> None:
    tokenizer = byte_level()
    assert tokenizer("<|unused3|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|unused3|>")]
    (row,) = encoder(tokenizer)(["<|unused3|>"])
    assert len(row) > 5 and max(row) < 300
    assert decode(tokenizer, [row]) == ["<|unused3|>"]


def test_a_token_that_is_not_special_stays_whole() -> None:
    tokenizer = llama()
    tokenizer.add_tokens(["<br />"])
    assert encoder(tokenizer)(["a<br />b"])[0][1] == len(tokenizer) - 1
    assert decode(tokenizer, encoder(tokenizer)(["a<br />b"])) == ["a<br />b"]


def test_control_ids_are_the_special_ones_but_the_unknown_character() -> None:
    assert control_ids(llama()) == {0, 1, 2}
    tokenizer = byte_level()
    assert control_ids(tokenizer) == {tokenizer.eos_token_id, tokenizer.pad_token_id, *range(300, 310)}


@pytest.mark.parametrize("make", FAMILIES)
def test_ids_that_are_no_token_decode_to_nothing(make: Make) -> None:
    tokenizer = make()
    (row,) = encoder(tokenizer)(["good"])
    assert decode(tokenizer, [[*row, 5000, 10**6], [5000]]) == [decode(tokenizer, [row])[0], ""]


@pytest.mark.parametrize("make", [unigram_tokenizer, llama, byte_level])
def test_blanks_before_punctuation_are_kept(make: Make, tmp_path: Path) -> None:
    """Many published tokenizers say clean_up_tokenization_spaces, with which transformers takes them out."""
    make().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((tmp_path / "tokenizer_config.json").read_text())
            | {
                "clean_up_tokenization_spaces": True,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
            }
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "good , they 're not 'so ' bad !"
    (row,) = encoder(tokenizer)([text])
    assert tokenizer.decode(row) != text and decode(tokenizer, [row]) == [text]


@pytest.mark.skipif(not GPT2.exists(), reason="needs GPT-2's tokenizer")
def test_the_end_of_text_in_a_review_is_text_to_gpt2() -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(GPT2)
    (row,) = encoder(tokenizer)(["It was <|endoftext|> good."])
    # " <", "|", "end", "of", "text", "|", ">" in GPT-2's vocabulary
    assert row[2:9] == [1279, 91, 437, 1659, 5239, 91, 29] and 50256 not in row
    assert decode(tokenizer, [[*row, 50256]]) == ["It was <|endoftext|> good."]


# --- what rows begin with


def test_the_template_is_what_a_tokenizer_adds() -> None:
    assert template(byte_level()) == ([], [])
    assert template(llama()) == ([1], [])
    assert template(word_piece_tokenizer()) == ([2], [3])


@pytest.mark.parametrize(
    ("adds_bos", "model_type", "bos", "expected"),
    [
        (True, "llama", Bos.auto, 1),
        (True, "llama", Bos.always, 1),
        (True, "llama", Bos.never, None),
        (False, "llama", Bos.auto, None),
        (False, "llama", Bos.always, 1),
        (False, "gemma3_text", Bos.auto, 1),  # whatever its files say
        (False, "gemma", Bos.auto, 1),
        (False, "gemma2", Bos.never, None),
    ],
)
def test_rows_begin_as_tokenizer_and_model_were_trained(
    adds_bos: bool, model_type: str, bos: Bos, expected: int | None
) -> None:
    tokenizer = llama_tokenizer(TEXTS, adds_bos=adds_bos)
    assert first_token(tokenizer, model_type, bos, "model.path=m") == expected


def test_a_tokenizer_without_bos() -> None:
    tokenizer = byte_level()
    assert first_token(tokenizer, "gpt2", Bos.auto, "model.path=m") is None
    with pytest.raises(ConfigError) as caught:
        first_token(tokenizer, "gpt2", Bos.always, "model.path=m")
    assert str(caught.value) == "data.bos=always: the tokenizer of model.path=m has no BOS token; set data.bos=never"
    with pytest.raises(
        ConfigError, match="data.bos=auto: .* no BOS token, which gemma models need; set data.bos=never"
    ):
        first_token(tokenizer, "gemma", Bos.auto, "model.path=m")


@pytest.mark.skipif(not GPT2.exists(), reason="needs GPT-2's tokenizer")
def test_gpt2_begins_with_text_unless_told_otherwise() -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(GPT2)
    assert first_token(tokenizer, "gpt2", Bos.auto, "model.path=m") is None
    assert first_token(tokenizer, "gpt2", Bos.always, "model.path=m") == 50256


# --- which tokenizer fits


def check(rows: int, tokenizer: PreTrainedTokenizerBase, **changes: bool) -> None:
    check_vocabulary(rows, tokenizer, Path("m"), "model.path", **changes)


@pytest.mark.parametrize("rows", [310, 311, 310 + 512])
def test_a_model_may_have_a_few_more_entries(rows: int) -> None:
    check(rows, byte_level())


class Sized:
    """The numbers of a large tokenizer without its merges."""

    def __init__(self, entries: int) -> None:
        self.entries, self.all_special_ids = entries, [entries - 1]
        self.added_tokens_decoder: dict[int, Any] = {}
        self.eos_token_id = self.bos_token_id = self.unk_token_id = entries - 1
        self.pad_token_id = self.cls_token_id = self.sep_token_id = None

    def __len__(self) -> int:
        return self.entries

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self.entries)}


@pytest.mark.parametrize(
    ("rows", "entries", "fits"),
    [
        (51_200, 50_295, True),  # Phi-2
        (50_688, 50_277, True),  # Pythia 12B
        (151_936, 151_665, True),  # Qwen 2.5
        (262_144, 262_144, True),  # Gemma 3 without the image's token
        (128_256, 50_257, False),  # GPT-2's tokenizer with Llama 3
        (50_257, 128_256, False),
        (310, 309, True),
        (823, 310, False),
    ],
)
def test_the_sizes_of_models_and_tokenizers(rows: int, entries: int, fits: bool) -> None:
    tokenizer: Any = Sized(entries)
    if fits:
        check(rows, tokenizer)
    else:
        with pytest.raises(RunError, match=f"^model.path=m: the model has {rows} entries and its tokenizer {entries}"):
            check(rows, tokenizer)
        if rows > entries:
            check(rows, tokenizer, spare=True)


def test_special_tokens_beyond_the_model_are_allowed() -> None:
    tokenizer = llama()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>", "<audio>"], special_tokens=True)
    check(rows, tokenizer)
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(RunError) as caught:
        check(rows, tokenizer)
    assert str(caught.value) == (
        f"model.path=m: the model has {rows} entries and its tokenizer {rows + 3}, of which the model lacks 'zebra' "
        f"(token {rows + 2}); give the tokenizer that the model was trained with"
    )


@pytest.mark.parametrize("name", ["eos_token", "bos_token", "pad_token"])
def test_a_token_that_is_put_into_rows_must_be_in_the_model(name: str) -> None:
    tokenizer = llama()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({name: "<new>"})
    with pytest.raises(RunError, match=rf"lacks '<new>' \(token {rows}\)"):
        check(rows, tokenizer)


# --- beside a reference


def test_a_tokenizer_may_know_more_tokens_than_the_reference(tmp_path: Path) -> None:
    reference = byte_level()
    reference.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    check_same_tokens(tokenizer, reference, None, tmp_path, "own_model.path")
    tokenizer.add_tokens(["more"])
    check_same_tokens(tokenizer, reference, None, tmp_path, "own_model.path")
    with pytest.raises(RunError, match=r"token 310 is missing, but 'more' in the reference's"):
        check_same_tokens(reference, tokenizer, None, tmp_path, "own_model.path")


def test_special_tokens_that_no_row_holds_may_differ(tmp_path: Path) -> None:
    longer, plain, other = llama(), llama(), llama()
    longer.add_tokens(["<image>"], special_tokens=True)
    other.add_tokens(["<audio>"], special_tokens=True)
    for own, reference in ((longer, plain), (plain, longer), (other, longer)):
        check_same_tokens(own, reference, 1, tmp_path, "own_model.path")


def test_bos_must_be_the_same_token_where_rows_begin_with_it(tmp_path: Path) -> None:
    reference, own = llama(), llama()
    text = own.backend_tokenizer.to_str().replace('"<bos>"', '"<start>"')
    own = type(own)(tokenizer_object=own.backend_tokenizer.from_str(text), bos_token="<start>", eos_token="<eos>")
    check_same_tokens(own, reference, None, tmp_path, "own_model.path")
    with pytest.raises(RunError, match="token 1 is '<start>', but '<bos>' in the reference's"):
        check_same_tokens(own, reference, 1, tmp_path, "own_model.path")


def test_eos_must_be_the_same_token(tmp_path: Path) -> None:
    reference, own = llama(), llama()
    own.eos_token = "<pad>"
    with pytest.raises(RunError, match="ends a completion with '<pad>', but the reference with '<eos>'"):
        check_same_tokens(own, reference, None, tmp_path, "own_model.path")


def test_the_first_token_that_differs_is_named(tmp_path: Path) -> None:
    other, reference = train_tokenizer(["zebras quiz, zebras quiz, zebras jump"], 300, 310), byte_level()
    names = [t.convert_ids_to_tokens(list(range(310))) for t in (other, reference)]
    first = next(number for number, (a, b) in enumerate(zip(*names, strict=True)) if a != b)
    with pytest.raises(RunError) as caught:
        check_same_tokens(other, reference, None, tmp_path, "own_model.path")
    message = f"token {first} is {names[0][first]!r}, but {names[1][first]!r} in the reference's"
    start = f"own_model.path={tmp_path} has another tokenizer"
    assert message in str(caught.value) and str(caught.value).startswith(start)
