"""The errors that end a run early, each with its exit code; `cli` shows each as one line."""


class ConfigError(ValueError):
    """A configuration that is refused before anything is loaded or written; exit code 2."""


class RunError(RuntimeError):
    """A failure that the user can fix: the message names the problem and the way out; exit code 1."""


class Stopped(Exception):
    """A signal stopped the run after a checkpoint, from which the same command goes on; exit code 75."""
