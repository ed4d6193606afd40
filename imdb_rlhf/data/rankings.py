"""Rankings of a group's completions by the true reward, and choices: rankings of which only the first place counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from imdb_rlhf.config.stages import Labels, PairsConfig, Ties
from imdb_rlhf.data.groups import members, why_none
from imdb_rlhf.errors import RunError
from imdb_rlhf.seeds import generator


@dataclass(frozen=True)
class Rankings:
    """Rankings over the rows of a group table.

    Attributes:
        rows: (rankings, K) int64, best first; where the mask is false the best row is repeated.
        mask: (rankings, K) bool, true for the completions that are ranked: at least two, before all padding.
        prompts: (rankings,) int64, the prompt of each ranking; no prompt has two.
        dropped: how many completions were left out, by reason, and how many rankings of one.
    """

    rows: np.ndarray
    mask: np.ndarray
    prompts: np.ndarray
    dropped: dict[str, int]

    @staticmethod
    def of(rankings: Sequence[Sequence[int]], prompts: Sequence[object], dropped: dict[str, int]) -> "Rankings":
        """Rankings of different lengths, best first, as one table."""
        longest = max(map(len, rankings))
        mask = np.array([[place < len(ranking) for place in range(longest)] for ranking in rankings])
        rows = np.array([[*ranking, *[ranking[0]] * (longest - len(ranking))] for ranking in rankings], dtype=np.int64)
        return Rankings(rows, mask, np.array(prompts, dtype=np.int64), dropped)


def draw_rankings(groups: pd.DataFrame, config: PairsConfig, seed: int) -> Rankings:
    """One ranking of each group: by the true reward's log-odds, or drawn from the Plackett-Luce model over them.

    A draw sorts r / tau + Gumbel noise, one number for each different completion. What is left out is chosen walking
    down the rewards themselves and never by the noise: a subset of Plackett-Luce items that their draw has no part in
    is ranked by the same model, while keeping the one of two near rewards that was drawn first would raise it.

    Args:
        groups: a group table.
        config: how a ranking is drawn (`deterministic` or `bradley_terry` labels). A completion is left out if a
            better one has the same tokens, an equal reward (unless ties are random) or a reward nearer than the margin.
        seed: the noise is a function of (seed, prompt id).

    Raises:
        RunError: no ranking of two or more is left.
    """
    rankings, prompts = [], []
    dropped = {"same completion": 0, "equal rewards": 0, "below min_margin": 0, "ranking of one": 0}
    logits = groups["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in groups["completion_ids"]]
    for prompt, group in members(groups, config.prompts):
        noise = dict(zip(group, generator(seed, "rankings", prompt).gumbel(size=len(group)), strict=True))
        ranked: list[int] = []
        for row in sorted(group, key=lambda row: -logits[row]):  # stable: of equal ones the first sample
            reason = _left_out(row, ranked, logits, completions, config)
            if reason is None:
                ranked.append(row)
            else:
                dropped[reason] += 1
        if len(ranked) < 2:
            dropped["ranking of one"] += 1
            continue
        drawn = config.labels == Labels.bradley_terry
        # with deterministic labels the noise decides between equal rewards only
        keys = {
            row: (logits[row] / (config.tau or 1.0) + noise[row] if drawn else logits[row], noise[row])
            for row in ranked
        }
        rankings.append(sorted(ranked, key=keys.__getitem__, reverse=True))
        prompts.append(prompt)
    if not rankings:
        raise RunError(f"no ranking is left of {dropped['ranking of one']} {why_none(dropped)}")
    return Rankings.of(rankings, prompts, dropped)


def _left_out(
    row: int, ranked: list[int], logits: np.ndarray, completions: list[tuple[int, ...]], config: PairsConfig
) -> str | None:
    """Why a completion has no place beside the better ones that are ranked, or None if it has."""
    if any(completions[row] == completions[other] for other in ranked):
        return "same completion"
    gaps = [abs(logits[row] - logits[other]) for other in ranked]
    if config.ties == Ties.drop and 0 in gaps:
        return "equal rewards"
    return "below min_margin" if any(gap < config.min_margin for gap in gaps) else None


def draw_choices(groups: pd.DataFrame, config: PairsConfig, seed: int) -> Rankings:
    """One choice per group: the completion with the highest log-odds, or with `bradley_terry` labels a draw.

    The draw is the highest of r / tau + Gumbel noise: completion i with probability softmax(r / tau)_i (Luce 1959).
    Completions with the same tokens count as one. As with pairs, whatever the labels, a group is left out where the
    best two rewards are equal (unless ties are random) or nearer than `min_margin`.

    Args:
        groups: a group table.
        config: how the choice is drawn, and which groups are dropped.
        seed: the choice is a function of (seed, prompt id).

    Returns:
        A choice per row, the chosen completion first, the others in the order of the table.

    Raises:
        RunError: no choice is left.
    """
    logits = groups["reward_logit"].to_numpy()
    completions = [tuple(ids) for ids in groups["completion_ids"]]
    dropped = {"same completion": 0, "equal rewards": 0, "below min_margin": 0}
    choices, prompts = [], []
    for prompt, group in members(groups, config.prompts):
        random = generator(seed, "choice", prompt)
        noise, coins = random.gumbel(size=len(group)), random.random(len(group))
        places: dict[tuple[int, ...], int] = {}
        for place, row in enumerate(group):
            places.setdefault(completions[row], place)
        distinct = np.array(list(places.values()))
        rows = np.array(group, dtype=np.int64)[distinct]
        rewards = logits[rows]
        gap = np.diff(np.sort(rewards)[-2:])
        if len(rows) == 1:
            dropped["same completion"] += 1
        elif gap[0] == 0 and config.ties == Ties.drop:
            dropped["equal rewards"] += 1
        elif gap[0] < config.min_margin:
            dropped["below min_margin"] += 1
        else:
            if config.labels == Labels.bradley_terry:
                best = int(np.argmax(rewards / (config.tau or 1.0) + noise[distinct]))
            else:
                best = int(np.argmax(np.where(rewards == rewards.max(), coins[distinct], -1.0)))
            choices.append([int(rows[best]), *(int(row) for at, row in enumerate(rows) if at != best)])
            prompts.append(prompt)
    if not choices:
        raise RunError(f"no choice is left of {sum(dropped.values())} groups {why_none(dropped)}")
    return Rankings.of(choices, prompts, dropped)
