"""How durations, numbers and plurals are written."""

import re
from collections.abc import Iterable, Sequence


def duration(seconds: float) -> str:
    """Return `31.2 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


_UNITS = {"h": 3600, "min": 60, "s": 1}
_DURATION = re.compile(r"(?:(?P<h>\d+) h )?(?:(?P<min>\d+) min ?)?(?:(?P<s>\d+(?:\.\d+)?) s)?$")


def seconds_left(line: str) -> float | None:
    """The seconds that a line of progress says are left (`3.1 steps/s 2 min 05 s left`); None where it says none."""
    before, found, _ = line.partition(" left")
    said = _DURATION.search(before) if found else None
    if said is None or not said[0]:
        return None
    return sum(float(value) * _UNITS[unit] for unit, value in said.groupdict().items() if value)


def decimals(values: Iterable[float | None], places: int) -> str:
    """Return the format of numbers that are shown together: so many decimal places, or digits where all are small."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return f".{places}g" if 0 < largest < 10.0 ** (1 - places) else f".{places}f"


def number(value: float | None, spec: str) -> str:
    """Return a value in that format, a dash for None, and no minus before a zero."""
    text = "-" if value is None else format(value, spec)
    return text.removeprefix("-") if value is not None and float(text) == 0 else text  # no -0.000


def with_interval(value: float | None, interval: Sequence[float] | None, spec: str) -> str:
    """Return a value with its confidence interval, such as `0.812 [0.790, 0.834]`."""
    return number(value, spec) + (f" [{number(interval[0], spec)}, {number(interval[1], spec)}]" if interval else "")


def plural(unit: str) -> str:
    """Return the plural of a regular noun."""
    return unit + ("es" if unit.endswith(("s", "x", "ch", "sh")) else "s")
