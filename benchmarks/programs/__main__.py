"""Run one program: `python -m benchmarks.programs MODULE.FUNCTION JSON`, and print its record as the last line.

The JSON holds the fields of `Setup` and the function's own options.
"""

import json
import sys
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any

import torch

from benchmarks.programs.program import MARK, Record, Setup


def run(name: str, options: dict[str, Any]) -> Record:
    """The record of a program."""
    setup = Setup(**{field.name: options.pop(field.name) for field in fields(Setup)})
    torch.set_num_threads(setup.threads)
    module, _, function = name.partition(".")
    record: Record = getattr(import_module(f"benchmarks.programs.{module}"), function)(setup, **options)
    record.peak_bytes = record.peak_bytes or setup.peak_bytes()
    return record


if __name__ == "__main__":
    print(MARK + json.dumps(asdict(run(sys.argv[1], json.loads(sys.argv[2])))), flush=True)
