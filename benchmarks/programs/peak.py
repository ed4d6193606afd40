"""The machine's matrix-product peak: the fastest of square products, multiplied as the package does it."""

import statistics

import torch

from benchmarks.programs.program import Record, Setup
from imdb_rlhf.training.precision import choose_float32_products

SIZES = {"cpu": (1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}


def products(setup: Setup, sizes: list[int] | None = None) -> Record:
    """Time the products of every size; the record is of the best one."""
    if setup.device == "cpu":
        choose_float32_products()
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    records = []
    for n in sizes or SIZES[setup.device]:
        left, right, out = (torch.randn(n, n).to(setup.device, dtype) for _ in range(3))
        seconds = setup.timed(lambda a=left, b=right, c=out: torch.matmul(a, b, out=c))  # type: ignore[misc]
        records.append(Record(seconds, 2.0 * n**3, "operations", facts={"size": n}))
    return max(records, key=lambda record: record.work / statistics.median(record.seconds))
