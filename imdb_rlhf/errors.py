"""The errors that end a run early, each with its exit code; `cli` shows each as one line."""


class ConfigError(ValueError):
    """A configuration that is refused before anything is loaded or written; exit code 2."""


class RunError(RuntimeError):
    """A failure that the user can fix: the message names the problem and the way out; exit code 1."""


class Stopped(Exception):
    """A signal stopped the run after a checkpoint, from which the same command goes on; exit code 75."""


def text_of(error: BaseException) -> str:
    """An error's own message; one of a user's class may fail at giving it."""
    try:
        return str(error)
    except Exception:
        return "its message cannot be read"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's name if it has none."""
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
