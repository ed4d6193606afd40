"""What every program shares: arguments, a stopwatch, its peak memory, and the line that it ends with.

Only the standard library and torch: the peers' environments have no more in common.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# The line that holds the record begins so; libraries print what they like before it.
MARK = "BENCHMARK RECORD "


@dataclass
class Record:
    """What one process measured.

    Attributes:
        seconds: of each timed repetition; the warm-up is left out.
        work: units of a repetition; seconds / work is what a table compares.
        unit: what is counted: pairs, tokens, episodes, operations.
        peak_bytes: the largest memory of the process (of the device's allocator on a GPU); 0 is up to its end, and a
            program that goes on to check what it did says how much it was before.
        precision: bf16 or float32.
        threads: of the CPU.
        facts: what a check or a note needs: the first step's loss, settings in words.
    """

    seconds: list[float]
    work: float
    unit: str
    peak_bytes: int = 0
    precision: str = ""
    threads: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all programs take."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("folder", type=Path, help="of the workload")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--repetitions", type=int, default=3)
    return made


def begin(options: argparse.Namespace) -> None:
    """Set the threads, the same for everyone."""
    import torch

    torch.set_num_threads(options.threads)


def finish(options: argparse.Namespace, record: Record) -> None:
    """Add what is known of the process, and print the record."""
    record.peak_bytes = record.peak_bytes or peak_bytes(options.device)
    record.precision, record.threads = options.precision, options.threads
    if options.device == "cuda":
        import torch

        record.facts["device"] = torch.cuda.get_device_name()
    print(MARK + json.dumps(asdict(record)), flush=True)


def parse(output: str) -> Record | None:
    """The record in what a program printed, None where there is none."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    return Record(**json.loads(lines[-1].removeprefix(MARK))) if lines else None


def read(folder: Path, name: str) -> Any:
    """A part of the workload: `shape`, `groups`, `pairs`, `prompts` or `rows`."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def autocast(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Bf16 matrix products with float32 weights, or nothing."""
    import torch

    wanted = options.precision == "bf16"
    return torch.autocast(options.device, dtype=torch.bfloat16) if wanted else nullcontext()


def now(device: str) -> float:
    """Seconds on a clock, once all that was asked of the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object], repetitions: int, device: str) -> list[float]:
    """Seconds of each repetition, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repetitions):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return seconds


def peak_bytes(device: str) -> int:
    """The most memory that the process ever had: resident, or allocated on the GPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # kilobytes, but bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def score(prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
    """A reward that costs nothing, the same for everyone: the share of odd tokens in each completion, from -1 to 1."""
    return [2 * sum(t % 2 for t in tokens) / max(1, len(tokens)) - 1 for tokens in completions]


def mean_logprob(lm: Any, prompts: list[list[int]], completions: list[list[int]]) -> list[float]:
    """Mean log-prob of the completions under a model in float32, and its standard error, nats a sequence.

    A sampler that draws from another distribution (truncated, of another temperature) shows here.
    """
    import torch

    sums = []
    with torch.no_grad():
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]], device=lm.device)
            logprobs = lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            sums.append(float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum()))
    found = torch.tensor(sums, dtype=torch.float64)
    return [float(found.mean()), float(found.std() / len(sums) ** 0.5)]
