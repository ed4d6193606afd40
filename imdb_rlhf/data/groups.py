"""Groups of K completions of one prompt: the unit of data, from which pairs and rankings are drawn.

A group table has a row per completion, ordered by prompt and sample: `prompt_id`, `sample_id`, `prompt_ids`,
`completion_ids` (as sampled), `prompt`, `completion` (texts), `finished`, `reward`, `reward_logit`, `ref_logprob`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from imdb_rlhf.errors import RunError

COLUMNS = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "prompt", "completion"]
COLUMNS += ["finished", "reward", "reward_logit", "ref_logprob"]


def read(folder: Path) -> pd.DataFrame:
    """The group table of an artifact.

    Raises:
        RunError: a reference log-prob is not finite.
    """
    groups = pd.read_parquet(folder / "groups.parquet")
    if not np.isfinite(groups["ref_logprob"]).all():
        raise RunError(f"{folder}: reference log-probs are not finite; delete the folder and run again")
    return groups


def members(groups: pd.DataFrame, prompts: int | None) -> Iterator[tuple[int, list[int]]]:
    """Yield each prompt's id and the positions of its rows, in the order of ids.

    Args:
        groups: a group table.
        prompts: how many prompts, the first ones; None for all.
    """
    for prompt, rows in islice(groups.groupby("prompt_id", sort=True).indices.items(), prompts):
        yield int(str(prompt)), [int(row) for row in rows]


def without_appended_eos(groups: pd.DataFrame, eos_id: int) -> pd.DataFrame:
    """The same table without each EOS that was appended to a completion cut at the length limit.

    Args:
        groups: a group table.
        eos_id: the token that ends a completion that was not cut.
    """
    completion_ids = [
        ids[:-1] if not finished and len(ids) > 1 and ids[-1] == eos_id else ids
        for ids, finished in zip(groups["completion_ids"], groups["finished"], strict=True)
    ]
    return groups.assign(completion_ids=completion_ids)


def why_none(dropped: dict[str, int]) -> str:
    """Why no pair, ranking or choice is left, and what to change."""
    ways = []
    if dropped["below min_margin"]:
        ways.append("lower pairs.min_margin")
    if dropped["equal rewards"]:
        ways.append("set pairs.ties=random pairs.min_margin=0")
    ways += ["use more prompts", "another reward"]
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"({counts}); {', '.join(ways[:-1])} or {ways[-1]}"
