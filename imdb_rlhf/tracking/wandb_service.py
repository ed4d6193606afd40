"""W&B's process, `wandb-core`: how it is set up, how long it may keep a run waiting, and what it leaves behind."""

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from imdb_rlhf.tracking.redact import redact

PACKAGE = Path(__file__).resolve().parents[1]
FINISH = 45.0  # seconds for what is still to be uploaded at the end of a run
PATIENCE = 55.0  # seconds until a call that has not returned ends W&B's process
RETRY = 0.25  # seconds between attempts at that


def settings(*, system: bool, git: bool) -> Any:
    """W&B's settings.

    Args:
        system: whether W&B may look at the machine: hardware, its use, user and host, command line.
        git: whether commit and remote are told; uncommitted changes never are.
    """
    import wandb

    source = _source() if git else {}
    return wandb.Settings(
        x_disable_meta=not system,
        x_disable_machine_info=not system,
        x_disable_stats=not system,
        x_save_requirements=system,
        disable_git=True,  # it would read the remote itself, with a token in it, and store uncommitted changes
        disable_code=True,
        disable_job_creation=True,
        symlink=False,
        console="off",  # lines are sent one by one, without secrets
        silent=True,
        x_transaction_log_flush_interval=1.0,  # a killed process loses 1 second of rows instead of 15
        init_timeout=20,
        finish_timeout=FINISH,
        **source,
    )


def _source() -> dict[str, str]:
    """Commit and remote of the package's source, or of the current folder where that is in no repository."""
    for folder in (PACKAGE, Path.cwd()):
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            remote = _git(folder, "config", "--get", "remote.origin.url")
            return {"git_commit": commit} | ({"git_remote_url": redact(remote)} if remote else {})
    return {}


def _git(folder: Path, *words: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5)
        return answer.stdout.strip() if answer.returncode == 0 else ""
    return ""


@contextmanager
def patience(on_end: Callable[[], None]) -> Iterator[None]:
    """End W&B's process if the calls inside have not returned after `PATIENCE` seconds: they then raise.

    `on_end` is called, in another thread, just before.
    """
    returned = threading.Event()

    def watch() -> None:
        if returned.wait(PATIENCE):
            return
        on_end()
        while not returned.wait(RETRY):  # it may be about to start
            kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        returned.set()


def _process() -> "subprocess.Popen[bytes] | None":
    """W&B's process, where this process has started one."""
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup.singleton(), "_connection", None)
    return getattr(getattr(connection, "_proc", None), "_process", None)


def process_id() -> int | None:
    """The number of W&B's process, where this process has started one."""
    process = _process()
    return None if process is None else process.pid


def kill() -> None:
    """End W&B's process, whatever state it is in, and remove its sockets."""
    _kill(_process())


def _kill(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None:
        return
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    _remove_sockets(process.pid)


def _remove_sockets(number: int) -> None:
    temporary = Path(tempfile.gettempdir())
    for left in [*temporary.glob(f"wandb-*-{number}-*"), *temporary.glob(f"wandb_symon-{number}-*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def close(run: Any, exit_code: int) -> None:
    """End W&B's process in good order, or at once where it does not answer; nothing while a run but `run` needs it."""
    import wandb
    from wandb.sdk import wandb_setup

    wandb_setup.singleton().remove_active_run(run)  # a failure may have kept it
    if wandb_setup.singleton().most_recent_active_run is not None:
        return
    process = _process()
    try:
        wandb.teardown(exit_code=exit_code)
    except Exception:
        _kill(process)


def tidy_at_exit() -> None:
    """Remove W&B's temporary folders when this process ends: a process of multiprocessing calls no `atexit` hook."""
    global _TIDY
    if _TIDY is None:
        _TIDY = Finalize(None, _remove_temporary_folders, exitpriority=0)


_TIDY: Finalize | None = None


def _remove_temporary_folders() -> None:
    from wandb.sdk.artifacts.artifact import Artifact
    from wandb.sdk.data_types import _private

    for folder in (getattr(_private, "MEDIA_TMP", None), getattr(Artifact, "_TMP_DIR", None)):
        if folder is not None:
            with suppress(OSError):
                folder.cleanup()
