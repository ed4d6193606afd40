"""Signals that ask for a stop (a checkpoint is written, and the exit code is 75), and exit codes in words."""

import signal
from types import FrameType
from typing import NoReturn

# The keyboard's, a scheduler's (SLURM's --signal=USR1@60 among them), and a terminal's that was closed.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")


def stopping() -> list[signal.Signals]:
    """Those that this system has, without those that this process was told to ignore (nohup does so with SIGHUP)."""
    known = [signal.Signals[name] for name in NAMES if name in signal.Signals.__members__]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


def interrupt_at_any() -> None:
    """Let each of them do what the keyboard's does; the training loop has handlers of its own."""
    for number in stopping():
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
    return f"ended with exit code {code}" + (" before its run was finished" if code == 0 else "")
