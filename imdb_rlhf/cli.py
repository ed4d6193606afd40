"""Hydra glue: schemas, a composed config to a typed `Run`, and every refusal as one line with its exit code."""

import os
import re
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf.config import algos, data, machine, model, optim, reward, stages
from imdb_rlhf.config import run as run_config
from imdb_rlhf.config.algos import ALGO_OF_GROUP
from imdb_rlhf.config.machine import check_processes
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError, Stopped

CONF = Path(__file__).resolve().parent.parent / "conf"
SWEEPS = CONF.parent / "sweeps"
MODULES = (run_config, algos, machine, model, data, reward, optim)
SCHEMAS: dict[str, type] = {name: schema for module in MODULES for name, schema in module.SCHEMAS.items()}


def register() -> None:
    """Put the types of `config.py` where the YAML files of `conf/` name them, and the sweeps where `--help` looks."""
    for name, schema in SCHEMAS.items():
        group, _, leaf = f"schema/{name}".rpartition("/")
        ConfigStore.instance().store(group=group, name=leaf, node=schema, provider="imdb_rlhf")
    for file in sorted(SWEEPS.glob("*.yaml")):
        ConfigStore.instance().store(
            group="sweep", name=file.stem, node=OmegaConf.load(file), package="_global_", provider="imdb_rlhf"
        )
    OmegaConf.register_new_resolver("preset", _preset, replace=True)


def _preset(experiment: str) -> str:
    """PPO's preset for an experiment: the one of its name, or that for small models."""
    return experiment if (CONF / "ppo" / f"{experiment}.yaml").exists() else "small"


def to_run(composed: DictConfig) -> Run:
    """The typed and checked run of a composed config.

    Raises:
        ConfigError: a key that the algorithm does not use (`+key=value` gets past Hydra), a missing value, or a value
            out of range.
    """
    values = deepcopy(composed)
    with flag_override(values, ["struct", "readonly"], False):
        values.pop("hydra", None)
    try:
        OmegaConf.resolve(values)
        _refuse_extra(values, OmegaConf.get_type(values), "", str(values.algo))
        run = OmegaConf.to_object(values)
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    return cast(Run, run)


def checked(composed: DictConfig, overrides: Sequence[str]) -> Run:
    """The run of a composed config, unless the overrides set what follows from others.

    Raises:
        ConfigError: naming the key and the way out.
    """
    if any(word.lstrip("+").startswith("experiment_algo=") for word in overrides):
        raise ConfigError("experiment_algo follows from experiment and algo; choose those, or set single keys")
    if any(word.lstrip("+").startswith("ppo.preset=") for word in overrides):
        raise ConfigError("ppo.preset only names the constants; choose them with ppo=small, paper, ...")
    return to_run(composed)


def _refuse_extra(node: DictConfig, schema: Any, prefix: str, algo: str) -> None:
    names = [field.name for field in fields(schema)] if is_dataclass(schema) else []
    for key in map(str, node):
        if key not in names:
            names = [f"{prefix}{name}" for name in names]
            raise ConfigError(_unknown(f"{prefix}{key}", names, algo, f"{prefix}{key}={node._get_node(key)}"))
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_extra(child, OmegaConf.get_type(child), f"{prefix}{key}.", algo)


def _unknown(key: str, names: list[str], algo: str | None = None, shown: str | None = None) -> str:
    said, there = f"{shown or key}: no such key{f' for algo={algo}' if algo else ''}", ", ".join(names)
    owners = _owners(key)
    if algo and owners and algo not in owners:
        return f"{said}; it belongs to algo={', '.join(owners)}; keys of {algo}: {there}"
    # the last words alone: all keys of one place begin alike
    near = get_close_matches(key.rpartition(".")[2], [name.rpartition(".")[2] for name in names], 1)
    place = f"{key.rpartition('.')[0]}.".lstrip(".")
    return f"{said}; {f'did you mean {place}{near[0]}? ' if near else ''}keys there: {there}"


def _owners(key: str) -> list[str]:
    """The algorithms that have what a key begins with."""
    first = key.partition(".")[0]
    return [name for name, schema in _ALGOS.items() if first in [field.name for field in fields(schema)]]


_ALGOS: dict[str, Any] = {
    name: schema for name, schema in SCHEMAS.items() if issubclass(schema, Run) and schema is not Run
}


