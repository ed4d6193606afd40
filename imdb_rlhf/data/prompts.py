"""Reviews as tokens: SFT rows and prompts.

Prompts are the first 2 to 8 tokens of a review, from position 0 on, so SFT sees reviews from position 0 on too.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.data import PromptsConfig
from imdb_rlhf.data.reviews import PROMPT_ROLES, Reviews
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator

Encode = Callable[[list[str]], list[list[int]]]  # texts to tokens, none of them special


def beginning(bos_id: int | None) -> list[int]:
    """What every row begins with: BOS, or nothing."""
    return [] if bos_id is None else [bos_id]


def encode_prompts(
    texts: list[str], role: str, config: PromptsConfig, seed: int, encode: Encode, bos_id: int | None
) -> list[list[int]]:
    """Prefixes of 2 to 8 tokens after BOS, if rows begin with it; the length is drawn evenly from (seed, role, index).

    Raises:
        RunError: a review has fewer tokens than its prompt.
    """
    prompts = []
    for index, tokens in enumerate(_first_tokens(texts, config.max_tokens, encode)):
        length = int(generator(seed, "prompt", role, index).integers(config.min_tokens, config.max_tokens + 1))
        if len(tokens) < length:
            raise RunError(
                f"a {role} review has {len(tokens)} tokens, fewer than its prompt's {length}; lower data.prompts"
            )
        prompts.append([*beginning(bos_id), *tokens[:length]])
    return prompts


def encode_reviews(
    texts: list[str], max_tokens: int, eos_id: int, encode: Encode, bos_id: int | None
) -> list[list[int]]:
    """The first `max_tokens` tokens of each review, BOS included; one that is shorter ends in EOS."""
    rows = []
    for tokens in _first_tokens(texts, max_tokens, encode):
        row = [*beginning(bos_id), *tokens]
        rows.append([*row, eos_id] if len(row) < max_tokens else row[:max_tokens])
    return rows


def _first_tokens(texts: list[str], count: int, encode: Encode) -> list[list[int]]:
    """The tokens of each text, or of a beginning of it of twice as many as `count`: a cut changes the last ones."""
    beginnings = [text[: 64 * count] for text in texts]
    rows = encode(beginnings)
    unsure = [at for at, row in enumerate(rows) if len(row) < 2 * count and len(beginnings[at]) < len(texts[at])]
    for at, row in zip(unsure, encode([texts[at] for at in unsure]), strict=True):
        rows[at] = row
    return rows


def write(
    folder: Path, reviews: Reviews, prompts: dict[str, list[list[int]]], rows: list[list[int]], bos: str | None
) -> None:
    """Leave the data for the stages after: `sft.npz`, `prompts.parquet`, `report.json`; `bos` is the first token."""
    lengths = np.array([len(row) for row in rows])
    np.savez(folder / "sft.npz", ids=np.concatenate(rows).astype(np.int32), lengths=lengths.astype(np.int32))
    frame = pd.DataFrame(
        [
            {"split": role, "prompt_id": index, "ids": ids}
            for role in PROMPT_ROLES
            for index, ids in enumerate(prompts[role])
        ]
    )
    write_table(folder / "prompts.parquet", frame)
    training = {tuple(ids) for ids in prompts["train"]}
    report = reviews.report | {
        "bos": bos,
        "sft_tokens": int(lengths.sum()),
        "test_prompts_also_training_prompts": float(np.mean([tuple(ids) in training for ids in prompts["test"]])),
    }
    write_json(folder / "report.json", report)


def read_rows(folder: Path) -> list[np.ndarray]:
    """The SFT rows, (tokens,) int32 each."""
    with np.load(folder / "sft.npz") as stored:
        return np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])


def read_prompts(folder: Path, split: str) -> list[list[int]]:
    """The prompts of a split, in the order of their ids."""
    frame = pd.read_parquet(folder / "prompts.parquet")
    return [[int(token) for token in ids] for ids in frame[frame["split"] == split].sort_values("prompt_id")["ids"]]
