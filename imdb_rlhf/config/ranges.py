"""Ranges of numbers, written beside the type of a field: `layers: Annotated[int, Range(1, 1000)]`.

An upper bound is far above every sensible value: a number beyond it is a typing error.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from imdb_rlhf.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return value <= self.high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        text = f"above {_digits(self.low)}" if self.above else f"of at least {_digits(self.low)}"
        return text if self.high == math.inf else f"{text} and at most {_digits(self.high)}"


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


Seed = Annotated[int, Range(0, 2**63 - 1)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 0.999999)]
Epochs = Annotated[float, Range(0, 1000, above=True)]
Steps = Annotated[int, Range(1, 10**9)]
BatchSize = Annotated[int, Range(1, 10**6)]
Tokens = Annotated[int, Range(1, 10**6)]
Prompts = Annotated[int, Range(1, 10**6)]
Coefficient = Annotated[float, Range(0, 10**6)]
PositiveCoefficient = Annotated[float, Range(0, 10**6, above=True)]


def check(node: Any, at: str = "") -> None:
    """Refuse a number that is not finite or out of its field's range, in `node` and in everything below it.

    A class with a `check(at)` of its own refuses values that do not go together; it is called after its ranges were
    checked. `at` is the prefix of its fields' names: `policy.optim.` or nothing.

    Raises:
        ConfigError: naming the key, the value and the way out.
    """
    schema: Any = type(node)
    ranges = _ranges(schema)
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(f"{at}{field.name}", value, ranges.get(field.name))
    if at and hasattr(node, "check"):
        node.check(at)
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            check(value, f"{at}{field.name}.")


@cache
def _ranges(schema: Hashable) -> dict[str, Range]:
    """The range of each field that has one."""
    hints = get_type_hints(schema, include_extras=True)
    return {name: wanted for name, hint in hints.items() if (wanted := range_of(hint)) is not None}


def range_of(hint: Any) -> Range | None:
    """The range that a type is annotated with: `Seed`, `Seed | None`."""
    return next((mark for mark in marks(hint) if isinstance(mark, Range)), None)


def marks(hint: Any) -> list[Any]:
    """What a type is annotated with, or the type beside its None."""
    return [mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ())]


def _check_number(key: str, value: float, wanted: Range | None) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number; give one {wanted or 'that is'}")
    if wanted is not None and value not in wanted:
        raise out_of_range(key, value, wanted)


def out_of_range(key: str, value: float, wanted: Range) -> ConfigError:
    """The refusal of a number outside its range."""
    return ConfigError(f"{key}={value} is out of range; give a number {wanted}")
