"""What can end a run early, and the exit code that goes with it (`cli` turns each into one line)."""


class ConfigError(ValueError):
    """A configuration that is refused before anything is loaded or written; exit code 2."""


class RunError(RuntimeError):
    """A failure that a user can mend: one line that says what and what to do; exit code 1."""


class Stopped(Exception):
    """A signal came, a checkpoint was written, the same command goes on from there; exit code 75."""
