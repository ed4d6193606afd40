"""Keys that say where something is stored: `path: Place`.

The key of an artifact hashes what is there instead, so a file or a folder can be moved: the same content is the same
run and the same method.
"""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

from imdb_rlhf.config.ranges import marks

_PLACE = "place"
Place = Annotated[str, _PLACE]


@cache
def places_of(schema: Hashable) -> frozenset[str]:
    """The fields of a class that are places."""
    hints = get_type_hints(schema, include_extras=True)
    return frozenset(name for name, hint in hints.items() if _PLACE in marks(hint))


def without_places(node: Any) -> dict[str, Any]:
    """A configuration as a dictionary, without its places and those of everything below it."""
    schema: Any = type(node)
    names = [field.name for field in fields(node) if field.name not in places_of(schema)]
    left = {name: getattr(node, name) for name in names}
    return {name: without_places(value) if is_dataclass(value) else value for name, value in left.items()}
