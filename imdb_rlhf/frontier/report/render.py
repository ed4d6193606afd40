"""A page: its frame, style, scripts and data in one HTML file that needs no network and no library.

`page/` holds the parts. The data are JSON in a script element that no browser runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent / "page"
LARGEST = 1_800_000  # bytes of a page: below 2 MB, so that it can be sent by mail and opened on a phone


def render(frame: str, scripts: Sequence[str], data: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        frame: the file in `page/` that has the marks `@style@`, `@data@` and `@script@`.
        scripts: the files in `page/` that are joined as its script.
        data: what the scripts show.
    """
    parts = {
        "@style@": _part("report.css"),
        "@data@": embed(data),
        "@script@": "\n".join(_part(name) for name in scripts),
    }
    rest, page = _part(frame), ""
    for mark, text in parts.items():
        before, _, rest = rest.partition(mark)
        page += before + text
    return page + rest


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def embed(value: Any) -> str:
    """A value as JSON that is safe inside a script element: no character of it can end or open an element.

    Characters beyond ASCII are escaped, and so are those with a meaning in HTML; nan and infinity become null.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """The same value with Python's own types, and None in place of nan and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
