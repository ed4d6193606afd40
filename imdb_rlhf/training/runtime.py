"""A run's processes and device: accelerate behind the few methods that the package needs."""

import copy
import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import broadcast_object_list, convert_outputs_to_fp32, gather_object
from torch import nn

from imdb_rlhf.config.machine import PolicyPrecision, TrainerConfig, check_processes, processes_running
from imdb_rlhf.training.precision import choose_float32_products, resolve_device, resolve_precision, resolve_threads

T = TypeVar("T")
# From glibc's malloc.h: the largest number of blocks mapped separately, and how much free memory the heap may keep.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


class Runtime:
    """Device, precision, threads and processes of this run.

    Attributes:
        device: the models' device.
        precision: "bf16" or "float32", of training and sampling.
        threads: number of threads of a CPU run.
        rank: this process's number, from 0.
        world: number of processes.
    """

    def __init__(self, config: TrainerConfig) -> None:
        check_processes(config.processes)
        kind = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, kind)
        self.threads = resolve_threads(config.threads)
        torch.set_num_threads(self.threads)
        if kind == "cpu":
            _keep_freed_memory()
            choose_float32_products()
        _reset_accelerate()
        if kind == "cpu" and config.processes > 1:
            os.environ["ACCELERATE_USE_CPU"] = "true"  # `cpu=True` alone makes it one process
        self.accelerator = Accelerator(
            cpu=kind == "cpu",
            mixed_precision="no",  # it has one for all trainings of a process; see `prepare`
            # rank 0 may wait hours for another run that is making the same artifact
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],
        )
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(0)

    def at(self, precision: PolicyPrecision | None) -> "Runtime":
        """The same device and processes in another precision; this runtime for None."""
        if precision is None or str(precision) == self.precision:
            return self
        other = copy.copy(self)
        other.precision = str(precision)
        return other

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """A module and its optimizer for training in this precision on all processes; the module's outputs are float32.

        In bf16 the module's own forward is replaced for good: it autocasts from now on, and is trained once.
        """
        if self.precision == "bf16":
            forward = torch.autocast(self.device.type, dtype=torch.bfloat16)(module.forward)
            module.forward = convert_outputs_to_fp32(forward)
        prepared: tuple[nn.Module, Any] = self.accelerator.prepare(module, optimizer)
        return prepared

    def facts(self) -> dict[str, Any]:
        """The machine's part of an artifact's key: the last bits of numbers depend on it."""
        facts = {
            "device": self.device.type,
            "precision": self.precision,
            "threads": self.threads if self.device.type == "cpu" else None,
            "processes": self.world,
        }
        # what was made in bf16 before logits were float32 is not used
        return facts if self.precision == "float32" else facts | {"logits": "float32"}

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to the precision of sampling and training."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def gather(self, values: Sequence[T]) -> list[T]:
        """All ranks' values, in the order of the ranks, on every rank."""
        return cast(list[T], gather_object(list(values))) if self.world > 1 else list(values)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        if self.world == 1:
            return flag
        tensor = torch.tensor(int(flag), device=self.device)
        return bool(self.accelerator.reduce(tensor, reduction="sum").item())

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.accelerator.wait_for_everyone()


def _keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next tensor of their size.

    By default it returns them to the system, which must then clear every page before its next use.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            libc = ctypes.CDLL(None)
            for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
                libc.mallopt(option, value)


def _reset_accelerate() -> None:
    """Let a second run of this process (a sweep's next job) have another precision or device."""
    if PartialState._shared_state and processes_running() == 1:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
