"""Hydra's own sweeper, except that every job is composed and checked before anything is written or started."""

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from imdb_rlhf.cli import to_run


class CheckedSweeper(BasicSweeper):
    """A Cartesian product of overrides whose jobs are all valid, or none of which starts."""

    def sweep(self, arguments: list[str]) -> Any:
        """Check every job, then run them.

        Raises:
            ConfigError: a job is refused; nothing was written.
        """
        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        plans = []
        for batch in self.split_arguments(overrides, self.max_batch_size):
            for job in batch:
                config = loader.load_sweep_config(self.config, list(job))
                OmegaConf.set_readonly(config, None)
                plans.append(to_run(config).plan)
        if not all(plans):
            return super().sweep(arguments)
        with TemporaryDirectory() as aside:  # a plan writes nothing, but Hydra keeps a sweep's configuration
            OmegaConf.update(self.config, "hydra.sweep.dir", aside)
            return super().sweep([*arguments, f"hydra.sweep.dir={aside}"])


@dataclass
class CheckedSweeperConfig:
    """The keys of Hydra's own sweeper."""

    _target_: str = "hydra_plugins.imdb_rlhf_sweeper.CheckedSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConfig, provider="imdb_rlhf")
