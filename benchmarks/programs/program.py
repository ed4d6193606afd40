"""The setup and the record of every program: inputs, a stopwatch and the peak of memory.

Only the standard library and torch are imported: the peers' environments have no more in common.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# The line that holds the record begins so; libraries print what they like before it.
MARK = "BENCHMARK RECORD "


@dataclass
class Record:
    """The measurements of one process.

    Attributes:
        seconds: of each timed repetition; the warm-up is left out.
        work, unit: units per repetition; work / seconds is the rate that tables compare.
        operations: of the model per repetition; None from a peer.
        peak_bytes: the most memory of the process (on a GPU of the allocator) until it checks its results.
        facts: the first step's loss and the like, for checks and notes.
    """

    seconds: list[float]
    work: float
    unit: str
    operations: float | None = None
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """A program's workload (a folder), device (cpu, cuda), precision (bf16, float32), threads and repetitions."""

    folder: str
    device: str
    precision: str
    threads: int
    repetitions: int

    def model(self, name: str) -> Path:
        """The folder of `policy` or `reference`."""
        return Path(self.folder).parent / name

    def data(self) -> Any:
        """The data of the workload."""
        return json.loads((Path(self.folder) / "data.json").read_text())

    def autocast(self) -> AbstractContextManager[Any]:
        """Bf16 matrix products with float32 weights, or nothing."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def now(self) -> float:
        """Seconds on a clock, once the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, work: Callable[[], object]) -> list[float]:
        """Seconds of each repetition."""
        work()
        seconds = []
        for _ in range(self.repetitions):
            began = self.now()
            work()
            seconds.append(self.now() - began)
        return seconds

    def peak_bytes(self) -> int:
        """The most memory that the process ever had: resident, or allocated on the GPU."""
        if self.device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        status = Path("/proc/self/status")  # Linux: the maximum in rusage may be that of the process that started this
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        # kilobytes, but bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parity_scores(completions: list[list[int]]) -> list[float]:
    """A reward that costs nothing: the share of odd tokens in each completion, from -1 to 1."""
    return [2 * sum(token % 2 for token in tokens) / max(1, len(tokens)) - 1 for tokens in completions]


def mean_logprob(lm: Any, prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
    """Mean log-prob of completions under a model in float32 and its standard error, nats per sequence.

    A sampler that draws from another distribution (truncated, of another temperature) shows here.
    """
    sums = []
    with torch.no_grad():
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]], device=lm.device)
            logprobs = lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            sums.append(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())
    values = torch.stack(sums).double()
    return [float(values.mean()), float(values.std() / len(sums) ** 0.5)]
