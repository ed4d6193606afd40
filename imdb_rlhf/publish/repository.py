"""Repositories on the Hub: what can be known before work starts, a push of files, and one line for each failure.

The token is huggingface_hub's own business (HF_TOKEN, `hf auth login`): it is never read here, kept or printed.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any, Literal

from imdb_rlhf.config.hub import HubConfig, check_name
from imdb_rlhf.data.card import TAG
from imdb_rlhf.data.hub import in_time
from imdb_rlhf.errors import ConfigError, RunError, first_line

Kind = Literal["model", "dataset", "space"]
PATIENCE = 120.0  # seconds that a silent connection is waited for
# Files that a repository may have before anything was pushed to it.
BLANK = {".gitattributes", ".gitignore", "README.md", "LICENSE"}
COMMIT = "Results of imdb_rlhf"


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub.

    Attributes:
        kind: what it holds; a model, a dataset and a Space may have one name.
        name: NAMESPACE/NAME.
    """

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Upload:
    """The files of a repository: path in it -> a file, or its content."""

    repository: Repository
    files: Mapping[str, Path | bytes]


# --- before work starts


def check(hub: HubConfig, repositories: Sequence[Repository]) -> str | None:
    """Refuse a push that cannot succeed.

    Returns:
        Why the Hub could not be asked, where it is out of reach now; it may not be when there is something to push.

    Raises:
        ConfigError: offline by choice, no token, one that may not write there, or a repository of somebody else's work.
    """
    from huggingface_hub import HfApi, constants, get_token

    named = f"hub.push={hub.push}"
    for repository in repositories:
        check_name(repository.name, "hub.push")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{named}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or leave hub.push out now and push "
            "the finished run later"
        )
    if get_token() is None:
        raise ConfigError(
            f"{named}: there is no token; log in with `hf auth login`, or set HF_TOKEN to one that writes"
        )
    with _quiet():
        try:
            _check_token(in_time(HfApi().whoami), named)
            for repository in repositories:
                _check_ours(HfApi(), repository, hub, named)
        except ConfigError:
            raise
        except Exception as error:
            if _status(error) in (401, 403):
                raise ConfigError(f"{named}: {why(error)}") from None
            return why(error)
    return None


def _check_token(who: Mapping[str, Any], named: str) -> None:
    """Refuse a token that only reads, and one of a user who has no such namespace."""
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ConfigError(f"{named}: the token of {who.get('name')} may read alone; make one that may write")
    if token.get("role") != "write":
        return  # a fine-grained one need not see the organisations that it may write to
    namespaces = [str(who.get("name")), *(str(org.get("name")) for org in who.get("orgs", []))]
    namespace = named.partition("=")[2].partition("/")[0]
    if namespace.lower() not in [name.lower() for name in namespaces]:
        raise ConfigError(f"{named}: the token may write to {', '.join(namespaces)}; push to one of these")


def _check_ours(api: Any, repository: Repository, hub: HubConfig, named: str) -> None:
    """Refuse a repository that has other work in it: its files would be replaced."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = in_time(
            lambda: api.repo_info(repository.name, repo_type=repository.kind, revision=hub.revision or "main")
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return
    card = getattr(info, "card_data", None)
    tags = [*(getattr(info, "tags", None) or []), *((card and card.get("tags")) or [])]
    others = {sibling.rfilename for sibling in info.siblings or []} - BLANK
    if others and TAG not in tags:
        raise ConfigError(
            f"{named}: the {repository} exists, and its {sorted(others)[0]} was not made by imdb_rlhf; choose another "
            "name"
        )


# --- the push


def push(hub: HubConfig, upload: Upload) -> str:
    """Make the repository and the branch where there is none, and commit the files; unchanged ones are not sent again.

    Returns:
        Its address, and `(as it was)` where nothing had changed.

    Raises:
        RunError: in one line.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_session

    repository, api = upload.repository, HfApi()
    kind, name = repository.kind, repository.name
    operations = [
        CommitOperationAdd(path, str(file) if isinstance(file, Path) else file)
        for path, file in sorted(upload.files.items())
    ]
    with _quiet():
        get_session().timeout = PATIENCE  # without it a silent connection is waited for without end
        try:
            sdk = "static" if kind == "space" else None
            api.create_repo(name, repo_type=kind, private=hub.private, exist_ok=True, space_sdk=sdk)
            if hub.revision is not None:
                api.create_branch(name, repo_type=kind, branch=hub.revision, exist_ok=True)
            before = api.repo_info(name, repo_type=kind, revision=hub.revision).sha
            commit = api.create_commit(name, operations, repo_type=kind, revision=hub.revision, commit_message=COMMIT)
        except Exception as error:
            raise RunError(f"the {repository} was not pushed: {why(error)}") from error
    return f"{url(repository)}{' (as it was)' if commit.oid == before else ''}"


def url(repository: Repository) -> str:
    """The address of a repository."""
    from huggingface_hub import constants

    prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
    return f"{constants.ENDPOINT}/{prefix}{repository.name}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, its lines on retries, and bars where no terminal shows them."""
    from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]  # it names no exports

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            if not sys.stderr.isatty():
                disable_progress_bars()
            yield
    finally:
        logging.set_verbosity(before)


# --- failures in words


STATUS = {
    401: "the Hub does not accept the token (401); log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for payment (402): storage or a plan is used up",
    403: "the token may not write there (403); make one that may, or push to a namespace of yours",
    404: "the Hub has no such repository or branch, or hides it from this token (404)",
    408: "the Hub gave up waiting (408)",
    409: "the Hub says that somebody else is changing it (409)",
    412: "the branch has moved meanwhile (412)",
    413: "a file is too large for the Hub (413)",
    429: "the Hub has had too many requests (429); wait some minutes",
}


def why(error: Exception) -> str:
    """What kept the Hub from doing it, in one line; addresses are left out, since they may be signed."""
    status = _status(error)
    if status is not None:
        said = STATUS.get(status) or f"the Hub {'fails' if status >= 500 else 'refuses it'} ({status})"
        message = next((text for each in _chain(error) if (text := getattr(each, "server_message", None))), None)
        return said if not message else f"{said}; it says: {' '.join(str(message).split())[:200].rstrip('.')}"
    lost = next((each for each in _chain(error) if _is_of_the_connection(each)), None)
    if lost is None:
        last = _chain(error)[-1]
        return first_line(last) if isinstance(last, Exception) else type(last).__name__
    name = type(lost).__name__
    return f"the Hub does not answer ({name})" if "Timeout" in name else f"the connection to the Hub failed ({name})"


def _is_of_the_connection(error: BaseException) -> bool:
    """Whether nothing or only part of an answer came, as Python's and the HTTP library's errors say it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint({"TransportError", "ConnectionError", "TimeoutError", "gaierror", "SSLError"})


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, which may have been raised from another one."""
    responses = (getattr(each, "response", None) for each in _chain(error))
    return next((int(response.status_code) for response in responses if response is not None), None)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was raised from, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
