"""Preferences in TRL's format, out and in: groups as `prompt`, `chosen`, `rejected`, and such a parquet as groups."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from imdb_rlhf.data.groups import COLUMNS
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.prompts import Encode, beginning
from imdb_rlhf.errors import RunError

TEXTS = ["prompt", "chosen", "rejected"]


def to_trl(groups: pd.DataFrame) -> pd.DataFrame:
    """The same groups as a preference table that TRL's trainers read.

    Columns `prompt`, `chosen`, `rejected` (texts without EOS, leading space kept), `score_chosen`, `score_rejected`
    (log-odds). Every pair with different rewards and different texts, the higher reward chosen.
    """
    ordered = groups.sort_values("prompt_id", kind="stable", ignore_index=True)
    starts = np.flatnonzero(np.diff(ordered["prompt_id"].to_numpy(), prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    # the pairs of a group, first of the first row, then of the second ...
    pairs = [start + np.stack(np.triu_indices(size, 1), 1) for start, size in zip(starts, sizes, strict=True)]
    first, second = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs]).T
    logits, texts = ordered["reward_logit"].to_numpy(), ordered["completion"].to_numpy()
    distinct = (logits[first] != logits[second]) & (texts[first] != texts[second])
    first, second = first[distinct], second[distinct]
    best = np.where(logits[second] > logits[first], second, first)
    worst = first + second - best
    columns = {
        "prompt": ordered["prompt"].to_numpy()[best],
        "chosen": texts[best],
        "rejected": texts[worst],
        "score_chosen": logits[best],
        "score_rejected": logits[worst],
    }
    return pd.DataFrame(columns, columns=[*TEXTS, "score_chosen", "score_rejected"])


def check_preferences(path: Path) -> None:
    """Refuse a preference file that cannot be read or lacks a column.

    Raises:
        RunError: naming the file and the column.
    """
    if not path.is_file():
        raise RunError(f"data.preferences={path}: no such file; give a parquet with prompt, chosen, rejected")
    try:
        names = pq.ParquetFile(path).schema_arrow.names
    except Exception as error:
        raise RunError(f"data.preferences={path} is not a readable parquet file: {error}".splitlines()[0]) from error
    for column in TEXTS:
        if column not in names:
            raise RunError(f"data.preferences={path} has no column {column!r} (it has {', '.join(names)})")


def from_preferences(
    path: Path, encode: Encode, eos_id: int, bos_id: int | None, *, append_eos: bool, context: int
) -> tuple[pd.DataFrame, Pairs]:
    """A preference parquet in TRL's format as a group table without rewards of its own, and its pairs.

    Args:
        path: columns `prompt`, `chosen`, `rejected` (strings).
        encode: the policy's tokenizer; gives no special token.
        eos_id: the token that ends a completion.
        bos_id: the token that rows begin with, if any.
        append_eos: whether completions end in EOS.
        context: pairs longer than this many tokens are skipped and counted.

    Returns:
        The table (reward 1 for a text that was chosen more often than rejected, else 0; `ref_logprob` is nan until it
        is scored) and the pairs in the order of the file, those of a prompt together.

    Raises:
        RunError: a value is not a string, or no pair is left.
    """
    frame = _read_texts(path)
    tokens = {name: encode(list(frame[name])) for name in frame}
    owners: dict[str, int] = {}
    rows_by_text: dict[tuple[int, str], int] = {}
    rows: list[dict[str, object]] = []
    pairs, prompts, wins = [], [], []
    dropped = {"same completion": 0, "empty": 0, "longer than the context": 0}
    for index, (prompt, *texts) in enumerate(frame.itertuples(index=False, name=None)):
        prompt_ids = [*beginning(bos_id), *tokens["prompt"][index]]
        completion_ids = [
            [*ids, eos_id] if append_eos else ids for ids in (tokens[name][index] for name in ("chosen", "rejected"))
        ]
        if texts[0] == texts[1]:
            dropped["same completion"] += 1
        elif not tokens["prompt"][index] or not all(completion_ids):
            dropped["empty"] += 1
        elif len(prompt_ids) + max(map(len, completion_ids)) > context:
            dropped["longer than the context"] += 1
        else:
            owner = owners.setdefault(prompt, len(owners))
            for text, ids in zip(texts, completion_ids, strict=True):
                if (owner, text) not in rows_by_text:
                    rows_by_text[owner, text] = len(rows)
                    wins.append(0)
                    rows.append(
                        {"prompt_id": owner, "prompt_ids": prompt_ids, "completion_ids": ids, "prompt": prompt}
                        | {"completion": text, "finished": append_eos}
                    )
            winner, loser = (rows_by_text[owner, text] for text in texts)
            wins[winner] += 1
            wins[loser] -= 1
            pairs.append((winner, loser))
            prompts.append(owner)
    if not pairs:
        raise RunError(
            f"data.preferences={path}: no pair is left of {len(frame)} "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.items())})"
        )
    order = np.argsort(np.array(prompts), kind="stable")
    return _group_table(rows, wins), Pairs(np.array(pairs)[order], np.array(prompts)[order], dropped)


def _read_texts(path: Path) -> pd.DataFrame:
    """The three text columns of a preference file, checked value by value."""
    check_preferences(path)
    frame = pd.read_parquet(path, columns=TEXTS)
    for column in frame:
        wrong = np.flatnonzero([not isinstance(value, str) for value in frame[column]])
        if len(wrong):
            raise RunError(f"data.preferences={path} row {wrong[0]}: {column} is not a string; mend the file")
    return frame


def _group_table(rows: list[dict[str, object]], wins: list[int]) -> pd.DataFrame:
    """Rows as a group table; `wins` is how much more often each was chosen than rejected."""
    table = pd.DataFrame(rows)
    table["sample_id"] = table.groupby("prompt_id").cumcount()
    table["reward"] = [float(net > 0) for net in wins]
    table["reward_logit"] = table["reward"]
    table["ref_logprob"] = np.nan
    return table[COLUMNS]
