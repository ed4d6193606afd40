"""Where a measurement's result lies, and what a reader wants to know beside it: machine, commit, versions."""

import argparse
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environments
from benchmarks.harness import ROOT, Machine
from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.config.machine import Device, Precision
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.training.precision import resolve_device, resolve_precision, resolve_threads

STORE = ROOT / ".bench"


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A number above 0, for a command line."""

    def parse(word: str) -> float:
        if not (value := kind(word)) > 0:
            raise argparse.ArgumentTypeError(f"{word} is not above 0")
        return value

    return parse


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options of what programs run on and how, and of where the result goes."""
    add_result(parser)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--threads", type=positive(int), help="of all programs; default: one a core")
    parser.add_argument(
        "--timeout", type=positive(float), default=1800.0, help="seconds after which a program has failed"
    )


def add_result(parser: argparse.ArgumentParser) -> None:
    """The options that all commands share: the device, and where the result goes."""
    parser.add_argument("--device", choices=[*Device], default="auto")
    add_folder(parser)


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The options of where the result goes."""
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--name", help="of the result's folder there; default: the time")


def machine_of(options: argparse.Namespace, store: Path) -> Machine:
    """Device, precision and threads of all programs.

    Args:
        options: of `add_machine`.
        store: where caches may lie.

    Raises:
        ConfigError: a GPU is wanted and there is none.
    """
    device = resolve_device(Device(options.device))
    precision = resolve_precision(Precision(options.precision), device)
    threads = resolve_threads(options.threads)
    return Machine(device, precision, threads, options.timeout, (store / "caches").resolve())


def new_folder(options: argparse.Namespace) -> Path:
    """The folder of a result, made now.

    Raises:
        ConfigError: it is there already.
    """
    folder = Path(options.out) / (options.name or time.strftime("%Y%m%d-%H%M%S"))
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder} is there already and is not overwritten; give another --name") from error
    except OSError as error:
        raise ConfigError(
            f"--out={options.out} cannot be written to ({error.strerror}); give another folder"
        ) from error
    return folder


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by their names, each whole or not at all."""
    for name, text in texts.items():
        atomic_write(folder / name, text)


def facts_of(words: Sequence[str], machine: Machine) -> dict[str, Any]:
    """What is known of a measurement before it starts.

    Args:
        words: of the command line.
        machine: what it runs on.
    """
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *words]),
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": torch.cuda.get_device_name() if machine.device == "cuda" else processor(),
        "threads": machine.threads,
        "precision": machine.precision,
        "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,  # of a machine that others use too
        "python": platform.python_version(),
        "versions": {"ours": dict(environments.versions(None))},
    }


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it; `unknown` outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "") if found.returncode == 0 else "unknown"


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
