"""Processes of one run: they end together, with one line and an exit code that tells stopped from failed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imdb_rlhf import ranks

# What a rank does, by its number: RANK=1 in these scripts.
HEAD = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n"
STOPS = """
def stop(number, frame):
    print(f"stopped: rank {rank}", file=sys.stderr)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
"""


def run(script: str, processes: int = 2) -> tuple[int, str]:
    return ranks.run([sys.executable, "-c", HEAD + script], processes, {})


def test_all_succeed_and_know_each_other(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    script = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert run(script, 3) == (0, "")
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    texts = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert texts == [f"{rank} {rank} 3 3 127.0.0.1 {threads}" for rank in range(3)]


@pytest.mark.parametrize(("word", "code"), [("failed", 1), ("refused", 2)])
def test_a_line_of_the_one_that_fails(word, code, capfd):
    """All ranks may write it; one line is left, and other output goes through."""
    script = f"print('a warning', file=sys.stderr)\nprint('{word}: x is not y', file=sys.stderr)\nsys.exit({code})"
    assert run(script) == (code, f"{word}: x is not y")
    assert capfd.readouterr().err.split("\n").count("a warning") == 2


def test_one_is_killed_and_the_others_do_not_wait_for_it(monkeypatch):
    monkeypatch.setattr(ranks, "GRACE", 0.5)
    began = time.monotonic()
    code, line = run("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(600)")
    assert code == 1 and time.monotonic() - began < 60
    assert line.startswith("failed: rank 1 of 2: killed by SIGKILL") and "run the same command to go on" in line


def test_the_line_of_a_lost_peer_is_not_the_one_that_counts():
    lost = "time.sleep(1); print('failed: rank 0 has lost another process', file=sys.stderr); sys.exit(1)"
    code, line = run(f"if rank == 0:\n    {lost}\nos._exit(3)")
    assert code == 1 and line.startswith("failed: rank 1 of 2: ended with exit code 3")


def test_a_signal_is_passed_on_and_stopped_is_not_failed():
    before = signal.getsignal(signal.SIGUSR2)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    assert run(STOPS + "time.sleep(600)") == (75, "stopped: rank 0")
    timer.join()
    assert signal.getsignal(signal.SIGUSR2) == before


def test_none_outlives_the_process_that_started_them(tmp_path):
    """Killed, it cannot pass anything on: its processes see a pipe close."""
    begins = "from imdb_rlhf import ranks\nranks.end_with_parent()\n"
    rank = f"{begins}open(f'{tmp_path}/{{rank}}', 'w')\n{STOPS}time.sleep(60)"
    program = f"from imdb_rlhf import ranks; import sys; ranks.run([sys.executable, '-c', {HEAD + rank!r}], 2, {{}})"
    root = Path(__file__).parents[1]
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.iterdir())) < 2:
        assert starter.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    children = subprocess.run(["pgrep", "-P", str(starter.pid)], capture_output=True, text=True).stdout.split()
    starter.kill()
    starter.communicate(timeout=30)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(children) == 2
