"""How much memory a piece of work takes: of the process, and of the tensors that it makes."""

import ctypes
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.programs.record import peak_bytes


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still held; exact, whatever the allocator does.

    What a kernel takes for itself while it runs is not seen.

    Attributes:
        now: bytes held.
        most: the most that were held at a time.
        largest: of a single tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        before = {leaf.untyped_storage()._cdata for leaf in inputs}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in before:
                self._take(leaf.untyped_storage())
        return made

    def _take(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known[name] = weakref.ref(storage, lambda _: self._release(name, size))
        self.now += size
        self.most, self.largest = max(self.most, self.now), max(self.largest, size)

    def _release(self, name: int, size: int) -> None:
        self._known.pop(name, None)
        self.now -= size


def live_bytes(work: Callable[[], object]) -> Live:
    """What tensors a piece of work makes; its result counts as long as it is held, so to the end."""
    counter = Live()
    with counter:
        _ = work()
        del _
    return counter


def mark(device: str) -> int:
    """Forget earlier peaks; the bytes that are in use now, from which `record.peak_bytes` is to be counted on."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    with suppress(AttributeError, OSError):  # what was freed goes back, or the work would have it for nothing
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux alone can forget
        Path("/proc/self/clear_refs").write_text("5")
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else peak_bytes(device)


def above(device: str, before: int) -> int:
    """The peak since `mark`, above what was in use then."""
    return max(0, peak_bytes(device) - before)
