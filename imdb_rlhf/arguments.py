"""Command lines other than Hydra's, which refuse an argument in one line."""

import argparse
from pathlib import Path
from typing import NoReturn

from imdb_rlhf.errors import ConfigError


def place(text: str) -> Path:
    """A file or folder, `~` expanded: a shell does not do so in `--outputs=~/x`."""
    return Path(text).expanduser()


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(message)
