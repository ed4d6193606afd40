"""From conf/ to a typed `Run`: what Hydra is told of, and a composed configuration checked."""

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf.config.explain import explain, not_listed
from imdb_rlhf.config.keys import ALGORITHMS, PLACES, SCHEMAS, names_of, unknown_choice, unknown_key
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError


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
