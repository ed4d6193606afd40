"""One colour and one marker a method, the same in every picture."""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

# Okabe and Ito, "Color Universal Design" (2008), without black, which is the ink of axes, optimum and best-of-N.
# Yellow is faint on white: last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# matplotlib's code and plotly's symbol of one shape.
MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
)
METHODS = ("DPO", "PPO", "Unlikelihood", "PPO-GT (TRL)", "PPO-GT", "Preferred-FT", "SFT", "DPO (ipo)")


class Style(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: as `#rrggbb`.
        marker: matplotlib's code.
        symbol: plotly's name of the same shape.
    """

    colour: str
    marker: str
    symbol: str


def style(method: int | str) -> Style:
    """The style of a method, by name or by its place in `METHODS`; a name that is not there always gets the same one.

    Past the last colour the colours come again with other markers.
    """
    if isinstance(method, str):
        method = METHODS.index(method) if method in METHODS else len(METHODS) + zlib.crc32(method.encode())
    lap, place = divmod(method, len(PALETTE))
    return Style(PALETTE[place], *MARKERS[(place + lap) % len(MARKERS)])


def colour(method: int | str) -> str:
    """The colour of a method, by name or by its place in `METHODS`."""
    return style(method).colour


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """The styles of the methods of one picture.

    Names in `METHODS` keep their own style; where one stands only with what tells two of it apart, such as
    "DPO (labels=...)", the first of these has it. Another that would have the colour of a method before it takes the
    next free colour; when none is left, the next free pair of colour and marker.
    """
    names = list(dict.fromkeys(methods))
    found = {name: style(name) for name in names if name in METHODS}
    taken = set(found)
    for name in names:
        plain = name.rpartition(" (")[0]
        if name not in found and plain in METHODS and plain not in taken:
            found[name] = style(plain)
            taken.add(plain)
    every = [style(place) for place in range(len(PALETTE) * len(MARKERS))]
    for name in names:
        if name not in found:
            wanted, colours = [style(name), *every], {each.colour for each in found.values()}
            free = [each for each in wanted if each.colour not in colours] or [
                each for each in wanted if each not in found.values()
            ]
            found[name] = (free or wanted)[0]
    return {name: found[name] for name in names}
