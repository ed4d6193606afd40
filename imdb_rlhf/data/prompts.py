"""Which review serves what, and reviews as tokens: SFT rows and prompts from disjoint reviews.

Prompts are the first 2 to 8 tokens of a review, from position 0 on, so SFT sees reviews from position 0 on too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.config.data import DataConfig, EmbeddedData, ImdbData, PromptsConfig
from imdb_rlhf.data import embedded, imdb
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator

PROMPT_ROLES = ("train", "validation", "test")
Encode = Callable[[list[str]], list[list[int]]]  # texts to tokens, no special ones


@dataclass
class Reviews:
    """Reviews by what they serve; no text stands in two of sft, train, validation, test.

    Attributes:
        texts: of "sft", "train", "validation", "test".
        labelled: columns text, label (0 or 1): what a two-label reward is trained on.
        held_out: the same, apart from all the others: what it is held to account on.
            No test or validation prompt comes from either.
        report: counts that a person wants to see.
    """

    texts: dict[str, list[str]]
    labelled: pd.DataFrame
    held_out: pd.DataFrame
    report: dict[str, Any] = field(default_factory=dict)


def divide(config: DataConfig, held_out: int, folder: Path | None = None) -> Reviews:
    """Give every review its use, a function of the configuration and the data's content alone.

    Args:
        config: sizes and seed.
        held_out: labelled reviews that no stage trains on; 0 where no reward is trained.
        folder: of the parquet files of `data=imdb`.

    Raises:
        RunError: fewer usable reviews than asked for.
    """
    if isinstance(config, EmbeddedData):
        return _divide_embedded(config, held_out)
    assert isinstance(config, ImdbData) and folder is not None
    return _divide_imdb(config, held_out, folder)


def _divide_embedded(config: EmbeddedData, held_out: int) -> Reviews:
    sizes = {
        "test": config.prompts.test,
        "validation": config.prompts.validation,
        "train": config.prompts.train,
        "sft": config.sft_reviews,
        "held_out": held_out,
        "labelled": config.labelled_reviews if held_out else 0,
    }
    reviews = iter(embedded.generate(sum(sizes.values()), config.seed))
    taken = {role: [next(reviews) for _ in range(size)] for role, size in sizes.items()}
    frames = {
        role: pd.DataFrame({"text": [r.text for r in taken[role]], "label": [r.label for r in taken[role]]})
        for role in ("labelled", "held_out")
    }
    texts = {role: [r.text for r in taken[role]] for role in ("sft", *PROMPT_ROLES)}
    return Reviews(texts, frames["labelled"], frames["held_out"], {"reviews": {k: len(v) for k, v in taken.items()}})


def _divide_imdb(config: ImdbData, held_out: int, folder: Path) -> Reviews:
    pools, report = _read_pools(config, held_out, folder)
    words = config.prompts.max_tokens  # a token never spans two words, so this many words are enough tokens
    short: set[tuple[str, int]] = set()  # passed over once or more

    def take(splits: Sequence[str], count: int, what: str, *, long: bool) -> pd.DataFrame:
        parts, missing = [], count
        for split in splits:
            pool = pools[split]
            fits = pool["words"] >= words if long else pool["words"] > 0
            chosen = pool[fits].head(missing)
            if len(chosen):
                passed = fits.loc[: chosen.index[-1]]
                short.update((split, int(row)) for row in passed.index[~passed])
            parts.append(chosen)
            pools[split] = pool.drop(chosen.index)
            missing -= len(chosen)
        if missing:
            raise RunError(
                f"{what}={count} is more than the {count - missing} usable reviews left in {'+'.join(splits)} of "
                f"{folder}; ask for fewer"
            )
        return pd.concat(parts)

    labelled = pd.concat([pools[split] for split in config.labelled_splits]) if held_out else pd.DataFrame()
    test = take(config.test_splits, config.prompts.test, "data.prompts.test", long=True)
    validation = take(config.prompt_splits, config.prompts.validation, "data.prompts.validation", long=True)
    train = take(config.prompt_splits, config.prompts.train, "data.prompts.train", long=True)
    sft = take(config.sft_splits, config.sft_reviews, "data.sft_reviews", long=False)
    held = take(config.test_splits, held_out, "reward.held_out", long=False)  # last: the others do not depend on it
    report["too_short_for_a_prompt"] = len(short)
    texts = {"sft": sft, "train": train, "validation": validation, "test": test}
    report["reviews"] = {role: len(frame) for role, frame in texts.items()}
    if held_out:
        apart = {*held["name"], *test["name"], *validation["name"]}
        labelled = labelled[~labelled["name"].isin(apart)]
        if labelled["label"].nunique() < 2:
            raise RunError(
                f"{folder}: {'+'.join(config.labelled_splits)} has one label only; a two-label reward needs both"
            )
    return Reviews(
        {role: list(frame["text"]) for role, frame in texts.items()},
        labelled.reindex(columns=["text", "label"]).reset_index(drop=True),
        held.reindex(columns=["text", "label"]).reset_index(drop=True),
        report,
    )


def _read_pools(config: ImdbData, held_out: int, folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Each split, shuffled, without a text that stands in it twice or in an earlier one (test first)."""
    splits = list(dict.fromkeys([*config.test_splits, *config.prompt_splits, *config.sft_splits]))
    needs_labels = {*config.labelled_splits, *config.test_splits} if held_out else set()
    splits += [split for split in config.labelled_splits if held_out and split not in splits]
    pools: dict[str, pd.DataFrame] = {}
    seen: set[str] = set()
    report: dict[str, Any] = {"empty_texts_skipped": {}, "duplicates_removed": {}}
    for split in splits:
        frame, skipped = imdb.read_split(folder, split, config.br, labels=split in needs_labels)
        key = frame["text"].str.replace("<br />", " ").str.lower().str.split().str.join(" ")
        within, across = key.duplicated(), key.isin(seen)
        seen.update(key)
        report["empty_texts_skipped"][split] = skipped
        report["duplicates_removed"][split] = {
            "within": int(within.sum()),
            "also in an earlier split": int((across & ~within).sum()),
        }
        frame = frame[~(within | across)]
        order = generator(config.seed, "data", split).permutation(len(frame))
        frame = frame.iloc[order].reset_index(drop=True)
        frame["words"] = frame["text"].map(lambda text: len(text.split()))
        frame["name"] = [f"{split}/{row}" for row in range(len(frame))]
        pools[split] = frame
    return pools, report


