"""The machine's matrix-product peak: the fastest of square products, what shares of the peak are shares of."""

import argparse
import statistics

import torch

from benchmarks.programs.record import Record, begin, finish, parser, timed

SIZES = {"cpu": (1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}


def measure(options: argparse.Namespace) -> Record:
    """Time the products of every size; the record is of the best one."""
    begin(options)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    found: dict[int, list[float]] = {}
    for n in options.sizes or SIZES[options.device]:
        random = torch.Generator().manual_seed(n)
        left, right = (torch.randn(n, n, generator=random).to(options.device, dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=options.device)

        def product(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out) -> None:
            torch.matmul(left, right, out=out)

        found[n] = timed(product, options.repetitions, options.device)
    rates = {n: 2 * n**3 / statistics.median(seconds) for n, seconds in found.items()}
    best = max(rates, key=rates.__getitem__)
    facts = {"size": best, "rates": {str(n): rate for n, rate in rates.items()}}
    return Record(found[best], float(2 * best**3), "operations", facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", help="of the products; the device's own by default")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
