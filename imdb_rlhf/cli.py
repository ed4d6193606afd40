"""Hydra glue: schemas, a composed config to a typed `Run`, and every refusal as one line with its exit code."""

import os
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from imdb_rlhf.config.explain import explain, not_listed
from imdb_rlhf.config.keys import ALGORITHMS, PLACES, SCHEMAS, names_of, unknown_choice, unknown_key
from imdb_rlhf.config.machine import check_processes
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError, Stopped
from imdb_rlhf.signals import interrupt_at_any


def _shipped(name: str) -> Path:
    """A folder of the repository; a package that pip has installed has it inside."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


CONF, SWEEPS = _shipped("conf"), _shipped("sweeps")


def register(folder: Path | None = None) -> None:
    """Tell Hydra of everything that it does not find in conf/ by itself.

    These are the classes that conf/ names as `/schema/...`; `sweeps/`, for `--help`; and the sections of
    `experiment_algo/*.yaml`, each as a config of its own, `<experiment>_<algorithm>`.

    Args:
        folder: of the user's own configuration (`--config-dir`), whose `experiment_algo/` is read too.

    Raises:
        ConfigError: such a file has no section per algorithm.
    """
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        group, _, leaf = f"schema/{name}".rpartition("/")
        store.store(group=group, name=leaf, node=schema, provider="imdb_rlhf")
    for file in sorted(SWEEPS.glob("*.yaml")):
        node: Any = OmegaConf.load(file)
        store.store(group="sweep", name=file.stem, node=node, package="_global_", provider="imdb_rlhf")
    for place in (CONF, folder) if folder else (CONF,):
        for file in sorted((place / "experiment_algo").glob("*.yaml")):
            for algo, section in _sections(file).items():
                name = f"{file.stem}_{algo}"
                store.store(group="experiment_algo", name=name, node=section, package="_global_", provider="imdb_rlhf")


def _sections(file: Path) -> dict[str, Any]:
    """What an experiment changes in each algorithm."""
    content = OmegaConf.load(file)
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{file} needs a section per algorithm, such as `dpo:`")
    for algo, section in ((str(key), value) for key, value in content.items()):
        if algo not in ALGORITHMS and (CONF / "algo" / f"{algo}.yaml").exists():
            raise ConfigError(not_listed(f"algo/{algo}", algo))
        if algo not in ALGORITHMS:
            raise ConfigError(f"{file}: {unknown_choice('algo', algo, list(ALGORITHMS))}")
        if not isinstance(section, DictConfig):
            raise ConfigError(f"{file}: the section {algo} has no keys; give some, or leave it out")
    return {str(algo): section for algo, section in content.items()}


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
        _expand_home(values)
        _refuse_unknown(values, OmegaConf.get_type(values), "", str(values.algo))
        run = cast(Run, OmegaConf.to_object(values))
        if type(run) is not ALGORITHMS.get(run.algo):
            raise ConfigError(
                f"the file that algo= chooses says algo: {run.algo}, and its schema is another algorithm's"
            )
        run.check_knob()
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    return run


def _expand_home(values: DictConfig) -> None:
    """Put the home folder in for `~` at the beginning of every path."""
    for key in (*PLACES, "paths.outputs"):
        *above, name = key.split(".")
        node: Any = values
        for part in above:
            node = node.get(part) if isinstance(node, DictConfig) else None
        value = node.get(name) if isinstance(node, DictConfig) else None
        if isinstance(value, str) and value.startswith("~"):
            node[name] = os.path.expanduser(value)


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


def _refuse_unknown(node: DictConfig, schema: Any, place: str, algo: str) -> None:
    names = names_of(schema, place) if is_dataclass(schema) else []
    for word in map(str, node):
        key, child = f"{place}.{word}" if place else word, node._get_node(word)
        if key not in names:
            raise ConfigError(unknown_key(key, names, algo, shown=f"{key}={child}"))
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, OmegaConf.get_type(child), key, algo)


_FAILURES: list[tuple[int, str]] = []  # exit code and message of a run in this process that did not end well


@dataclass(frozen=True)
class SweepCommand:
    """The command line of a sweep, most of which Hydra must not see: it would compose the default algorithm with it.

    Attributes:
        arguments: all of it, as typed.
        options: Hydra's own keys, and the options that every job needs to compose (`--config-dir`).
        overrides: the other arguments: the sweeper makes jobs of them.
    """

    arguments: list[str]
    options: list[str]
    overrides: list[str]


SWEEP_COMMAND = SweepCommand([], [], [])


def _experiment() -> Callable[[Run, str, list[str]], None]:
    """Import what runs an experiment, and torch with it: here and not before.

    Raises:
        RunError: a module cannot be imported.
    """
    try:
        from imdb_rlhf.experiment import run_experiment
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = (
            f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{frame.filename}:{frame.lineno}"
        )
        raise RunError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    return run_experiment


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(composed: DictConfig) -> None:
    try:
        overrides = list(HydraConfig.get().overrides.task)
        run = checked(composed, overrides)
        check_processes(run.trainer.processes)
        _experiment()(run, OmegaConf.to_yaml(OmegaConf.structured(run)), overrides)
    except ConfigError as error:
        _FAILURES.append((2, f"refused: {error}"))
    except RunError as error:
        _FAILURES.append((1, f"failed: {' '.join(str(error).split())}"))  # a user's function may raise many lines
    except Stopped as error:
        _leave(75, f"stopped: {error}")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a failure, 2 a configuration refused, 75 stopped by a signal."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]  # argparse would answer in eight lines
    options = parser.parse_args()
    _set_aside(options)
    if threading.current_thread() is threading.main_thread():
        interrupt_at_any()
    try:
        register(Path(options.config_dir) if options.config_dir else None)
        _job()
    except ConfigError as error:
        _leave(2, f"refused: {error}")
    except RunError as error:
        _leave(1, f"failed: {' '.join(str(error).split())}")
    except (HydraException, OmegaConfBaseException) as error:
        _leave(2, f"refused: {explain(error)}")
    except YAMLError as error:
        _leave(2, f"refused: a file cannot be read as YAML: {' '.join(str(error).split())}; mend it")
    except UnicodeDecodeError as error:
        folders = [Path(options.config_dir)] if options.config_dir else []
        _leave(2, f"refused: {_not_utf8([*folders, CONF])} is not UTF-8 text ({error.reason}); save it as UTF-8")
    except ValueError as error:  # Hydra's two of this type: a group that is set to null, defaults that are no list
        if not str(error).startswith(("Config group override", "Invalid defaults list")):
            raise
        _leave(2, f"refused: {' '.join(str(error).split())}; give one of the choices that --help lists")
    except KeyboardInterrupt:
        _leave(75, "stopped: finished stages are kept; run the same command to go on")
    if _FAILURES:
        _leave(max(code for code, _ in _FAILURES), "\n".join(line for _, line in _FAILURES))


def _not_utf8(folders: Sequence[Path]) -> Path:
    """The first file of configuration folders that is not UTF-8 text."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return folders[0]


def _set_aside(options: Namespace) -> None:
    """Hide a sweep's overrides from Hydra, and refuse a sweep without `-m`."""
    global SWEEP_COMMAND
    sweeps = [word for word in options.overrides if word.lstrip("+").startswith("sweep=")]
    if sweeps and not options.multirun:
        _leave(2, f"refused: {sweeps[0]} is many runs; python train.py -m {sweeps[0]} runs them")
    if options.multirun and (options.cfg or options.info or options.shell_completion):
        _leave(2, "refused: --cfg and --info show the configuration of one run; drop -m, and give each key one value")
    overrides = [word for word in options.overrides if not word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    needed = [word for word in options.overrides if word not in overrides]
    for name in ("config_path", "config_name", "config_dir"):
        if getattr(options, name) is not None:
            needed += [f"--{name.replace('_', '-')}", getattr(options, name)]
    SWEEP_COMMAND = SweepCommand(sys.argv[1:], needed, overrides) if options.multirun else SweepCommand([], [], [])
    sys.argv = [word for word in sys.argv if word not in SWEEP_COMMAND.overrides]


def _refuse_option(message: str) -> NoReturn:
    _leave(2, f"refused: {message}; put options before or after all of the key=value, --help shows some")


def _leave(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
