"""Secrets taken out of what is sent or stored elsewhere: the values of secret environment variables, and tokens."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters of an environment variable's value; what is shorter is hidden nowhere
_SECRET = r"(?:key|token|secret|passw(?:or)?d|credentials?)"
_NAME = re.compile(rf"{_SECRET}$|{_SECRET}_|^(?:pgpass|netrc)", re.I)
_SHAPES = (
    # who logs in: https://token@host, https://user:password@host
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.I), rf"\1{HIDDEN}@"),
    # what is called a secret: --api-key=..., hub_token=..., Authorization: Bearer ...
    (re.compile(rf"(\b[\w.-]*{_SECRET}['\"]?\s*=\s*)(?!=)[^\s,&'\"]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"(\bBearer\s+)[\w.~+/-]{8,}=*", re.I), rf"\1{HIDDEN}"),
    # the tokens of Hugging Face, GitHub, GitLab, OpenAI and Anthropic, W&B, AWS
    (re.compile(r"\b(?:hf|gh[pousr]|github_pat|glpat|sk|wandb_v1)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{16}\b"), HIDDEN),
)


def redact(text: str) -> str:
    """The text without secrets: `***` stands where one was."""
    for value in _values():
        text = text.replace(value, HIDDEN)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redacted(value: Any) -> Any:
    """The same mapping or list, with the secrets taken out of every text in it, keys included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(key): redacted(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [redacted(each) for each in value]
    return value


@contextmanager
def redacted_arguments(arguments: list[str]) -> Iterator[None]:
    """Take the secrets out of a list such as `sys.argv` while a library reads it."""
    before = list(arguments)
    arguments[:] = [redact(word) for word in before]
    try:
        yield
    finally:
        arguments[:] = before


def _values() -> list[str]:
    """Values of environment variables that are called secrets, the longest first; paths are none."""
    named = [value for name, value in os.environ.items() if _NAME.search(name)]
    return sorted({value for value in named if len(value) >= SHORTEST and value[0] != "/"}, key=len, reverse=True)
