"""Settings of the whole process that a user's code may change: its own while it runs, ours everywhere else."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch


class OwnWorld:
    """Runs a user's code with the settings that it left when it last ran, and then puts ours back.

    These are the working folder, the states of Python's, numpy's and torch's random numbers, what numpy does about
    overflow, and torch's threads, default type and device, gradients, matmul precision and deterministic algorithms.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run a block with the user's settings."""
        ours = _settings()
        _apply({name: value for name, value in self.settings.items() if name in ours}, ours)
        try:
            yield
        finally:
            theirs = _settings()
            # what the user's code has never touched follows ours
            self.settings.update({name: value for name, value in theirs.items() if not _same(value, ours[name])})
            _apply(ours, theirs)


def _settings() -> dict[str, Any]:
    """Every setting, as it is now."""
    settings: dict[str, Any] = {
        "python_random": random.getstate(),
        "numpy_random": np.random.get_state(),
        "numpy_errors": np.geterr(),
        "torch_random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "type": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "folder": None,
    }
    with suppress(FileNotFoundError):  # a folder that was removed
        settings["folder"] = os.getcwd()
    return settings


def _apply(settings: dict[str, Any], present: dict[str, Any]) -> None:
    """Set what differs from what is set at present."""
    setters: dict[str, Any] = {
        "python_random": random.setstate,
        "numpy_random": np.random.set_state,
        "numpy_errors": lambda value: np.seterr(**value),
        "torch_random": torch.set_rng_state,
        "threads": torch.set_num_threads,
        "type": torch.set_default_dtype,
        # None is the CPU too, without a detour in every function of torch's
        "device": lambda value: torch.set_default_device(None if value == torch.device("cpu") else value),
        "gradients": torch.set_grad_enabled,
        "matmul": torch.set_float32_matmul_precision,
        "deterministic": torch.use_deterministic_algorithms,
        "cuda_random": lambda value: torch.cuda.set_rng_state_all(value) if value else None,
        "folder": lambda value: os.chdir(value) if value is not None else None,
    }
    for name, value in settings.items():
        if not _same(value, present[name]):
            setters[name](value)


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal, arrays in them included."""
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool(one.shape == other.shape and np.array_equal(np.asarray(one), np.asarray(other)))
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
