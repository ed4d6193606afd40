"""How pictures look, and how they are written."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.frontier.figure.references import INK

DPI = 300
# No file records when or by what it was made, so equal frontiers give equal bytes.
METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
LOOK = {
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "svg.hashsalt": "imdb_rlhf",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.solid_capstyle": "butt",
}


def save(compose: Callable[[], Figure], *paths: Path) -> None:
    """Write a picture to files, each whole or not at all; the same picture gives the same bytes.

    Args:
        compose: draws it; called in the style of all pictures.
        paths: each ends in .svg, .pdf or .png, which has 300 pixels per inch.
    """
    with matplotlib.style.context(["default", LOOK]):
        figure = compose()
        for path in paths:
            file = io.BytesIO()
            figure.savefig(file, format=path.suffix[1:], metadata=METADATA[path.suffix])
            atomic_write(path, file.getvalue())
