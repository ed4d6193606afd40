"""Tables on the disk: parquet, without a number that is nan or infinite."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from imdb_rlhf.errors import RunError


def write_table(path: Path, frame: pd.DataFrame, unknown: Sequence[str] = ()) -> None:
    """Write a parquet file without the index.

    Args:
        path: the file.
        frame: the table.
        unknown: columns in which nan stands for an unknown number; it is written as null.

    Raises:
        RunError: a number is nan or infinite; nothing is written.
    """
    for name in frame.columns:
        column = frame[name].to_numpy()
        if name not in unknown and column.dtype.kind == "f" and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise RunError(f"{path}: {name} of row {row} is {column[row]}, so it is not written; no result can be used")
    frame.to_parquet(path, index=False)
