"""What is a secret, and what is left alone."""

import sys

import pytest

from imdb_rlhf.tracking.redact import redact, redacted, redacted_arguments


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://token123@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("https://me:pass@host:8080/x", "https://***@host:8080/x"),
        ("--api-key=abc beta=0.1", "--api-key=*** beta=0.1"),
        ("hub_token=abc", "hub_token=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("with hf_abcdefghijklmnopqrst.", "with ***."),
        ("ghp_abcdefghijklmnopqrstuvwx", "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "python train.py algo=dpo beta=0.1 data.path=/a/b@c",
        "72072701ad63184a355901bd1dfe006026ea66b5",
        "max_tokens=64 key tokens: 3,246 tokens/s",
        "a token == b",
        "mail me@example.org",
        "git@github.com:a/b.git",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text


def test_the_environments_secrets_are_hidden_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_PASSWORD", "correct horse")
    monkeypatch.setenv("SSL_KEY_FILE", "/etc/ssl/key.pem")  # a path
    monkeypatch.setenv("KEYBOARD", "notasecret")
    monkeypatch.setenv("SHORT_KEY", "on")
    given = {
        "a": ["0123456789abcdef", {"b": "x correct horse y"}],
        "c": 3,
        "d": None,
        "on": "/etc/ssl/key.pem notasecret",
    }
    assert redacted(given) == {
        "a": ["***", {"b": "x *** y"}],
        "c": 3,
        "d": None,
        "on": "/etc/ssl/key.pem notasecret",
    }


def test_arguments_are_hidden_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "hub_token=abc"])
    with pytest.raises(RuntimeError), redacted_arguments(sys.argv):
        assert sys.argv == ["train.py", "hub_token=***"]
        raise RuntimeError
    assert sys.argv == ["train.py", "hub_token=abc"]
