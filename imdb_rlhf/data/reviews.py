"""Which review serves what, and what the rest of the package knows of a kind of dataset.

A kind of dataset is a module of this room whose name is the `kind` of its configuration class (`config/data.py`); it
has a class `Kind`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

import pandas as pd

from imdb_rlhf.config.data import DataConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.kinds import load_kind

PROMPT_ROLES = ("train", "validation", "test")


@dataclass
class Reviews:
    """Reviews by what they serve; no text is in two of sft, train, validation, test.

    Attributes:
        texts: of "sft", "train", "validation", "test".
        labelled: columns text, label (0 or 1): the reviews that a two-label reward is trained on.
        held_out: the same columns, none of the others' reviews: those that it is measured on.
            No test or validation prompt comes from either.
        report: counts for `report.json` and the console.
    """

    texts: dict[str, list[str]]
    labelled: pd.DataFrame
    held_out: pd.DataFrame
    report: dict[str, Any] = field(default_factory=dict)


C = TypeVar("C", bound=DataConfig)


class DatasetKind(ABC, Generic[C]):
    """One kind of dataset.

    Attributes:
        labelled: whether it has reviews with labels, which a two-label reward is trained on.
        label_keys: the keys of its configuration that only labelled reviews depend on.
        labelled_bytes: about how much disk its labelled reviews take.
        config: its configuration.
    """

    labelled: ClassVar[bool] = False
    label_keys: ClassVar[tuple[str, ...]] = ()
    labelled_bytes: ClassVar[int] = 100_000_000

    def __init__(self, config: C) -> None:
        self.config = config

    def check(self) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse files that cannot be used, before any work.

        Raises:
            RunError: naming the file.
        """

    def check_labels(self) -> None:  # noqa: B027 (most have nothing to do)
        """Refuse reviews without labels, where a reward is trained on them.

        Raises:
            RunError: naming the file.
        """

    def fetch(self) -> None:  # noqa: B027 (most have nothing to do)
        """Download it, if need be.

        Raises:
            RunError: the Hub is out of reach.
        """

    @abstractmethod
    def content(self) -> str:
        """Return a hash of the reviews, which the keys of all artifacts made of them depend on."""

    @abstractmethod
    def divide(self, held_out: int) -> Reviews:
        """Give every review its use, a function of the configuration and the content alone.

        Args:
            held_out: labelled reviews that a trained reward is measured on; 0 where no reward is trained.

        Raises:
            RunError: fewer usable reviews than asked for.
        """


def dataset_of(config: DataConfig) -> DatasetKind[Any]:
    """Return the dataset that a configuration names.

    Raises:
        RunError: its module is missing or cannot be used.
    """
    return cast(DatasetKind[Any], load_kind("imdb_rlhf.data", config, DatasetKind))


def divide_reviews(kind: DatasetKind[Any], held_out: int) -> Reviews:
    """Return the reviews of a dataset by their use, all of which are there.

    Args:
        kind: the dataset.
        held_out: labelled reviews that a trained reward is measured on; 0 where no reward is trained.

    Raises:
        RunError: the dataset leaves a use without reviews.
    """
    reviews = kind.divide(held_out)
    empty = [f"{role} without reviews" for role in ("sft", *PROMPT_ROLES) if not len(reviews.texts.get(role, ()))]
    if held_out:
        tables = {"labelled": reviews.labelled, "held_out": reviews.held_out}
        missing = [role for role, table in tables.items() if not len(table) or not {"text", "label"} <= set(table)]
        empty += [f"{role} without rows of text and label" for role in missing]
    if empty:
        raise RunError(f"data={kind.config.name}: {type(kind).__module__}.Kind.divide leaves {empty[0]}")
    return reviews


def content_of(kind: DatasetKind[Any]) -> str:
    """Return the hash of a dataset's reviews.

    Raises:
        RunError: the dataset gives none.
    """
    content: Any = kind.content()
    if not isinstance(content, str) or not content:
        raise RunError(
            f"data={kind.config.name}: {type(kind).__module__}.Kind.content returns {content!r}; return a hash"
        )
    return content
