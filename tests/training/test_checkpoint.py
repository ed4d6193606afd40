"""Checkpoints under damage: the newest whole one, or none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from imdb_rlhf.training import checkpoint
from imdb_rlhf.training.checkpoint import Checkpoint


def make(step: int) -> Checkpoint:
    """A checkpoint whose numbers tell its step, with a real optimizer's state."""
    weight = nn.Parameter(torch.full((3,), step / 3))
    optimizer = torch.optim.RMSprop([weight], lr=0.1)
    weight.grad = torch.full((3,), 0.1)
    optimizer.step()
    sums = {"train/loss": 0.1 * step, "steps": 2}
    return Checkpoint(step, {"weight": weight.detach()}, optimizer.state_dict(), sums, {"coefficient": 0.1 * step})


def loaded(folder: Path) -> int | None:
    newest = checkpoint.load(folder)
    return None if newest is None else newest.step


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = make(7)
    checkpoint.save(tmp_path, saved)
    newest = checkpoint.load(tmp_path)
    assert newest is not None
    assert (newest.step, newest.sums) == (7, {"train/loss": 0.1 * 7, "steps": 2})
    assert newest.weights["weight"].equal(saved.weights["weight"])
    for key in ("square_avg", "step"):
        assert newest.optimizer["state"][0][key].equal(saved.optimizer["state"][0][key])
    assert newest.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert newest.state == {"coefficient": 0.1 * 7}


def test_an_algorithms_state_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        "ids": torch.randint(1 << 40, (3, 4), generator=random),
        "mask": torch.rand(3, 4, generator=random) > 0.5,
        "logprob": torch.randn(3, 4, generator=random) / 3,
        "value": torch.tensor([0.1, -0.0, float("inf")]),
        "view": torch.randn(6, 2, generator=random)[1::2, 0],
        "exact": torch.randn(3, dtype=torch.float64, generator=random),
        "low": torch.randn(3, generator=random).bfloat16(),
        "empty": torch.zeros(0, 4),
    }
    plain = {
        "coefficient": 0.1 + 0.2,
        "number": -1,
        "stopped": True,
        "nothing": None,
        "notes": {"ppo/kl": 1 / 3, "ppo/log_kl_coefficient": float("-inf")},
        "history": [[1 / 3, 0.2], [1e-300, 7.0]],
    }
    checkpoint.save(tmp_path, replace(make(7), state={"rollout": tensors, **plain}))
    newest = checkpoint.load(tmp_path)
    assert newest is not None
    loaded = newest.state.pop("rollout")
    assert newest.state == plain
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].equal(tensor), name
    assert str(loaded["value"][1].item()) == "-0.0"
    checkpoint.save(tmp_path, replace(make(8), state={}))
    again = checkpoint.load(tmp_path)
    assert again is not None and again.state == {}


def test_there_is_one_checkpoint_the_last(tmp_path: Path) -> None:
    assert loaded(tmp_path) is None
    assert loaded(tmp_path / "absent") is None
    for step in (3, 6):
        checkpoint.save(tmp_path, make(step))
    assert loaded(tmp_path) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.pt", "optimizer.pt", "algorithm.pt", "state.json", "DONE"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, make(3))
    path = tmp_path / "checkpoint" / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "changed":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "cut":
        path.write_bytes(content[:middle])
    else:
        path.unlink()
    assert loaded(tmp_path) is None
    checkpoint.save(tmp_path, make(4))  # and does not stand in the way
    assert loaded(tmp_path) == 4


def test_what_a_crash_leaves_is_never_worse_than_the_one_before(tmp_path: Path) -> None:
    final, new, old = (tmp_path / f"checkpoint{suffix}" for suffix in ("", ".new", ".old"))
    checkpoint.save(tmp_path, make(3))
    # while the new one was being written
    new.mkdir()
    (new / "weights.pt").write_bytes(b"half")
    assert loaded(tmp_path) == 3
    # between the two renames: the old one is aside, the new one whole or not
    final.rename(old)
    assert loaded(tmp_path) == 3
    checkpoint.save(tmp_path / "elsewhere", make(6))
    (new / "weights.pt").unlink()
    new.rmdir()
    (tmp_path / "elsewhere" / "checkpoint").rename(new)
    assert loaded(tmp_path) == 6
    # before the first rename: both are whole, and the newer is the better
    old.rename(final)
    assert loaded(tmp_path) == 6
    # before the old one was deleted
    final.rename(old)
    new.rename(final)
    assert loaded(tmp_path) == 6


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, make(3))

    def full(folder: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, make(6))
    monkeypatch.undo()
    assert loaded(tmp_path) == 3
    checkpoint.save(tmp_path, make(9))
    assert loaded(tmp_path) == 9
