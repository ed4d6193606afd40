"""How much memory there is, what a training needs at least, and how a lack of it is told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from imdb_rlhf.errors import RunError, first_line

BYTES = 4  # of a weight, a gradient, or a number that an optimizer keeps of a weight
# Where Linux says how much memory the processes of a container may use.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
SWAP = Path("/proc/meminfo")
SAID = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc")


def memory_of(device: torch.device) -> int | None:
    """Bytes that a process may use: the GPU's, or the machine's with its swap, within a container's limit.

    None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in SWAP.read_text().splitlines() if line.startswith("SwapTotal:"))
        total += 1024 * int(line.split()[1])
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            total = min(total, int(limit.read_text()))
    return total


def check_memory(parameters: int, kept: int, device: torch.device, name: str) -> None:
    """Refuse a model that cannot be in memory, before any work.

    Args:
        parameters: of the model.
        kept: numbers in memory for each parameter at least: its value; where it is trained its gradient, and the
            optimizer's moments.
        device: where it is trained or read.
        name: of the model in messages, such as `model=tiny`.

    Raises:
        RunError: naming what it needs and what there is.
    """
    needed, there = BYTES * parameters * kept, memory_of(device)
    if there is not None and needed > there:
        what = "weights" if kept == 1 else "weights, gradients and what the optimizer keeps"
        raise RunError(
            f"{name} has {parameters:,} parameters: its {what} are {needed / 1e9:,.1f} GB, and {device.type} has "
            f"{there / 1e9:,.1f} GB; choose a smaller model"
        )


@contextmanager
def lack_of_memory_in_one_line() -> Iterator[None]:
    """Turn what Python, numpy and torch raise where memory ends into one line.

    Raises:
        RunError: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RunError) or not (
            isinstance(error, MemoryError) or any(word in str(error) for word in SAID)
        ):
            raise
        raise RunError(
            f"there is not enough memory ({first_line(error)}); choose a smaller model or smaller batches "
            "(trainer.micro_batch, groups.batch_size, evaluation.batch_size), and run again: finished stages are kept"
        ) from error
