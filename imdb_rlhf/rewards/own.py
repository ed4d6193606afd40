"""A user's own reward: `reward.function=file.py:name`, a list of texts to a list of floats."""

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imdb_rlhf.artifacts.files import hash_file, hash_folder
from imdb_rlhf.config.reward import OwnReward as OwnConfig
from imdb_rlhf.errors import RunError, first_line, text_of
from imdb_rlhf.rewards import Reward, RewardKind, Scores
from imdb_rlhf.rewards.local_code import is_own, local_modules
from imdb_rlhf.rewards.own_world import OwnWorld


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
        self.beside, self.world = str(file.resolve().parent), OwnWorld()
        try:
            with self.world.entered(), self._modules_beside():
                spec.loader.exec_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RunError(f"reward.function={function}: importing {file} raised {_told(error)}") from error
        if not callable(getattr(module, self.name, None)):
            raise RunError(f"reward.function={function}: {file} has no function {self.name}")
        self.function: Callable[[list[str]], Sequence[float]] = getattr(module, self.name)

    def score(self, texts: Sequence[str]) -> Scores:
        """The function's numbers, checked.

        Raises:
            RunError: it raised, or gave another count than texts, or a number that is not finite.
        """
        with self.world.entered(), self._modules_beside():
            return scores_of(self.function, texts, f"reward.function {self.name}")

    @contextmanager
    def _modules_beside(self) -> Iterator[None]:
        """Find modules beside the file first, as for a script; libraries that others import later are found as ever."""
        sys.path.insert(0, self.beside)
        try:
            yield
        finally:
            if self.beside in sys.path:
                sys.path.remove(self.beside)


def scores_of(function: Callable[[list[str]], Sequence[float]], texts: Sequence[str], name: str) -> Scores:
    """A function's numbers, on both scales as they are.

    Args:
        function: from texts to as many finite numbers.
        texts: prompt + completion each.
        name: what messages call the function.

    Raises:
        RunError: it raised, or gave another count than texts, or a number that is not finite.
    """
    try:
        values = _numbers(function(list(texts)))  # here, as what is given may be code of the user's
    except _NoNumbersError as error:
        raise RunError(f"{name} gave {error}; return one float per text") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RunError(f"{name} raised {_told(error)}") from error
    if values.shape != (len(texts),):
        raise RunError(f"{name} gave shape {values.shape} for {len(texts)} texts; return one float per text")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RunError(f"{name} gave {values[bad[0]]} for the text {texts[bad[0]][:60]!r}; return finite numbers")
    return Scores(values, values)


class _NoNumbersError(TypeError):
    """What a function gave is no row of numbers."""


def _numbers(given: Any) -> np.ndarray:
    """What a function gave as float64: a list of numbers, an array, a series, a tensor of any type, on any device.

    Raises:
        _NoNumbersError: anything else, values that are masked, and numbers with a part that would be lost.
    """
    what = f"a {type(given).__name__}"
    if inspect.iscoroutine(given):
        given.close()
        raise _NoNumbersError(f"{what}: it is an async function")
    if isinstance(given, Iterator | Mapping | Set | str | bytes):
        raise _NoNumbersError(what)
    if isinstance(given, list | tuple):
        given = [_plain(value) for value in given]
    try:
        found = np.ma.asarray(_plain(given))
        if np.ma.is_masked(found) or (isinstance(given, list) and any(value is np.ma.masked for value in given)):
            raise _NoNumbersError(f"{what} with masked values")
        if found.dtype.kind not in "biufO":
            raise _NoNumbersError(f"{what} of {found.dtype.name}")
        return np.asarray(found.data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, _NoNumbersError):
            raise
        raise _NoNumbersError(f"{what} that is no row of numbers ({first_line(error)})") from error


def _plain(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value


def _told(error: BaseException) -> str:
    """An error of the user's code, with the line of it that is nearest to the error."""
    message = text_of(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if is_own(Path(frame.filename))]
    line = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {message}{line}"


class Kind(RewardKind[OwnConfig]):
    """A function of the user's: nothing is known of its range but what the configuration says."""

    compared = True
    range_place = "reward.range"

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        low, high = config.range or (-math.inf, math.inf)
        self.range = (low, high)

    @cached_property
    def reward(self) -> OwnReward:
        """The function, imported once."""
        return OwnReward(self.config.function)

    def check(self) -> None:
        """Refuse a function that is not there or cannot be imported, and files that it reads but that are not there.

        It is imported before its key is made: what it puts on the path is then found.
        """
        _ = self.reward
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
        """The function."""
        return self.reward
