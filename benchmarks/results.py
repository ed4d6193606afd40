"""Every command's result: a folder with `table.md` and `results.json`, and the machine and commit of its numbers."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.harness import ROOT, Machine
from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.config.machine import Device, Precision
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.training.precision import resolve_device, resolve_precision, resolve_threads

FILE = "results.json"


def console() -> Console:
    """The terminal; a log is as wide as a table."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=160, highlight=False)


def positive(word: str) -> int:
    """A whole number above 0, for a command line."""
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not above 0")
    return int(word)


def parser_of(name: str, description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """A command's parser with the options that all commands have."""
    first = (description or "").partition("\n")[0].partition("`")[0].rstrip(" :")
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=first)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--name", help="of the result's folder there; default: the time")
    if device:
        parser.add_argument("--device", choices=[*Device], default="auto")
    parser.add_argument("--timeout", type=positive, default=1800, help="seconds after which a program has failed")
    parser.set_defaults(precision="bf16", threads=None)
    return parser


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options of the machine where all programs have one precision and number of threads."""
    parser.add_argument("--precision", choices=["bf16", "float32"])
    parser.add_argument("--threads", type=positive, help="of all programs; default: one per core")


class Result:
    """The folder of a result and the facts about its machine; a command line that cannot be followed is refused."""

    def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, command: Sequence[str]) -> None:
        self.facts: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks", *command]),
            "commit": commit(),
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if "device" in options:
            try:
                device = resolve_device(Device(options.device))
            except ConfigError as error:
                parser.error(str(error))
            precision = resolve_precision(Precision(options.precision), device)
            self.machine = Machine(device, precision, resolve_threads(options.threads), options.timeout)
            self.facts |= {
                "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
                "threads": self.machine.threads,
                "precision": precision,
                "load_before": os.getloadavg(),  # others may use the machine
                "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
            }
        self.folder = Path(options.out) / (options.name or time.strftime("%Y%m%d-%H%M%S"))
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            parser.error(f"{self.folder} exists already and is not overwritten; give another --name")
        except OSError as error:
            parser.error(f"--out={options.out} cannot be written to ({error.strerror}); give another folder")

    @property
    def head(self) -> str:
        """The machine and the commit, for the line above a table."""
        return "{device}, {threads} threads, {precision}, commit {commit}".format(**self.facts)

    def save(self, text: str, **content: Any) -> None:
        """Write the table, and the facts with everything else that was measured; each file whole or not at all."""
        atomic_write(self.folder / "table.md", text)
        atomic_write(self.folder / FILE, json.dumps(self.facts | content, indent=1) + "\n")

    def show(self, text: str) -> None:
        """Print the table, and where it is."""
        console().print(Markdown(text))
        console().print(f"saved: {self.folder / 'table.md'}, {self.folder / FILE}", soft_wrap=True)


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it; `unknown` outside a repository."""
    try:
        outputs = [
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return outputs[0] + ("+" if outputs[1] else "")


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers are on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def number(value: float | None, unit: str = "") -> str:
    """Three digits that count, with a word for large numbers; nothing for None."""
    if value is None:
        return ""
    for size, word in ((1e12, " T"), (1e9, " G")):
        if value >= size:
            return f"{value / size:,.3g}{word}{unit}" if value < 1e15 else f"{value / size:,.0f}{word}{unit}"
    return (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}") + unit


def duration(seconds: float) -> str:
    """Milliseconds or seconds, three digits that count, or four of thousands."""
    return number(seconds, " s") if abs(seconds) >= 1 else f"{1e3 * seconds:.3g} ms"


def percent(share: float | None) -> str:
    """A share in per cent with one decimal; nothing for None."""
    return "" if share is None else f"{100 * share:.1f} %"
