"""Texts and tokens: encoding, decoding, the token that rows begin with, and which tokenizer fits which model.

A text that comes from data is text throughout: a special token's name in it is spelled out in ordinary tokens.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from imdb_rlhf.config.data import Bos
from imdb_rlhf.errors import ConfigError, RunError, first_line

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
# A model may have as many entries more than its tokenizer as this, or as this share of its entries: models round their
# size up for speed, and leave room for tokens (Phi-2 has 51,200 and 50,295).
SPARE, SPARE_SHARE = 512, 1 / 32
# Model types that were trained with BOS before every row, whatever a tokenizer's files say.
NEED_BOS = ("gemma",)


def load_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        RunError: there is none, it cannot be loaded or used, or it has no EOS.
    """
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise RunError(f"{key}={folder} holds no tokenizer (one of {', '.join(TOKENIZERS)}); save it beside the model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        try_out(tokenizer)
    except Exception as error:
        raise RunError(f"{key}={folder}: its tokenizer cannot be used: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise RunError(f"{key}={folder}: its tokenizer has no EOS token; add eos_token to its tokenizer_config.json")
    return cast(PreTrainedTokenizerBase, tokenizer)


def try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode and decode a text: some settings are loaded whatever they are, and fail in use, with any exception."""
    decode(tokenizer, encoder(tokenizer)(["A film."]))


# --- texts to tokens and back


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that `encoder` never gives: all special tokens but the one for unknown characters."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    special.discard(tokenizer.unk_token_id)
    return special | ({tokenizer.eos_token_id, tokenizer.bos_token_id} - {None})


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Return a function from texts to token ids: none is a special token, and none is added.

    Where a text names a special token, as in "an <|endoftext|> in a review", the name is spelled out.
    """
    control = control_ids(tokenizer)

    def spelled(row: list[int]) -> list[int]:
        # unigram, word-level and some BPE vocabularies hold the name of a special token as a word: its letters then
        if control.isdisjoint(row):
            return row
        names = {number: tokenizer.convert_ids_to_tokens(number) for number in control.intersection(row)}
        letters = {number: tokenizer.convert_tokens_to_ids(list(name)) for number, name in names.items()}
        spelling = [part for number in row for part in letters.get(number, [number])]
        return [number for number in spelling if number is not None and number not in control]

    def encode(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [spelled(row) for row in rows]

    return encode


# The date that templates write as today's (Llama 3.2's do): a text must not depend on the day on which it is rendered.
TODAY = datetime(2024, 7, 26)
CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# What else differs in every rendering.
CHANCE = re.compile(r"\|\s*random\b|\blipsum\b|\bstrftime_now\(")


class Chat:
    """A tokenizer's chat template: renders conversations as text, and reads what it has rendered.

    The same conversation is the same text on any day; see `TODAY`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.control = sorted(str(tokenizer.convert_ids_to_tokens(number)) for number in control_ids(tokenizer))

    def render(self, messages: Sequence[Mapping[str, str]], *, whole: bool) -> str:
        """A conversation that is whole, or a prompt that an answer will follow.

        A prompt that ends in a turn of the assistant is continued in that turn.

        Raises:
            ValueError: the template draws at random, or tells the time in a form that it computes.
        """
        template = CLOCK.sub(lambda call: repr(TODAY.strftime(call[2])), self.tokenizer.get_chat_template())
        if CHANCE.search(template):
            raise ValueError("it draws at random or tells the time, so that its texts change; give another template")
        continued = not whole and messages[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=not whole and not continued,
            continue_final_message=continued,
            chat_template=template,
        )
        return cast(str, text)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of rendered texts: here the name of a control token is that token."""
        if not texts:
            return []
        return cast(list[list[int]], self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])

    def names_in(self, text: str) -> list[str]:
        """The names of control tokens in a text."""
        return [name for name in self.control if name in text]


def chat_of(tokenizer: PreTrainedTokenizerBase) -> Chat | None:
    """A tokenizer's chat template; None if it has none."""
    return Chat(tokenizer) if getattr(tokenizer, "chat_template", None) else None


def decode(tokenizer: PreTrainedTokenizerBase, rows: Iterable[list[int]]) -> list[str]:
    """Decode token rows into the texts that a reward scores, without special tokens and ids that are no token.

    A tokenizer's `clean_up_tokenization_spaces` is not followed: it would take blanks out that the tokens hold.
    """
    if not tokenizer.is_fast:  # one that is written in Python fails at an id that is no token
        size = len(tokenizer)
        rows = [[number for number in row if number < size] for row in rows]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return cast(list[str], tokenizer.batch_decode(list(rows), **options))


def template(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer, left to itself, puts before a text and after it.

    Raises:
        ValueError: a text changes between them, so that they cannot be told from it.
    """
    encode = encoder(tokenizer)
    for text in ("x", "the", "0"):
        (body,), whole = encode([text]), tokenizer(text)["input_ids"]
        for at in range(len(whole) - len(body) + 1 if body else 0):
            if whole[at : at + len(body)] == body:
                return whole[:at], whole[at + len(body) :]
    raise ValueError("its tokenizer adds special tokens that cannot be told from the text")


def first_token(tokenizer: PreTrainedTokenizerBase, model_type: str, bos: Bos, where: str) -> int | None:
    """The token that every row begins with: BOS, or None for rows that begin with text.

    `auto` is as tokenizer and model were trained: with BOS if the tokenizer, left to itself, puts it before a text, or
    if the model is of a type that needs it (`NEED_BOS`).

    Args:
        tokenizer: the reference's.
        model_type: as in the model's config.json.
        bos: as configured.
        where: the key and the folder that a message names.

    Raises:
        ConfigError: rows are to begin with BOS, and the tokenizer has none.
    """
    number = tokenizer.bos_token_id
    if bos == Bos.never:
        return None
    needed = bos == Bos.always or model_type.startswith(NEED_BOS)
    if number is None and needed:
        kind = "" if bos == Bos.always else f", which {model_type} models need"
        raise ConfigError(f"data.bos={bos}: the tokenizer of {where} has no BOS token{kind}; set data.bos=never")
    if needed or (number is not None and tokenizer("x")["input_ids"][:1] == [number]):
        return int(number)
    return None


# --- which tokenizer fits


def check_vocabulary(
    rows: int, tokenizer: PreTrainedTokenizerBase, folder: Path, key: str, *, spare: bool = False
) -> None:
    """Refuse a tokenizer that does not fit a model of `rows` embedding rows.

    Special tokens beyond the rows are allowed, as no text is encoded to them; those that are put into rows are not.

    Args:
        rows: of the model's embedding.
        tokenizer: the model's.
        folder: of both, for messages.
        key: config key that messages name.
        spare: whether the model may have any number of rows more than the tokenizer has entries.

    Raises:
        RunError: naming both sizes, or a token that the model lacks.
    """
    way_out = "give the tokenizer that the model was trained with"
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    used |= {tokenizer.cls_token_id, tokenizer.sep_token_id}
    never = control_ids(tokenizer) - used
    tokens = tokenizer.get_vocab()
    lacking = sorted((number, token) for token, number in tokens.items() if number >= rows and number not in never)
    if lacking:
        number, token = lacking[0]
        raise RunError(
            f"{key}={folder}: the model has {rows} entries and its tokenizer {len(tokenizer)}, of which the model "
            f"lacks {token!r} (token {number}); {way_out}"
        )
    entries = 1 + max((number for number in tokens.values() if number < rows), default=-1)
    if not spare and rows - entries > max(SPARE, rows * SPARE_SHARE):
        raise RunError(f"{key}={folder}: the model has {rows} entries and its tokenizer {entries}; {way_out}")


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedTokenizerBase,
    bos_id: int | None,
    folder: Path,
    key: str,
) -> None:
    """Refuse a tokenizer in which an id that the reference's rows can hold is another token, or EOS is another token.

    Special tokens that no text is encoded to may differ.

    Args:
        tokenizer: the model's.
        reference: the reference's.
        bos_id: the token that rows begin with, if any.
        folder: of the model, for messages.
        key: config key that messages name.

    Raises:
        RunError: naming the first id whose token differs.
    """
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    left_out = control_ids(reference) - {reference.eos_token_id, bos_id}
    for number, token in sorted((number, token) for token, number in reference.get_vocab().items()):
        if number not in left_out and tokens.get(number) != token:
            other = repr(tokens[number]) if number in tokens else "missing"
            raise RunError(
                f"{key}={folder} has another tokenizer than the reference: token {number} is {other}, but {token!r} "
                "in the reference's; give a model with the reference's tokenizer"
            )
    if tokenizer.eos_token_id != reference.eos_token_id:
        raise RunError(
            f"{key}={folder} ends a completion with {tokenizer.eos_token!r}, but the reference with "
            f"{reference.eos_token!r}; give a model with the reference's EOS"
        )
