"""The plain values of a finished run's `config.yaml` as classes again, without Hydra."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast, get_args, get_type_hints

from imdb_rlhf.config.keys import CLASSES
from imdb_rlhf.errors import ConfigError


def typed(base: type, values: Mapping[str, Any], key: str) -> Any:
    """The one class below `base` whose keys these are, with the values.

    Args:
        base: `RewardConfig`, `OptimConfig`, ...
        values: a section of a `config.yaml`.
        key: the section's name, for messages.

    Raises:
        ConfigError: no class has these keys, or several have; or a value is none of an enum's.
    """
    names = set(values)
    having: list[Any] = [kind for kind in CLASSES.values() if issubclass(kind, base)]
    having = [kind for kind in having if {field.name for field in fields(kind)} == names]
    if len(having) > 1:
        having = [kind for kind in having if getattr(kind, "kind", None) == values.get("name")]
    if len(having) != 1:
        raise ConfigError(f"{key} has the keys {', '.join(sorted(names))}, which no kind of this version has")
    hints = get_type_hints(having[0])
    return having[0](**{name: _value(hints[name], value, f"{key}.{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
    kind = next((part for part in (hint, *get_args(hint)) if isinstance(part, type)), None)
    if value is None or kind is None:
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        return typed(kind, value, key)
    try:
        return kind(value) if issubclass(kind, Enum) else value
    except ValueError as error:
        choices = [str(choice) for choice in cast(type[Enum], kind)]
        raise ConfigError(f"{key}={value!r} is none of {', '.join(choices)}") from error
