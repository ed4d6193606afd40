"""Processes that a sweep starts. None outlives it.

Each is forked from a server that has imported the heavy modules already, so it starts in a fraction of a second, and a
job that is killed takes nothing with it.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerProcess
from typing import Any

from imdb_rlhf.signals import interrupt_at_any, stopping

PRELOAD = ["imdb_rlhf.experiment", "imdb_rlhf.frontier.draw"]
SOCKET_PATH = 103  # bytes in the longest path of a socket: 107 under Linux, 103 under macOS


def start(target: Callable[..., int | None], *arguments: Any) -> ForkServerProcess:
    """Start `target(*arguments)` in a process of its own, whose exit code is the value that `target` returns.

    It leads a process group, so that the terminal's interrupt does not reach it, and gets SIGTERM when this process
    ends, in whatever way.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    numbers = stopping()
    process = context.Process(target=_begin, args=(target, arguments, numbers))
    with _held_back(numbers), _short_temporary():
        process.start()
    return process


@contextmanager
def _held_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Let what is started meanwhile hold these signals back, until it asks for them.

    A scheduler sends a signal to all processes of a job, and the fork server would die of it, its children unheard.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        resource_tracker.ensure_running()  # it lets two of them through again, hence once more
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _short_temporary() -> Iterator[None]:
    """Let the fork server's socket lie in /tmp where the temporary folder's path is too long for a socket in it."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678/listener-12345678") > SOCKET_PATH:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def _begin(target: Callable[..., int | None], arguments: tuple[Any, ...], numbers: Sequence[signal.Signals]) -> None:
    os.setsid()
    interrupt_at_any()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sys.exit(target(*arguments) or 0)
    except KeyboardInterrupt:
        sys.exit(75)


def _end_with_parent() -> None:
    # Not PR_SET_PDEATHSIG: this process's parent is the fork server, which lives as long as one of its processes.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGTERM)


def stop(process: ForkServerProcess, number: int = signal.SIGTERM) -> None:
    """Send a signal to a process of `start` and to those that it has started."""
    if process.pid is None or not process.is_alive():
        return
    with suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it does not lead its group yet
            os.kill(process.pid, number)
