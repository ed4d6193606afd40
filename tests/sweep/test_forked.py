"""Processes that a sweep starts: they start wherever the temporary folder is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = """
import tempfile
from imdb_rlhf.sweep import forked

forked.PRELOAD = []
process = forked.start(int, "7")
process.join()
print(process.exitcode, tempfile.gettempdir())
"""


@pytest.mark.parametrize("length", [40, 71, 72, 75, 76, 90, 200])
def test_a_process_starts_under_any_temporary_folder(length: int) -> None:
    """A socket's path has a limit: Python's fork server fails on a longer one with "AF_UNIX path too long"."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        temporary = Path(f"{folder}/".ljust(length, "x"))
        temporary.mkdir()
        environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])}
        ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
        assert (ran.stdout, ran.stderr) == (f"7 {temporary}\n", "")
        assert not list(temporary.iterdir())
