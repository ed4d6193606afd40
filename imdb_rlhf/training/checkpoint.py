"""Checkpoints: weights, optimizer, step and the algorithm's own state; whole or absent.

Batches and random numbers are functions of (seed, stage, step, position), so most algorithms need no state of their own
to resume exactly where a run stopped; PPO saves its rollout and its coefficient.
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
    """Everything that a resumed training needs.

    Attributes:
        step: optimizer steps done.
        weights: the module's state.
        optimizer: the optimizer's state.
        sums: sums of metrics since the last row was logged.
        state: the algorithm's own state, tensors and plain values.
    """

    step: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    sums: dict[str, float]
    state: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/checkpoint`; the previous one stays until the new one is whole."""
    new, old, final = (folder / f"{FOLDER}{suffix}" for suffix in (".new", ".old", ""))
    newest = _newest(folder)
    if newest is not None and newest != final:  # a crash came between two renames
        shutil.rmtree(final, ignore_errors=True)
        newest.rename(final)
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
    """Read the newest whole checkpoint of a folder, or None if there is none; skips damaged ones."""
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
    for suffix in (".new", "", ".old"):  # newest first
        path = folder / f"{FOLDER}{suffix}"
        if path.is_dir() and check_manifest(path) is None:
            return path
    return None


def remove(folder: Path) -> None:
    """Delete the checkpoint of a finished stage."""
    for suffix in ("", ".new", ".old"):
        shutil.rmtree(folder / f"{FOLDER}{suffix}", ignore_errors=True)
