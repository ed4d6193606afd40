"""The group table of an artifact, and completions as they were sampled."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.data.groups import read, without_appended_eos
from imdb_rlhf.errors import RunError
from tests.data.tables import group_table

EOS = 0


def test_a_table_whose_reference_log_probs_are_finite_is_read(tmp_path: Path) -> None:
    groups = group_table([[0.0, 1.0]])
    groups.to_parquet(tmp_path / "groups.parquet", index=False)
    assert read(tmp_path)["reward_logit"].tolist() == [0, 1]
    for value in (np.inf, np.nan):
        groups.assign(ref_logprob=[-1.0, value]).to_parquet(tmp_path / "groups.parquet", index=False)
        with pytest.raises(RunError, match="not finite"):
            read(tmp_path)


def test_an_eos_that_was_appended_is_taken_away() -> None:
    groups = pd.DataFrame(
        {"completion_ids": [[5, 6, EOS], [5, 6, EOS], [5, 6], [EOS]], "finished": [True, False, False, False]}
    )
    assert without_appended_eos(groups, EOS)["completion_ids"].tolist() == [[5, 6, EOS], [5, 6], [5, 6], [EOS]]
