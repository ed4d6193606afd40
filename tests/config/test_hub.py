"""What is pushed, refused before anything is loaded."""

import pytest

from imdb_rlhf.config.hub import Part, check_name, is_branch
from imdb_rlhf.config.places import hashed
from imdb_rlhf.config.run import NOT_IN_HASH
from imdb_rlhf.errors import ConfigError
from tests.command import refusal, run_of


def test_nothing_is_pushed_by_default():
    hub = run_of().hub
    assert (hub.push, hub.private, hub.revision, hub.license) == (None, True, None, None)
    assert hub.what == list(Part)


def test_no_number_depends_on_it():
    one, other = run_of(), run_of("hub.push=me/x", "hub.private=false", "hub.what=[report]", "hub.license=mit")
    assert {key for key in hashed(one) if hashed(one)[key] != hashed(other)[key]} == {"hub"} <= set(NOT_IN_HASH)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hub.push=x"], "hub.push=x is no repository: it has no namespace; give NAMESPACE/NAME"),
        (["hub.push=me/x/y"], "hub.push=me/x/y is no repository: Repo id must be in the form"),
        (["hub.push=me/x--y"], "hub.push=me/x--y is no repository: Cannot have -- or .."),
        (["hub.push=-me/x"], "hub.push=-me/x is no repository: Repo id must use alphanumeric"),
        (["hub.what=[]"], "hub.what=[] names nothing; give some of model, preferences, report"),
        (["hub.revision=refs/pr/1"], "hub.revision=refs/pr/1 is no name of a branch"),
        (["hub.license=MIT Licence"], "hub.license=MIT Licence is not how the Hub names one"),
        (["hub.token=hf_x"], "hub.token=hf_x: no such key; keys there: hub.push, hub.private"),
    ],
)
def test_refusals(words, line):
    assert refusal(*words).startswith(line)


def test_names():
    check_name("me/dpo-beta0.1_s0", "hub.push")
    check_name(f"me/{'x' * 93}", "hub.push")
    with pytest.raises(ConfigError, match="longer than 96 characters"):
        check_name(f"me/{'x' * 94}", "hub.push")


def test_branches():
    assert all(map(is_branch, ["main", "trial-2", "a/b", "v1.0", "_x"]))
    assert not any(map(is_branch, ["", "-x", "a b", "a..b", "a//b", "a/", "refs/heads/x", "~x", "a:b"]))
