"""Command lines other than Hydra's: an argument that is refused costs one line."""

import argparse
from typing import NoReturn

from imdb_rlhf.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is an error to be shown in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(message)
