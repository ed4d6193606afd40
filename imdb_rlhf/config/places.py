"""Keys that hashes leave out: those that say where something is stored (`path: Place`), and unset ones that came later.

The key of an artifact hashes what is stored instead, so a file or a folder can be moved: the same content is the same
run and the same method. A key that is marked `LATER` is left out where it is null, as if it did not exist, so that what
was made before it came is still found.
"""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

from imdb_rlhf.config.ranges import marks

LATER = "later"
_PLACE = "place"
Place = Annotated[str, _PLACE]
Places = Annotated[list[str], _PLACE]


def places_of(schema: Hashable) -> frozenset[str]:
    """The fields of a class that are places."""
    return _marked(schema, _PLACE)


def hashed(node: Any) -> dict[str, Any]:
    """A configuration as hashes hold it: without places and unset `LATER` keys, its own and those of all below it."""
    schema: Any = type(node)
    names = [field.name for field in fields(node) if field.name not in places_of(schema)]
    later = _marked(schema, LATER)
    left = {name: getattr(node, name) for name in names if name not in later or getattr(node, name) is not None}
    return {name: hashed(value) if is_dataclass(value) else value for name, value in left.items()}


@cache
def _marked(schema: Hashable, mark: str) -> frozenset[str]:
    """The fields of a class whose type has a mark."""
    hints = get_type_hints(schema, include_extras=True)
    return frozenset(name for name, hint in hints.items() if mark in marks(hint))
