"""A user's own reward: `reward.function=file.py:name`, a list of texts to a list of floats."""

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imdb_rlhf.artifacts.files import hash_file, hash_folder
from imdb_rlhf.config.reward import OwnReward as OwnConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.rewards import Reward, RewardKind, Scores
from imdb_rlhf.rewards.local_code import local_modules


def locate(function: str) -> tuple[Path, str]:
    """File and name of `file.py:name`.

    Raises:
        RunError: no such file.
    """
    path, _, name = function.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise RunError(f"reward.function={function}: no file {path}; give a path from the current folder")
    return file, name


class OwnReward:
    """Scores by a function of the user's; its numbers are used on both scales as they are."""

    def __init__(self, function: str) -> None:
        file, self.name = locate(function)
        spec = importlib.util.spec_from_file_location(f"imdb_rlhf_own_{hash_file(file)[:8]}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickles look their module up
        for name in local_modules(file):  # another file's, of the same name
            sys.modules.pop(name, None)
        beside = str(file.resolve().parent)
        if beside not in sys.path:  # as for a script; it stays, since a function may import when it is called
            sys.path.insert(0, beside)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise RunError(
                f"reward.function={function}: importing {file} raised {type(error).__name__}: {error}"
            ) from error
        if not callable(getattr(module, self.name, None)):
            raise RunError(f"reward.function={function}: {file} has no function {self.name}")
        self.function: Callable[[list[str]], Sequence[float]] = getattr(module, self.name)

    def score(self, texts: Sequence[str]) -> Scores:
        """The function's numbers, checked.

        Raises:
            RunError: it raised, or gave another count than texts, or a number that is not finite.
        """
        try:
            values = np.asarray(self.function(list(texts)), dtype=np.float64)
        except (Exception, SystemExit) as error:
            raise RunError(f"reward.function {self.name} raised {type(error).__name__}: {error}") from error
        if values.shape != (len(texts),):
            raise RunError(
                f"reward.function {self.name} gave shape {values.shape} for {len(texts)} texts; "
                "return one float per text"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise RunError(
                f"reward.function {self.name} gave {values[bad[0]]} for the text {texts[bad[0]][:60]!r}; "
                "return finite numbers"
            )
        return Scores(values, values)


class Kind(RewardKind[OwnConfig]):
    """A function of the user's: nothing is known of its range."""

    range = (-math.inf, math.inf)
    compared = True

    def check(self) -> None:
        """Refuse a function whose file does not exist, and files that it reads but that do not."""
        locate(self.config.function)
        for path in self.config.files:
            if not Path(path).expanduser().exists():
                raise RunError(f"reward.files: no file or folder {path}; give what {self.config.function} reads")

    def identity(self, key: str | None) -> Any:
        """The bytes of its file, its name, and the bytes of the user's modules that it imports and files it reads."""
        file, name = locate(self.config.function)
        modules = {module: hash_file(path) for module, path in local_modules(file).items()}
        places = [Path(path).expanduser() for path in self.config.files]
        files = [hash_folder(place) if place.is_dir() else hash_file(place) for place in places]
        # left out where there are none, so that rewards of one file keep their keys
        others = {"modules": modules, "files": files}
        return {"own": hash_file(file), "name": name} | {what: hashes for what, hashes in others.items() if hashes}

    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Import the function."""
        return OwnReward(self.config.function)
