"""The processes of one run on this machine, started and watched, so that they end together and with one line.

torchrun ends with 1 whether a run failed or was stopped, and with a hundred lines when a process is lost.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

from imdb_rlhf.signals import describe_exit, stopping

GRACE = 5.0  # seconds that the others have to end by themselves once one has failed
TICK = 0.1
ORPHAN = "IMDB_RLHF_PARENT"  # file descriptor of a pipe that closes when the starting process ends
LAST_WORDS = ("failed: ", "refused: ", "stopped: ")


def run(command: Sequence[str], processes: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command in several processes that torch.distributed joins.

    A signal to stop is passed on to all; when one process fails, the others are ended. Standard output is theirs;
    standard error is too, but for the last line of each, of which the one that matters is returned.

    Args:
        command: of each process.
        processes: their number.
        environment: added to this process's.

    Returns:
        The exit code of the whole (0, 1, 2 or 75), and the line to end with; empty after 0.
    """
    reader, writer = os.pipe()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {ORPHAN: reader}
    shared |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": 1}  # as torchrun does
    ranks = []
    try:
        for rank in range(processes):
            own = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            ranks.append(_Rank(rank, command, {**os.environ, **environment, **own}, reader))
        os.close(reader)
        return _watch(ranks)
    finally:
        for rank_process in ranks:
            rank_process.end()
        os.close(writer)


class _Rank:
    """One process; `line` is the last one that it wrote to standard error, if that says how it ended."""

    def __init__(self, rank: int, command: Sequence[str], environment: Mapping[str, str], pipe: int) -> None:
        self.rank, self.line = rank, ""
        # a session of its own: the terminal's interrupt is passed on once, by the process that watches
        self.process = subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[pipe],
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self.reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith(LAST_WORDS):
                self.line = line.strip()
            else:
                sys.stderr.write(line)
                sys.stderr.flush()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self) -> None:
        """Kill it if it runs, and read what it wrote."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join(timeout=1.0)


def _watch(ranks: Sequence[_Rank]) -> tuple[int, str]:
    """Wait until all have ended."""
    caught: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for rank in ranks:
            # the keyboard's second one ends a process at once, as it does without these others
            rank.send(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in (stopping() if main else [])}
    first: _Rank | None = None
    try:
        deadline = float("inf")
        while any(rank.code is None for rank in ranks) and time.monotonic() < deadline:
            failed = next((rank for rank in ranks if rank.code not in (None, 0, 75)), None)
            if failed is not None and first is None:
                first, deadline = failed, time.monotonic() + GRACE
            time.sleep(TICK)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    first = first or next((rank for rank in ranks if rank.code not in (None, 0, 75)), None)
    for rank in ranks:
        rank.end()
    return _outcome(ranks, first)


def _outcome(ranks: Sequence[_Rank], first: _Rank | None) -> tuple[int, str]:
    if first is not None:
        if first.line and first.code in (1, 2):
            return int(first.code), first.line
        last = f"rank {first.rank} of {len(ranks)}: {describe_exit(first.code)}"
        return 1, f"failed: {last}; the others were ended; run the same command to go on"
    stopped = [rank for rank in ranks if rank.code == 75]
    if stopped:
        return 75, stopped[0].line or "stopped: run the same command to go on"
    return 0, ""


def end_with_parent() -> None:
    """In a process of `run`: ask for a stop when the process that started it has ended, and end soon after."""
    pipe = os.environ.pop(ORPHAN, None)
    if pipe is not None:
        threading.Thread(target=_wait_for_parent, args=(int(pipe),), daemon=True).start()


def _wait_for_parent(pipe: int) -> None:
    with suppress(OSError):
        os.read(pipe, 1)  # nothing is ever written: it returns when the last writer has gone
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60.0)  # a checkpoint may be written meanwhile
    os._exit(75)
