"""What the command line says of itself: how it is called, --help, --version, and a shell's completion."""

import os
import sys
import textwrap
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.plugins.completion_plugin import CompletionPlugin
from omegaconf import BooleanNode, DictConfig, EnumNode

from imdb_rlhf import __version__
from imdb_rlhf.typed_run import CONF, SWEEPS

GROUPS = ("algo", "data", "reward", "model", "experiment", "ppo", "optim", "trainer", "launcher", "logger", "sweep")
WIDTH = 100  # columns
HELP = """How much reward does a preference-tuning method buy per nat of KL?

  {0} algo=dpo beta=0.1                     the DPO experiment on generated reviews
  {0} data=imdb data.path=DIR               on real reviews in the Hub's parquet layout
  {0} experiment=imdb_cpu data.path=DIR     the whole experiment on real reviews, two cores
  {0} -m sweep=frontier                     22 runs of all methods, then the frontier; resumable
  {0} -m algo=dpo beta=0.05,0.1,1,5         a run per value, then the frontier
  {0} plan=true ...                         the stages that would be made and those reused
  {0} --cfg job ...                         the composed configuration
  {0} --config-dir DIR ...                  experiments and sweeps of your own
  eval "$({0} -sc install=bash)"            completion by the Tab key, here in bash

Groups (group=choice):

{1}

sweep=NAME goes with -m; launcher=parallel runs several jobs of a sweep at once. With hydra-submitit-launcher installed,
hydra/launcher=submitit_slurm hands them to SLURM; with hydra-optuna-sweeper, hydra/sweeper=optuna searches.
Every key has its value and meaning in {2}. Change one with key=value."""


def program() -> str:
    """How this process was called: `python train.py` in the repository, `imdb-rlhf` where pip has installed it."""
    file = Path(sys.argv[0]) if sys.argv else Path()
    if file.parent.name == __package__:  # a module of the package was run
        return f"python -m {__package__}"
    return file.name if file.name == "imdb-rlhf" else "python train.py"


def help_text(own: Path | None) -> str:
    """The answer to --help.

    Args:
        own: the user's folder of configuration (`--config-dir`), whose choices are listed too.
    """
    lines = []
    for group in GROUPS:
        places = [SWEEPS if group == "sweep" else CONF / group, *([own / group] if own else [])]
        names = sorted({file.stem for place in places for file in place.glob("*.yaml")})
        lines += textwrap.wrap(f"{group}: {', '.join(names)}", WIDTH, subsequent_indent="  ")
    where = os.path.relpath(CONF) if CONF.is_relative_to(Path.cwd()) else CONF
    return HELP.format(program(), "\n".join(lines), where)


def state_version(parser: ArgumentParser) -> None:
    """Let --version answer with this package's, beside Hydra's."""
    for action in parser._actions:
        if "--version" in action.option_strings:
            action.version = f"imdb_rlhf {__version__} (Hydra {version('hydra-core')})"  # type: ignore[attr-defined]


def complete_choices() -> None:
    """Let Hydra's completion offer all values of a key that has a few; its own offers the present one."""
    hydras = CompletionPlugin._get_matches

    def matches(config: Any, word: str) -> list[str]:
        key, equals, typed = word.rpartition("=")
        node = config
        for part in key.split(".") if equals else []:
            node = node._get_node(part) if isinstance(node, DictConfig) else None
        if equals and isinstance(node, EnumNode):
            values = [choice.name for choice in node.enum_type]
        elif equals and isinstance(node, BooleanNode):
            values = ["true", "false"]
        else:
            return list(hydras(config, word))
        return [f"{key}={value}" for value in values if value.startswith(typed)]

    CompletionPlugin._get_matches = staticmethod(matches)  # type: ignore[method-assign]
