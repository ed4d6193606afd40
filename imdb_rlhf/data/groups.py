"""Groups of K completions of one prompt: the unit of data; pairs, rankings and their labels are drawn from it.

A group's table has a row a completion, ordered by prompt and sample: `prompt_id`, `sample_id`, `prompt_ids`,
`completion_ids` (as sampled), `prompt`, `completion` (texts), `finished`, `reward`, `reward_logit`, `ref_logprob`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from imdb_rlhf.config.stages import Labels, Order, PairsConfig, Ties
from imdb_rlhf.data.prompts import Encode
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator

COLUMNS = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "prompt", "completion"]
COLUMNS += ["finished", "reward", "reward_logit", "ref_logprob"]


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


@dataclass(frozen=True)
class Rankings:
    """Rankings over the rows of a group table.

    Attributes:
        rows: (rankings, K) int64, best first; where the mask is false the best stands again.
        mask: (rankings, K) bool, true for the completions that are there, which stand first and are at least two.
        prompts: (rankings,) int64, the prompt of each ranking; none has two.
        dropped: how many completions were left out, by reason, and how many rankings of one.
    """

    rows: np.ndarray
    mask: np.ndarray
    prompts: np.ndarray
    dropped: dict[str, int]

    @staticmethod
    def of(found: Sequence[Sequence[int]], prompts: Sequence[object], dropped: dict[str, int]) -> "Rankings":
        """Rankings of different lengths, best first, as one table."""
        longest = max(map(len, found))
        mask = np.array([[place < len(ranking) for place in range(longest)] for ranking in found])
        rows = np.array([[*ranking, *[ranking[0]] * (longest - len(ranking))] for ranking in found], dtype=np.int64)
        return Rankings(rows, mask, np.array(prompts, dtype=np.int64), dropped)


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
    for prompt, members in groups.groupby("prompt_id", sort=True).indices.items():
        random = generator(seed, "labels", int(str(prompt)))
        for first, second in combinations([int(row) for row in members], 2):
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
        raise RunError(
            f"no preference pair is left of {sum(dropped.values())} "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.items())}); use more prompts or another reward"
        )
    return Pairs(np.array(rows, dtype=np.int64), np.array(prompts, dtype=np.int64), dropped)


def _first_wins(gap: float, coin: float, flip: float, config: PairsConfig) -> bool:
    """Whether the first of a pair wins, given r_first - r_second and two uniforms."""
    if config.labels == Labels.bradley_terry:
        return bool(coin < 1 / (1 + np.exp(-np.clip(gap / (config.tau or 1.0), -500, 500))))
    wins = gap > 0 if gap != 0 else coin < 0.5
    return bool(wins != (config.labels == Labels.noisy and flip < (config.noise or 0.0)))


def draw_rankings(groups: pd.DataFrame, config: PairsConfig, seed: int) -> Rankings:
    """One ranking of each group: by the true reward's log-odds, or drawn from the Plackett-Luce model over them.

    A draw sorts r / tau + Gumbel noise, one number for each different completion. What is left out is chosen walking
    down the rewards themselves and never by the noise: a subset of Plackett-Luce items that their draw has no part in
    is ranked by the same model, while keeping the one of two near rewards that was drawn first would raise it.

    Args:
        groups: a group table.
        config: how a ranking is drawn (`deterministic` or `bradley_terry` labels); a completion is left out if one
            kept already has the same tokens, an equal reward (unless ties are random) or one nearer than the margin.
        seed: the noise is a function of (seed, prompt id).

    Raises:
        RunError: no ranking of two or more is left.
    """
    found, prompts = [], []
    dropped = {"same completion": 0, "equal rewards": 0, "below min_margin": 0, "ranking of one": 0}
    logits = groups["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in groups["completion_ids"]]
    for prompt, members in groups.groupby("prompt_id", sort=True).indices.items():
        noise = dict(zip(members, generator(seed, "rankings", int(str(prompt))).gumbel(size=len(members)), strict=True))
        kept: list[int] = []
        for row in sorted(map(int, members), key=lambda row: -logits[row]):  # stable: of equal ones the first sample
            reason = _left_out(row, kept, logits, completions, config)
            if reason is None:
                kept.append(row)
            else:
                dropped[reason] += 1
        if len(kept) < 2:
            dropped["ranking of one"] += 1
            continue
        drawn = config.labels == Labels.bradley_terry
        # with deterministic labels the noise orders equal rewards alone
        keys = {
            row: (logits[row] / (config.tau or 1.0) + noise[row] if drawn else logits[row], noise[row]) for row in kept
        }
        found.append(sorted(kept, key=keys.__getitem__, reverse=True))
        prompts.append(prompt)
    if not found:
        raise RunError(
            f"no ranking is left of {dropped['ranking of one']} "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.items())}); use more prompts or another reward"
        )
    return Rankings.of(found, prompts, dropped)


def _left_out(
    row: int, kept: list[int], logits: np.ndarray, completions: list[tuple[int, ...]], config: PairsConfig
) -> str | None:
    """Why a completion has no place beside those that are kept, or None."""
    if any(completions[row] == completions[other] for other in kept):
        return "same completion"
    gaps = [abs(logits[row] - logits[other]) for other in kept]
    if config.ties == Ties.drop and 0 in gaps:
        return "equal rewards"
    return "below min_margin" if any(gap < config.min_margin for gap in gaps) else None


def shuffled(drawn: Pairs | Rankings, order: Order, seed: int, epoch: int) -> np.ndarray:
    """(pairs,) the order of an epoch: prompts shuffled and their pairs kept together, or every pair on its own.

    A ranking is the only one of its prompt: rankings are shuffled either way.
    """
    random = generator(seed, "pairs", epoch)
    if order == Order.shuffled:
        return random.permutation(len(drawn.rows))
    names, owner = np.unique(drawn.prompts, return_inverse=True)
    return np.lexsort((random.random(len(owner)), random.permutation(len(names))[owner]))


def to_trl(groups: pd.DataFrame) -> pd.DataFrame:
    """The same groups as a preference table that TRL's trainers read.

    Columns `prompt`, `chosen`, `rejected` (texts without EOS, leading space kept), `score_chosen`, `score_rejected`
    (log-odds). Every pair with different rewards and different texts, the higher reward chosen.
    """
    out = []
    for _, group in groups.groupby("prompt_id", sort=True):
        for first, second in combinations(group.to_dict("records"), 2):
            if first["reward_logit"] == second["reward_logit"] or first["completion"] == second["completion"]:
                continue
            best, worst = sorted((first, second), key=lambda row: -row["reward_logit"])
            out.append(
                {
                    "prompt": best["prompt"],
                    "chosen": best["completion"],
                    "rejected": worst["completion"],
                    "score_chosen": best["reward_logit"],
                    "score_rejected": worst["reward_logit"],
                }
            )
    columns = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    return pd.DataFrame(out, columns=columns)


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
    for column in ("prompt", "chosen", "rejected"):
        if column not in names:
            raise RunError(f"data.preferences={path} has no column {column!r} (it has {', '.join(names)})")


def from_preferences(
    path: Path, encode: Encode, eos_id: int, *, append_eos: bool, context: int
) -> tuple[pd.DataFrame, Pairs]:
    """A preference parquet in TRL's format as a group table without rewards of its own, and its pairs.

    Args:
        path: columns `prompt`, `chosen`, `rejected` (strings).
        encode: the policy's tokenizer.
        eos_id: the token that ends a completion.
        append_eos: whether completions end in EOS.
        context: rows longer than this are skipped and counted.

    Returns:
        The table (reward 1 for a text that was chosen more often than rejected, else 0; `ref_logprob` is nan until it
        is scored) and the pairs as they stand in the file.

    Raises:
        RunError: a value is not a string, or no pair is left.
    """
    check_preferences(path)
    frame = pd.read_parquet(path, columns=["prompt", "chosen", "rejected"])
    for column in frame:
        wrong = np.flatnonzero([not isinstance(value, str) for value in frame[column]])
        if len(wrong):
            raise RunError(f"data.preferences={path} row {wrong[0]}: {column} is not a string; mend the file")
    tokens = {name: encode(list(frame[name])) for name in frame}
    prompt_ids: dict[str, int] = {}
    seen: dict[tuple[int, str], int] = {}
    rows: list[dict[str, object]] = []
    pairs, prompts, wins = [], [], []
    dropped = {"same completion": 0, "empty": 0, "longer than the context": 0}
    for index, (prompt, *texts) in enumerate(frame.itertuples(index=False, name=None)):
        head = tokens["prompt"][index]
        tails = [
            [*tail, eos_id] if append_eos and tail[-1:] != [eos_id] else tail
            for tail in (tokens[name][index] for name in ("chosen", "rejected"))
        ]
        if texts[0] == texts[1]:
            dropped["same completion"] += 1
        elif not head or not all(tails):
            dropped["empty"] += 1
        elif len(head) + max(map(len, tails)) > context:
            dropped["longer than the context"] += 1
        else:
            owner = prompt_ids.setdefault(prompt, len(prompt_ids))
            for text, tail in zip(texts, tails, strict=True):
                if (owner, text) not in seen:
                    seen[owner, text] = len(rows)
                    wins.append(0)
                    rows.append(
                        {"prompt_id": owner, "prompt_ids": head, "completion_ids": tail, "prompt": prompt}
                        | {"completion": text, "finished": tail[-1] == eos_id}
                    )
            winner, loser = (seen[owner, text] for text in texts)
            wins[winner] += 1
            wins[loser] -= 1
            pairs.append((winner, loser))
            prompts.append(owner)
    if not pairs:
        raise RunError(
            f"data.preferences={path}: no pair is left of {len(frame)} "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.items())})"
        )
    table = pd.DataFrame(rows)
    table["sample_id"] = table.groupby("prompt_id").cumcount()
    table["reward"] = [float(score > 0) for score in wins]
    table["reward_logit"] = table["reward"]
    table["ref_logprob"] = np.nan
    order = np.argsort(np.array(prompts), kind="stable")
    return table[COLUMNS], Pairs(np.array(pairs)[order], np.array(prompts)[order], dropped)


def flip(pairs: Pairs, noise: float, seed: int) -> Pairs:
    """The same pairs with each label flipped with probability `noise`."""
    flips = generator(seed, "flips").random(len(pairs.rows)) < noise
    return Pairs(np.where(flips[:, None], pairs.rows[:, ::-1], pairs.rows), pairs.prompts, pairs.dropped)


def read(folder: Path) -> tuple[pd.DataFrame, Pairs | None]:
    """The group table of an artifact, and its pairs where they came from a preference file.

    Raises:
        RunError: the table has no finite reference log-probs.
    """
    frame = pd.read_parquet(folder / "groups.parquet")
    if not np.isfinite(frame["ref_logprob"]).all():
        raise RunError(f"{folder}: reference log-probs are not finite; delete the folder and run again")
    stored = folder / "pairs.npz"
    if not stored.exists():
        return frame, None
    with np.load(stored) as arrays:
        dropped = json.loads((folder / "report.json").read_text())["dropped"]
        return frame, Pairs(arrays["rows"], arrays["prompts"], dropped)
