"""Prompts as token rows, from texts or from rows; every one is checked before anything is sampled."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.data.prompts import beginning
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.policy import context_length
from imdb_rlhf.models.tokens import encoder

Prompts = Sequence[str] | Sequence[Sequence[int]]


def rows_of(
    prompts: Prompts,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    new_tokens: int,
    bos_id: int | None,
) -> list[list[int]]:
    """Token rows of prompts.

    Texts begin with BOS where the tokenizer or the model asks for it (`data.bos=auto`); names of special tokens in them
    are spelled out. Rows are taken as they are.

    Args:
        prompts: texts, or rows of token ids.
        name: what messages call them.
        tokenizer: the reference's.
        reference: the reference.
        new_tokens: the most that is sampled after a prompt.
        bos_id: the token that texts begin with, if any.

    Raises:
        ConfigError: naming the prompt that is empty, too long, or neither a text nor a row of the vocabulary's ids.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ConfigError(f"{name} is {'one text' if isinstance(prompts, str) else 'empty'}; give a list of prompts")
    texts = [at for at, prompt in enumerate(prompts) if isinstance(prompt, str)]
    if texts and len(texts) < len(prompts):
        raise ConfigError(f"{name} holds texts and rows of tokens; give one kind")
    if texts:
        rows = [[*beginning(bos_id), *row] for row in encoder(tokenizer)([str(prompt) for prompt in prompts])]
    else:
        rows = [_row(prompt, name, at) for at, prompt in enumerate(prompts)]
    entries, context = output_layer(reference).vocabulary, context_length(reference.config)
    for at, row in enumerate(rows):
        if not row or (texts and not prompts[at]):
            raise ConfigError(f"{name}[{at}] is empty; a completion needs a token that it follows")
        if min(row) < 0 or max(row) >= entries:
            raise ConfigError(f"{name}[{at}] holds token {max(row)}, and the reference has {entries} entries")
        if len(row) + new_tokens > context:
            raise ConfigError(
                f"{name}[{at}] has {len(row)} tokens, and with max_new_tokens={new_tokens} more than the {context} "
                "that the reference reads; shorten them"
            )
    return rows


def _row(prompt: Any, name: str, at: int) -> list[int]:
    try:
        return [int(token) for token in prompt]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}[{at}] is neither a text nor a row of tokens; of messages, give the tokens that "
            "apply_chat_template makes"
        ) from error
