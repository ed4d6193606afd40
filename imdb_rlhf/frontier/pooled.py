"""The optimum and best-of-N of a world: those of its reference or, of a pool, their means over references.

A pool's curve at a KL is the mean over references of what is possible from each at that KL. It is known as far as every
reference's is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imdb_rlhf.frontier.world import World


def optimum(world: World) -> dict[str, Any] | None:
    """`optimum` of `frontier.json`; None where a reference has no reservoir."""
    baselines = [origin.baselines for origin in world.origins]
    if len(baselines) == 1:
        return baselines[0].optimum()
    entries = [entry for each in baselines if (entry := each.optimum()) is not None]
    if len(entries) < len(baselines):
        return None
    pooled = entries[0] | {
        "samples": min(entry["samples"] for entry in entries),
        "trusted_kl": min(entry["trusted_kl"] for entry in entries),
        "learned": None,  # each reference has a learned reward of its own
    }
    for bound in ("lower", "upper"):
        curves = np.array([getattr(each.bounds, bound) for each in baselines])
        draws = np.array([getattr(each.bounds, f"{bound}_draws") for each in baselines])
        pooled |= {bound: curves.mean(0), f"{bound}_ci": _intervals(world, curves, draws)}
    return pooled


def best_of_n(world: World) -> dict[str, Any]:
    """`best_of_n` of `frontier.json`: selector -> its curve for every N that all references have."""
    baselines = [origin.baselines for origin in world.origins]
    if len(baselines) == 1:
        return baselines[0].best_of_n()
    entries = [each.best_of_n() for each in baselines]
    pooled = {}
    for selector in (name for name in entries[0] if all(name in entry for entry in entries)):
        curves = [entry[selector] for entry in entries]
        n = curves[0]["n"][: min(len(curve["n"]) for curve in curves)]
        mean = _mean_of(curves, len(n))
        rewards = [each.rewards_of(selector)[:, : len(n)] for each in baselines]  # (prompts, N) each
        means, draws = np.array([each.mean(0) for each in rewards]), np.array([world.weights @ r for r in rewards])
        pooled[selector] = {
            "n": n,
            "kl": mean("kl"),
            "kl_atom": mean("kl_atom"),
            "reward": means.mean(0),
            "reward_ci": _intervals(world, means, draws),
        }
    return pooled


def _mean_of(curves: Sequence[dict[str, Any]], length: int) -> Callable[[str], np.ndarray]:
    return lambda key: np.mean([curve[key][:length] for curve in curves], axis=0)


def _intervals(world: World, curves: np.ndarray, draws: np.ndarray) -> tuple[list[float], list[float]]:
    """Both ends, a number per point of a curve, from (references, G) curves and (references, count, G) draws."""
    pairs = [world.interval(curves[:, i], draws[:, :, i]) for i in range(curves.shape[1])]
    return [low for low, _ in pairs], [high for _, high in pairs]
