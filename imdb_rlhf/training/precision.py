"""The hardware's device, threads and native precision."""

import os

import torch

from imdb_rlhf.config.machine import Device, Precision
from imdb_rlhf.errors import ConfigError


def resolve_device(wanted: Device) -> str:
    """Resolve a device to `cpu` or `cuda`.

    Raises:
        ConfigError: `cuda` was asked for, but torch sees no GPU.
    """
    if wanted == Device.cuda and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch sees no GPU here; use trainer.device=auto or cpu")
    if wanted == Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(wanted)


def resolve_precision(wanted: Precision, device: str) -> str:
    """Resolve a precision to `bf16` or `float32`; auto is bf16 if the hardware multiplies bf16 matrices natively."""
    if wanted != Precision.auto:
        return str(wanted)
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if _cpu_has_bf16() else "float32"


def _cpu_has_bf16() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may go
    return bool(probe is not None and probe())


def resolve_threads(wanted: int | None) -> int:
    """Resolve the number of threads of a CPU run; None means one per core that this process may use."""
    return wanted if wanted is not None else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
