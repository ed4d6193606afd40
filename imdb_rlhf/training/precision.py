"""The hardware's device, threads and native precision."""

import os
from typing import Any

import torch

from imdb_rlhf.config.machine import Device, Precision
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.models.products import has_amx


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
    """Whether the processor multiplies bf16 natively: AMX, or AVX512-BF16 (AMD from Zen 4 on, Cooper Lake)."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, so it may go
    return has_amx() or bool(probe is not None and probe())


def choose_float32_products() -> None:
    """Compute float32 products of AMD processors with AVX512 by oneDNN: MKL, which torch prefers, is slow on them.

    Torch takes oneDNN for float32 products where it may round their factors to bf16. oneDNN does so with AMX alone,
    which AMD's processors do not have; `is_exact` makes sure of it.
    """
    features = _cpu_features()
    # sse4a: AMD alone has it
    if not (features.get("sse4a") and features.get("avx512_bw")) or has_amx():
        return
    torch.set_float32_matmul_precision("medium")
    if not is_exact():
        torch.set_float32_matmul_precision("highest")


def is_exact() -> bool:
    """Whether float32 products keep all bits of their factors, which bf16 does not have."""
    factor = 1 + 2.0**-20
    table = torch.full((256, 256), factor)
    return all(float((table[:rows] @ table)[0, 0] - 256) > 0 for rows in (1, 256))


def _cpu_features() -> dict[str, Any]:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return dict(capabilities()) if capabilities is not None else {}


def resolve_threads(wanted: int | None) -> int:
    """Resolve the number of threads of a CPU run; None means one per core that this process may use."""
    if wanted is not None:
        return wanted
    # macOS knows no affinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