def explain(error: BaseException) -> str:
    """One line for what Hydra or OmegaConf say in several: the key, the value and the way out."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text, last = "\n".join(map(str, chain)), str(chain[-1])
    if match := re.search(
        r"Could not find '([^']+)'.*?Available options in '([^']+)':\n(.*?)\nConfig search", text, re.S
    ):
        options = ", ".join(match[3].split())
        return f"{match[2]}={match[1].rpartition('/')[2]}: no such choice; there are {options}"
    key_match = re.search(r"full_key: ([\w.]+)", last)
    if match := re.search(r"Key '([^']+)' (?:not in|is not in struct)(?: '(\w+)')?", last):
        key = key_match[1] if key_match else match[1]
        asked = re.search(r"To append to your config use \+(.+)", text)
        shown = asked[1] if asked else key
        schema = _CLASSES.get(match[2] or "")
        prefix = key.rpartition(".")[0]
        names = [f"{prefix}.{f.name}" if prefix else f.name for f in fields(schema)] if schema else []
        algo = next((name for name, run in _ALGOS.items() if run is schema), None)
        return _unknown(key, names, algo, shown) if names else f"{shown}: no such key; --cfg job lists them"
    if match := re.search(r"[Mm]issing (?:mandatory value:|1 required positional argument:) '?([\w.]+)", text):
        key = key_match[1] if key_match and key_match[1].endswith(match[1]) else match[1]
        return f"{key} has no value; set {key}=..."
    if key_match:
        asked = re.search(r"Error merging override (\S+)", text)
        return f"{asked[1] if asked else key_match[1]}: {last.splitlines()[0]}; conf/ says what it takes"
    if match := re.search(r"Could not override '([^']+)'", text):
        if match[1] in ALGO_OF_GROUP:
            owner = ALGO_OF_GROUP[match[1]]
            return f"{match[1]}=... chooses a preset of algo={owner}, and this is another algorithm; add algo={owner}"
        if owners := _owners(match[1].partition("@")[2]):
            return f"{match[1]}: no such group for this algorithm; it belongs to algo={', '.join(owners)}"
        return f"{match[1]}: no such group; `python train.py --help` lists the groups, --cfg job the keys"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


_CLASSES: dict[str, type] = {
    n: v for module in (*MODULES, stages) for n, v in vars(module).items() if isinstance(v, type) and is_dataclass(v)
}
_OUTCOMES: list[tuple[int, str]] = []  # what the run of this process came to, where not well


@dataclass(frozen=True)
class Kept:
    """The command line of a sweep, kept back from Hydra, which would compose the default algorithm with all of it.

    Attributes:
        words: as typed.
        options: those that a job needs to compose, and Hydra's own keys.
        overrides: the others.
    """

    words: list[str]
    options: list[str]
    overrides: list[str]


KEPT = Kept([], [], [])


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(composed: DictConfig) -> None:
    try:
        overrides = list(HydraConfig.get().overrides.task)
        run = checked(composed, overrides)
        check_processes(run.trainer.processes)
        from imdb_rlhf.runs.experiment import run_experiment  # torch is imported here and not before

        run_experiment(run, OmegaConf.to_yaml(OmegaConf.structured(run)), overrides)
    except ConfigError as error:
        _OUTCOMES.append((2, f"refused: {error}"))
    except RunError as error:
        _OUTCOMES.append((1, f"failed: {' '.join(str(error).split())}"))  # what a user's function raised has many lines
    except Stopped as error:
        _leave(75, f"stopped: {error}")


def main() -> None:
    """What `train.py` calls. Exit codes: 0 done, 1 a failure, 2 a configuration refused, 75 stopped by a signal."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through to here instead of being printed
    register()
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]  # argparse would answer in eight lines
    _keep(parser.parse_args())
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as the keyboard would; the training loop has a handler of its own
    try:
        _job()
    except ConfigError as error:
        _leave(2, f"refused: {error}")
    except RunError as error:
        _leave(1, f"failed: {' '.join(str(error).split())}")
    except (HydraException, OmegaConfBaseException) as error:
        _leave(2, f"refused: {explain(error)}")
    except ValueError as error:  # a group that is set to null: Hydra's only complaint of this type
        if not str(error).startswith("Config group override"):
            raise
        _leave(2, f"refused: {error}; give one of the choices that --help lists")
    except KeyboardInterrupt:
        _leave(75, "stopped: finished stages are kept; run the same command to go on")
    if _OUTCOMES:
        _leave(max(code for code, _ in _OUTCOMES), "\n".join(line for _, line in _OUTCOMES))


def _keep(asked: Namespace) -> None:
    """Keep a sweep's overrides back from Hydra, and refuse a sweep that is asked of a single run."""
    global KEPT
    named = [word for word in asked.overrides if word.lstrip("+").startswith("sweep=")]
    if named and not asked.multirun:
        _leave(2, f"refused: {named[0]} is many runs; python train.py -m {named[0]} runs them")
    overrides = [word for word in asked.overrides if not word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    options = [word for word in asked.overrides if word not in overrides]
    for name in ("config_path", "config_name", "config_dir"):
        if getattr(asked, name) is not None:
            options += [f"--{name.replace('_', '-')}", getattr(asked, name)]
    KEPT = Kept(sys.argv[1:], options, overrides) if asked.multirun else Kept([], [], [])
    sys.argv = [word for word in sys.argv if word not in KEPT.overrides]


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _refuse_option(message: str) -> NoReturn:
    _leave(2, f"refused: {message}; put options before or after all of the key=value, --help shows some")


def _leave(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
