"""Kinds that a configuration names: the class `Kind` of the module that has the kind's name."""

from importlib import import_module
from typing import Any

from imdb_rlhf.errors import RunError


def load_kind(package: str, kind: str) -> Any:
    """Return the class `Kind` of a module, which is imported now and not before: a package knows no list of its kinds.

    Args:
        package: `imdb_rlhf.rewards` or `imdb_rlhf.data`.
        kind: of a configuration class, and the name of its module in the package.

    Raises:
        RunError: there is no such module, it cannot be imported, or it has no class `Kind`.
    """
    try:
        return import_module(f"{package}.{kind}").Kind
    except (ImportError, SyntaxError, AttributeError) as error:
        raise RunError(f"{package}.{kind} cannot be used: {error}; it needs a class Kind") from error
