"""An artifact's folder, damage to it, and a second process, for the tests of this room."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import imdb_rlhf


def write_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")


def flip(folder: Path) -> str:
    """Change one bit of the weights; the problem that `check_manifest` tells."""
    path = folder / "model" / "weights"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return "model/weights has other bytes than were written"


def names(root: Path) -> set[str]:
    """Every file and folder below `root`."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*")} if root.exists() else set()


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code` with the package importable."""
    environment = os.environ | {"PYTHONPATH": str(Path(imdb_rlhf.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
