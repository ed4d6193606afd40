"""Ranges of numbers, checked over the whole tree before anything is loaded."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from imdb_rlhf.errors import ConfigError


def number(owner: Any, key: str, prefix: str, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuse a number out of its range."""
    value = getattr(owner, key)
    if value is None:
        return
    name = f"{prefix}{key}"
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number; give one {_range(low, high, above)}")
    if value < low or (above and value <= low) or value > high:
        raise ConfigError(f"{name}={value} is out of range; give a number {_range(low, high, above)}")


def _range(low: float, high: float, above: bool) -> str:
    text = f"above {low:g}" if above else f"of at least {low:g}"
    return text if high == math.inf else f"{text} and at most {high:g}"


def check(node: Any, at: str = "") -> None:
    """Check `node` and all below it: every number finite, every value in its range.

    Raises:
        ConfigError: naming the key.
    """
    if at and hasattr(node, "check"):
        node.check(at)
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            check(value, f"{at}{field.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{at}{field.name}={value} is not a finite number; give one that is")
