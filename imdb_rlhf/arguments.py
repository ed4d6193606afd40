"""Command lines other than Hydra's, which refuse an argument in one line."""

import argparse
from typing import NoReturn

from imdb_rlhf.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(message)
