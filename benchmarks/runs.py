"""Command lines of train.py as typed runs, nothing loaded."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.imdb_rlhf_sweeper import grids_of, product_of
from imdb_rlhf import typed_run
from imdb_rlhf.config.explain import explain
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError


def runs_of(words: Sequence[str]) -> list[Run]:
    """The checked runs of a command line, which may hold `sweep=NAME`, as the sweeper makes them.

    Raises:
        ConfigError: naming the job and what is wrong with it.
    """
    typed_run.register()
    _, grids = grids_of(words, _sweep)
    runs = []
    with initialize_config_dir(str(typed_run.CONF), version_base="1.3"):
        for job in (job for grid in grids for job in product_of(grid)):
            try:
                runs.append(typed_run.checked(compose("config", job), job))
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(f"train.py {' '.join(job)}: {explain(error)}") from error
    return runs


def _sweep(name: str) -> tuple[list[str], dict[str, str]]:
    content: Any = OmegaConf.to_container(OmegaConf.load(typed_run.SWEEPS / f"{name}.yaml"))
    return content["grids"], content.get("experiments") or {}
