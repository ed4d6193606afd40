"""Checks before work, pushes, and failures in one line, against a stand-in for the Hub."""

import logging
from pathlib import Path

import pytest

from imdb_rlhf.config.hub import HubConfig, Part
from imdb_rlhf.data import hub as reading
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.publish.repository import Repository, Upload, check, push, url, why
from tests.stand_in import READER, TOKEN

MODEL, SPACE = Repository("model", "me/x"), Repository("space", "me/x")
CARD = b"---\ntags:\n- imdb_rlhf\n---\n\n# A card\n"


def config(name: str = "me/x", *, private: bool = True, revision: str | None = None) -> HubConfig:
    return HubConfig(name, private, revision, list(Part), None)


def upload(folder: Path, repository: Repository = MODEL) -> Upload:
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    return Upload(repository, {"model.safetensors": folder / "model.safetensors", "README.md": CARD})


# --- the push


def test_a_push_makes_a_private_repository(hub, tmp_path):
    assert push(config(), upload(tmp_path)) == f"{hub.url}/me/x"
    repo = hub.repos["model", "me/x"]
    assert repo.private and repo.files["model.safetensors"] == b"weights" * 1000 and repo.files["README.md"] == CARD


def test_the_same_push_again_changes_nothing(hub, tmp_path):
    push(config(), upload(tmp_path))
    before = dict(hub.repos["model", "me/x"].commits)
    assert push(config(), upload(tmp_path)) == f"{hub.url}/me/x (as it was)"
    assert hub.repos["model", "me/x"].commits == before
    assert sum(asked.startswith("PUT /lfs/") for asked in hub.asked) == 1


def test_a_space_is_static_and_may_be_public(hub, tmp_path):
    assert push(config(private=False), upload(tmp_path, SPACE)) == f"{hub.url}/spaces/me/x" == url(SPACE)
    repo = hub.repos["space", "me/x"]
    assert (repo.sdk, repo.private) == ("static", False)


def test_a_branch_is_made_and_main_stays_as_it_is(hub, tmp_path):
    for _ in range(2):
        push(config(revision="trial/2"), upload(tmp_path))
    repo = hub.repos["model", "me/x"]
    assert list(repo.files) == [".gitattributes"]
    assert "model.safetensors" in repo.commits[repo.branches["trial/2"]]


@pytest.mark.parametrize(
    ("method", "path", "status", "line"),
    [
        ("POST", "/repos/create", 401, "the Hub does not accept the token (401); log in again"),
        ("POST", "/repos/create", 403, "the token may not write there (403)"),
        ("POST", "/repos/create", 429, "the Hub has had too many requests (429)"),
        ("POST", "/repos/create", 500, "the Hub fails (500)"),
        ("POST", "/repos/create", None, "the connection to the Hub failed (RemoteProtocolError)"),
        ("POST", "/preupload/", 404, "the Hub has no such repository or branch"),
        ("POST", "/preupload/", 503, "the Hub fails (503)"),
        ("POST", "/objects/batch", 413, "a file is too large for the Hub (413)"),
        ("PUT", "/lfs/", None, "the connection to the Hub failed"),
        ("PUT", "/lfs/", 500, "the Hub fails (500)"),
        ("POST", "/commit/", 409, "the Hub says that somebody else is changing it (409)"),
        ("POST", "/commit/", 418, "the Hub refuses it (418)"),
        ("POST", "/commit/", None, "the connection to the Hub failed"),
    ],
)
def test_a_failure_is_one_line(hub, tmp_path, capfd, method, path, status, line):
    hub.fail(method, path, status)
    with pytest.raises(RunError) as raised:
        push(config(), upload(tmp_path))
    message = str(raised.value)
    assert message.startswith(f"the model me/x was not pushed: {line}"), message
    assert "\n" not in message and TOKEN not in message and "http://" not in message
    assert capfd.readouterr() == ("", "")
    # once the Hub is well again, the same push gets through
    hub.failures.clear()
    assert push(config(), upload(tmp_path)).startswith(hub.url)


def test_a_connection_that_is_cut_once_costs_nothing(hub, tmp_path):
    hub.fail("PUT", "/lfs/", None, times=1)
    push(config(), upload(tmp_path))
    assert hub.repos["model", "me/x"].files["model.safetensors"] == b"weights" * 1000


def test_a_card_that_the_hub_refuses(hub, tmp_path):
    with pytest.raises(RunError, match="the model me/x was not pushed"):
        push(config(), Upload(MODEL, {"README.md": b"---\n: [\n---\n"}))


def test_what_the_hub_says_is_told(hub, tmp_path):
    hub.fail("POST", "/commit/", 403)
    with pytest.raises(RunError, match=r"\(403\).*; it says: stand-in says 403$"):
        push(config(), upload(tmp_path))


def test_other_errors_are_their_first_line():
    assert why(ValueError("one\ntwo")) == "one"
    assert why(FileNotFoundError(2, "No such file", "model.safetensors")).endswith("'model.safetensors'")
    assert why(TimeoutError()) == "the Hub does not answer (TimeoutError)"


# --- before work starts


def refused(repositories=(MODEL,), **changes) -> str:
    with pytest.raises(ConfigError) as raised:
        check(config(**changes), repositories)
    assert "\n" not in str(raised.value) and "hf_token" not in str(raised.value)
    return str(raised.value)


def test_a_push_that_can_succeed_is_not_refused(hub, tmp_path):
    assert check(config(), [MODEL, SPACE]) is None
    push(config(), upload(tmp_path))
    assert check(config(), [MODEL, SPACE]) is None  # what is there is ours
    assert check(config("LAB/x"), [Repository("model", "LAB/x")]) is None  # an organisation of the user's


def test_no_token(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert refused().startswith("hub.push=me/x: there is no token; log in with `hf auth login`, or set HF_TOKEN")
    assert not hub.asked


def test_offline_by_choice(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused().startswith("hub.push=me/x: HF_HUB_OFFLINE is set, so nothing can be pushed")
    assert not hub.asked


def test_tokens_that_may_not_write(hub, monkeypatch):
    assert "the token may write to me, lab; push to one of these" in refused(name="you/x")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token of me may read alone" in refused()
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_nobody")
    assert "the Hub does not accept the token (401)" in refused()


def test_somebody_elses_repository_is_not_written_over(hub, tmp_path):
    card = b"---\ntags:\n- mine\n---\n"
    push(config(), Upload(MODEL, {"README.md": card}))
    assert check(config(), [MODEL]) is None  # nothing but a card
    push(config(), Upload(MODEL, {"adapter.bin": b"work of months"}))
    assert "the model me/x exists, and its adapter.bin was not made by imdb_rlhf" in refused()
    assert check(config(), [SPACE]) is None  # another one


def test_a_name_that_becomes_too_long(hub):
    assert "is longer than 96 characters" in refused([Repository("dataset", f"me/{'x' * 94}")])


@pytest.mark.parametrize("status", [500, None])
def test_a_hub_that_is_out_of_reach_refuses_nothing(hub, status):
    hub.fail("GET", "/whoami", status)
    problem = check(config(), [MODEL])
    assert problem is not None and ("(500)" in problem if status else "connection" in problem)


def test_a_hub_that_never_answers(hub, monkeypatch):
    monkeypatch.setattr(reading, "TIMEOUT", 0.0)
    assert check(config(), [MODEL]) == "the Hub does not answer (TimeoutError)"


def test_the_librarys_own_lines_come_back(hub, tmp_path):
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    push(config(), upload(tmp_path))
    assert logger.level == before
