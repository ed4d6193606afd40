"""What is pushed to the Hugging Face Hub at the end of a run or a sweep."""

import re
from dataclasses import dataclass
from enum import StrEnum

from imdb_rlhf.config.places import Place
from imdb_rlhf.errors import ConfigError


class Part(StrEnum):
    """What can be pushed, each to a repository of its own."""

    model = "model"
    preferences = "preferences"
    report = "report"


@dataclass
class HubConfig:
    """Where and what is pushed; no number of a run depends on it. The token is huggingface_hub's own business."""

    push: str | None
    private: bool
    revision: Place | None
    what: list[Part]
    license: str | None

    def check(self, at: str) -> None:
        """Refuse names that the Hub does not take, and a push of nothing."""
        if self.push is not None:
            check_name(self.push, f"{at}push")
        if not self.what:
            raise ConfigError(f"{at}what=[] names nothing; give some of {', '.join(Part)}, or leave {at}push out")
        if self.revision is not None and not is_branch(self.revision):
            raise ConfigError(f"{at}revision={self.revision} is no name of a branch; give one such as trial-2")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ConfigError(f"{at}license={self.license} is not how the Hub names one; give one such as apache-2.0")


def check_name(name: str, key: str) -> None:
    """Refuse what is not NAMESPACE/NAME by the Hub's rules.

    Raises:
        ConfigError: naming the key.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it names no exports

    try:
        validate_repo_id(name)
        problem = "it has no namespace" if "/" not in name else None
    except HFValidationError as error:
        problem = " ".join(str(error).split()).rstrip(".")
    if problem is None and len(name) > 96:
        problem = "it is longer than 96 characters"
    if problem is not None:
        raise ConfigError(
            f"{key}={name} is no repository: {problem}; give NAMESPACE/NAME, your user's or organisation's"
        )


def is_branch(name: str) -> bool:
    """Whether the Hub takes this as the name of a branch."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name) is not None
    return plain and ".." not in name and "//" not in name and not name.endswith(("/", ".")) and name[:5] != "refs/"
