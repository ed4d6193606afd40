"""Tables without a number that is nan or infinite."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.errors import RunError


def test_a_table_can_be_read_back(tmp_path):
    frame = pd.DataFrame({"step": [1, 2], "kl": [0.5, 1.5], "text": ["a", None], "ids": [[1], [2, 3]]}, index=[7, 3])
    write_table(tmp_path / "a.parquet", frame)
    back = pd.read_parquet(tmp_path / "a.parquet")
    assert (
        back.index.tolist() == [0, 1]
        and back["kl"].tolist() == [0.5, 1.5]
        and back["text"].isna().tolist() == [False, True]
    )


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_number_that_is_not_finite_is_not_written(tmp_path, number, kind):
    frame = pd.DataFrame({"kl": np.array([0.5, number, 1.0], dtype=kind)})
    with pytest.raises(RunError, match=f"a.parquet: kl of row 1 is {number}, so it is not written"):
        write_table(tmp_path / "a.parquet", frame)
    assert not list(tmp_path.iterdir())


def test_an_unknown_number_is_null(tmp_path):
    write_table(tmp_path / "a.parquet", pd.DataFrame({"kl": [1.0], "kl_k1": [np.nan]}), ["kl_k1"])
    assert pq.read_table(tmp_path / "a.parquet")["kl_k1"].to_pylist() == [None]
