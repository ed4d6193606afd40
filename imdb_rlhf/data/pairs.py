"""Preference pairs: drawn from groups and labelled by the true reward, or read from a file; their order in an epoch."""

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from imdb_rlhf.config.stages import Labels, Order, PairsConfig, Ties
from imdb_rlhf.data.groups import members, read, why_none
from imdb_rlhf.data.rankings import Rankings
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator


@dataclass(frozen=True)
class Pairs:
    """Preference pairs over the rows of a group table.

    Attributes:
        rows: (pairs, 2) int64, the row of the winner and of the loser; the pairs of a prompt are neighbours.
        prompts: (pairs,) int64, the prompt of each pair.
        dropped: how many pairs were left out, by reason.
    """

    rows: np.ndarray
    prompts: np.ndarray
    dropped: dict[str, int]


def draw_pairs(groups: pd.DataFrame, config: PairsConfig, seed: int) -> Pairs:
    """All pairs of each group, labelled by the true reward's log-odds.

    Args:
        groups: a group table.
        config: how a pair's winner is drawn, and which pairs are dropped.
        seed: the labels are a function of (seed, prompt id).

    Raises:
        RunError: no pair is left.
    """
    rows, prompts = [], []
    dropped = {"same completion": 0, "equal rewards": 0, "below min_margin": 0}
    logits = groups["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in groups["completion_ids"]]
    for prompt, group in members(groups, config.prompts):
        random = generator(seed, "labels", prompt)
        for first, second in combinations(group, 2):
            coin, flip = random.random(2)  # drawn for every pair, so that dropping one leaves the others' labels alone
            gap = logits[first] - logits[second]
            if completions[first] == completions[second]:
                dropped["same completion"] += 1
            elif gap == 0 and config.ties == Ties.drop:
                dropped["equal rewards"] += 1
            elif abs(gap) < config.min_margin:
                dropped["below min_margin"] += 1
            else:
                rows.append((first, second) if _first_wins(gap, coin, flip, config) else (second, first))
                prompts.append(prompt)
    if not rows:
        raise RunError(f"no preference pair is left of {sum(dropped.values())} {why_none(dropped)}")
    return Pairs(np.array(rows, dtype=np.int64), np.array(prompts, dtype=np.int64), dropped)


def _first_wins(gap: float, coin: float, flip: float, config: PairsConfig) -> bool:
    """Whether the first of a pair wins, given r_first - r_second and two uniforms."""
    if config.labels == Labels.bradley_terry:
        return bool(coin < 1 / (1 + np.exp(-np.clip(gap / (config.tau or 1.0), -500, 500))))
    wins = gap > 0 if gap != 0 else coin < 0.5
    return bool(wins != (config.labels == Labels.noisy and flip < (config.noise or 0.0)))


def flip(pairs: Pairs, noise: float, seed: int) -> Pairs:
    """The same pairs with each label flipped with probability `noise`."""
    flips = generator(seed, "flips").random(len(pairs.rows)) < noise
    return Pairs(np.where(flips[:, None], pairs.rows[:, ::-1], pairs.rows), pairs.prompts, pairs.dropped)


def load_pairs(folder: Path, config: PairsConfig, seed: int) -> tuple[pd.DataFrame, Pairs]:
    """The group table of an artifact and its pairs: labelled by the true reward, or those of a preference file.

    Args:
        folder: the artifact of groups.
        config: how pairs are drawn; the pairs of a preference file are taken as they are, but for `noise`, which
            flips their labels, and `prompts`.
        seed: of labels and flips.

    Raises:
        RunError: no pair is left.
    """
    groups = read(folder)
    if not (folder / "pairs.npz").exists():
        return groups, draw_pairs(groups, config, seed)
    with np.load(folder / "pairs.npz") as arrays:
        dropped = json.loads((folder / "report.json").read_text())["dropped"]
        used = np.isin(arrays["prompts"], np.unique(arrays["prompts"])[: config.prompts])
        pairs = Pairs(arrays["rows"][used], arrays["prompts"][used], dropped)
    return groups, pairs if config.noise is None else flip(pairs, config.noise, seed)


def shuffled(examples: Pairs | Rankings, order: Order, seed: int, epoch: int) -> np.ndarray:
    """(examples,) the order of an epoch: prompts shuffled and their pairs kept together, or every pair on its own.

    A prompt has only one ranking, so rankings are shuffled either way.
    """
    random = generator(seed, "pairs", epoch)
    if order == Order.shuffled:
        return random.permutation(len(examples.rows))
    names, owner = np.unique(examples.prompts, return_inverse=True)
    return np.lexsort((random.random(len(owner)), random.permutation(len(names))[owner]))
