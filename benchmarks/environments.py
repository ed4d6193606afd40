"""The peers' virtual environments, made here: one for each list of requirements, whole or absent.

They lie under `.bench/` (git-ignored), named by a hash of requirements and Python, and hold the same torch as ours, so
that kernels are equal. On Linux PyPI's torch brings CUDA, some 3 GB; pip's own settings (PIP_EXTRA_INDEX_URL,
PIP_FIND_LINKS) choose another.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

READY = "made.json"  # written last; holds the installed versions
# Packages whose versions a table names.
NAMED = ("torch", "transformers", "trl", "accelerate", "numpy")


class EnvironmentFailed(Exception):
    """An environment could not be made; the message is one line."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer.

    Attributes:
        name: part of its folder's name.
        requirements: as pip takes them.
    """

    name: str
    requirements: tuple[str, ...]

    def folder(self, store: Path) -> Path:
        """Where it lies: named by what is in it and the Python that made it."""
        key = json.dumps([sorted(self.requirements), list(sys.version_info[:2]), sys.platform])
        return store / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def peers() -> dict[str, Environment]:
    """The environments that the peers need, by name."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    return {
        "trl": Environment("trl", ("trl==1.16.*", "transformers>=5,<6", torch)),
        # datasets and pandas of later years still serve it; its own year's torch would be another kernel library
        "trl_ppo": Environment("trl_ppo", ("trl==0.11.4", "transformers==4.45.2", "rich", torch)),
    }


def make(environment: Environment, store: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The interpreter of an environment, made where it is not there.

    Args:
        environment: what is wanted.
        store: where environments lie.
        say: told that it takes some minutes.

    Raises:
        EnvironmentFailed: pip could not install it; nothing is left.
    """
    folder = environment.folder(store)
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / READY).exists():
            return python_of(folder)
        say(f"making {folder} with {', '.join(environment.requirements)}: some minutes")
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was stopped
        try:
            venv.create(folder, with_pip=True)
            _pip(folder, "install", "--quiet", *environment.requirements)
            listed = _pip(folder, "list", "--format=json")
        except (EnvironmentFailed, subprocess.CalledProcessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise EnvironmentFailed(f"{environment.name}: {line}") from error
        installed = {row["name"].lower(): row["version"] for row in json.loads(listed)}
        (folder / READY).write_text(json.dumps({"requirements": environment.requirements, "installed": installed}))
    return python_of(folder)


def _pip(folder: Path, *words: str) -> str:
    command = [str(python_of(folder)), "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {done.returncode}"]
        raise EnvironmentFailed(errors[0])
    return done.stdout


def versions(python: Path | None) -> Mapping[str, str]:
    """The versions that a table names, of an environment by its interpreter, or of this process."""
    if python is None:
        return {name: version(name) for name in NAMED if _has(name)}
    installed = json.loads((python.parent.parent / READY).read_text())["installed"]
    return {name: installed[name] for name in NAMED if name in installed}


def _has(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True
