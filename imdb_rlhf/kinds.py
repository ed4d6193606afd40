"""Kinds that a configuration names: the class `Kind` of the module that has the kind's name."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from imdb_rlhf.errors import RunError


def load_kind(package: str, config: object, base: type) -> Any:
    """Return the kind of a configuration, whose module is imported now: a package knows no list of its kinds.

    Args:
        package: `imdb_rlhf.rewards` or `imdb_rlhf.data`.
        config: its class has `kind`, the name of a module of the package.
        base: what the module's class `Kind` must be.

    Raises:
        RunError: the configuration has no kind, the module is missing or cannot be imported, or its class is not whole.
    """
    schema: Any = type(config)
    kind = getattr(schema, "kind", None)
    if kind is None:
        raise RunError(f"{schema.__name__} has no kind; give it the name of its module in {package}")
    name = f"{package}.{kind}"
    if find_spec(name) is None:
        raise RunError(f"{schema.__name__} is of kind {kind!r}, and there is no module {name}; name one that exists")
    try:
        module: Any = import_module(name)
    except Exception as error:
        raise RunError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    cls: Any = getattr(module, "Kind", None)
    derived = isinstance(cls, type) and issubclass(cls, base)
    if not derived:
        raise RunError(f"{name} needs a class Kind, derived from {base.__module__}.{base.__name__}")
    check_whole(cls, f"{name}.Kind", base)
    return cls(config)


def check_whole(cls: type, name: str, contract: type, others: Iterable[str] = ()) -> None:
    """Refuse a class that lacks something that its contract names.

    Args:
        cls: the class.
        name: what messages call it.
        contract: where what it needs is described; abstract methods must be implemented.
        others: attributes that it needs besides.

    Raises:
        RunError: naming what is missing.
    """
    missing = {*getattr(cls, "__abstractmethods__", ()), *(word for word in others if not hasattr(cls, word))}
    if missing:
        raise RunError(
            f"{name} has no {', '.join(sorted(missing))}, which {contract.__module__}.{contract.__name__} asks for"
        )
