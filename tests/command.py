"""The command line in tests: compose a run from overrides, or run `train.py` in this process or in one of its own."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf import cli, typed_run
from imdb_rlhf.config.explain import explain
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "train.py"


@dataclass(frozen=True)
class Answer:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


# --- composing


@cache
def register() -> None:
    """Tell Hydra of the classes, once: it takes as long as a composition."""
    typed_run.register()


@cache
def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    """The configuration of these overrides, not to be written to; with Hydra's own where `hydra` says so."""
    register()
    with initialize_config_dir(str(typed_run.CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def run_of(*overrides: str, then: str | None = None) -> Run:
    """The run of these overrides.

    `then` is one more value, set after the others were composed: much faster where a test has many of them.
    """
    if then is None:
        return typed_run.to_run(composed(*overrides))
    values = deepcopy(composed(*overrides))
    key, _, value = then.partition("=")
    OmegaConf.update(values, key, value)
    return typed_run.to_run(values)


def refusal(*overrides: str, then: str | None = None) -> str:
    """The one line with which these overrides are refused, `then` as above."""
    try:
        run_of(*overrides, then=then)
    except ConfigError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = explain(error)
    else:
        pytest.fail(f"{overrides} was not refused")
    assert "\n" not in message
    return message


# --- running


def answer_of(command: Callable[[], object], *arguments: str) -> Answer:
    """What a command line in this process answers to arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; gone again afterwards
        patch.setattr(sys, "argv", ["train.py", *arguments])
        patch.setattr(cli, "_FAILURES", [])
        try:
            command()
        except SystemExit as left:
            assert left.code is None or isinstance(left.code, int)
            code = left.code or 0
    return Answer(code, out.getvalue(), err.getvalue())


def train(*arguments: str) -> Answer:
    """`python train.py ARGUMENTS`, in this process."""
    return answer_of(cli.main, *arguments)


def start(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """`python train.py ARGUMENTS`, started in a process of its own with one thread."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path = ROOT, timeout: float = 240, **environment: str) -> Answer:
    """The same, waited for."""
    return ended(start(*arguments, cwd=cwd, **environment), timeout)


def ended(process: subprocess.Popen[str], timeout: float = 240) -> Answer:
    """The answer of a process of `start`."""
    out, err = process.communicate(timeout=timeout)
    return Answer(process.returncode, out, err)
