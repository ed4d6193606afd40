"""Checkpoints: weights, optimizer, step and what else the next batches depend on; whole or absent.

The batch and every random number are functions of (seed, stage, step, position), so for most algorithms nothing else is
needed to go on exactly where a run stopped; PPO keeps its rollout and its coefficient.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from imdb_rlhf.artifacts.files import check_manifest, write_manifest

FOLDER = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on.

    Attributes:
        step: optimizer steps done.
        weights: the module's state.
        optimizer: the optimizer's state.
        sums: metric sums since the last row of metrics.
        state: the algorithm's own, tensors and plain values.
    """

    step: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    sums: dict[str, float]
    state: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/checkpoint`; the one before stays until the new one is whole."""
    new, old, final = (folder / f"{FOLDER}{suffix}" for suffix in (".new", ".old", ""))
    kept = _newest(folder)
    if kept is not None and kept != final:  # what a crash left between two renames
        shutil.rmtree(final, ignore_errors=True)
        kept.rename(final)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    torch.save(checkpoint.weights, new / "weights.pt")
    torch.save(checkpoint.optimizer, new / "optimizer.pt")
    torch.save(checkpoint.state, new / "algorithm.pt")
    (new / "state.json").write_text(json.dumps({"step": checkpoint.step, "sums": checkpoint.sums}))
    write_manifest(new)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a folder, or None; a damaged one is passed over."""
    path = _newest(folder)
    if path is None:
        return None
    state = json.loads((path / "state.json").read_text())
    weights, optimizer, algorithm = (
        torch.load(path / f"{name}.pt", map_location="cpu", weights_only=True)
        for name in ("weights", "optimizer", "algorithm")
    )
    return Checkpoint(state["step"], weights, optimizer, state["sums"], algorithm)


def _newest(folder: Path) -> Path | None:
    for suffix in (".new", "", ".old"):  # a whole new one is the newest
        path = folder / f"{FOLDER}{suffix}"
        if path.is_dir() and check_manifest(path) is None:
            return path
    return None


def remove(folder: Path) -> None:
    """Delete the checkpoint of a finished stage."""
    for suffix in ("", ".new", ".old"):
        shutil.rmtree(folder / f"{FOLDER}{suffix}", ignore_errors=True)
