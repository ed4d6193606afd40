"""Arguments of the commands other than Hydra's."""

from pathlib import Path

import pytest

from imdb_rlhf.arguments import OneLineParser, place
from imdb_rlhf.errors import ConfigError


def test_the_home_folder_stands_for_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = OneLineParser()
    parser.add_argument("--to", type=place)
    assert parser.parse_args(["--to=~/x"]).to == Path("/home/me/x")
    with pytest.raises(ConfigError, match="unrecognized arguments: --no"):
        parser.parse_args(["--no"])