def encode_prompts(texts: list[str], role: str, config: PromptsConfig, seed: int, encode: Encode) -> list[list[int]]:
    """Prefixes of 2 to 8 tokens, the length drawn evenly from (seed, role, index).

    Raises:
        RunError: a review has fewer tokens than its prompt.
    """
    prompts = []
    for index, tokens in enumerate(encode([text[: 64 * config.max_tokens] for text in texts])):
        length = int(generator(seed, "prompt", role, index).integers(config.min_tokens, config.max_tokens + 1))
        if len(tokens) < length:
            raise RunError(
                f"a {role} review has {len(tokens)} tokens, fewer than its prompt's {length}; lower data.prompts"
            )
        prompts.append(tokens[:length])
    return prompts


def encode_reviews(texts: list[str], max_tokens: int, eos_id: int, encode: Encode) -> list[list[int]]:
    """The first `max_tokens` tokens of each review; one that is shorter ends in EOS."""
    rows = []
    for tokens in encode([text[: 64 * max_tokens] for text in texts]):
        rows.append([*tokens, eos_id] if len(tokens) < max_tokens else tokens[:max_tokens])
    return rows


def write(folder: Path, reviews: Reviews, prompts: dict[str, list[list[int]]], rows: list[list[int]]) -> None:
    """Leave the data for the stages after: `sft.npz`, `prompts.parquet`, `report.json`."""
    lengths = np.array([len(row) for row in rows])
    np.savez(folder / "sft.npz", ids=np.concatenate(rows).astype(np.int32), lengths=lengths.astype(np.int32))
    frame = pd.DataFrame(
        [
            {"split": role, "prompt_id": index, "ids": ids}
            for role in PROMPT_ROLES
            for index, ids in enumerate(prompts[role])
        ]
    )
    frame.to_parquet(folder / "prompts.parquet", index=False)
    training = {tuple(ids) for ids in prompts["train"]}
    report = reviews.report | {
        "sft_tokens": int(lengths.sum()),
        "test_prompts_also_training_prompts": float(np.mean([tuple(ids) in training for ids in prompts["test"]])),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def read_rows(folder: Path) -> list[np.ndarray]:
    """The SFT rows, (tokens,) int32 each."""
    with np.load(folder / "sft.npz") as stored:
        return np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])


def read_prompts(folder: Path, split: str) -> list[list[int]]:
    """The prompts of a split, in the order of their ids."""
    frame = pd.read_parquet(folder / "prompts.parquet")
    return [[int(token) for token in ids] for ids in frame[frame["split"] == split].sort_values("prompt_id")["ids"]]
