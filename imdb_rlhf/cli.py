"""The command line: a run, a sweep or a job of one, and every refusal as one line with its exit code."""

import os
import re
import shlex
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from imdb_rlhf import ranks
from imdb_rlhf.config.explain import explain
from imdb_rlhf.config.machine import check_processes, processes_running
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError, RunError, Stopped, first_line
from imdb_rlhf.publish.results import prepare
from imdb_rlhf.signals import interrupt_at_any
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.typed_run import CONF, checked, register
from imdb_rlhf.usage import complete_choices, help_text, program, state_version

COMPLETION = ("install", "uninstall", "query")  # what -sc takes

_FAILURES: list[tuple[int, str]] = []  # exit code and message of a run in this process that did not end well


@dataclass(frozen=True)
class SweepCommand:
    """The command line of a sweep.

    Attributes:
        arguments: all of it, as typed.
        options: Hydra's own keys, and the options that every job needs to compose (`--config-dir`).
        overrides: the other arguments. Our sweeper makes jobs of them, and Hydra must not see them: it would compose
            the default algorithm with them. Another sweeper gets them from Hydra.
    """

    arguments: list[str]
    options: list[str]
    overrides: list[str]

    @property
    def text(self) -> str:
        """The command as a line for a shell."""
        return f"{program()} {shlex.join(self.arguments)}" if self.arguments else ""


SWEEP_COMMAND = SweepCommand([], [], [])


def _experiment() -> Callable[[Run, str, list[str]], Path | None]:
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


def job(composed: DictConfig) -> Any:
    """What Hydra calls with a composed configuration, in this process or in a launcher's worker.

    Returns:
        For a job of a sweep the values of `objective=`, for a sweeper that searches; else None.

    Raises:
        ConfigError, RunError, Stopped: in a launcher's worker, which hands them to the sweeper.
    """
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    if settings.mode == RunMode.MULTIRUN:
        return _job_of_sweep(checked(composed, overrides), overrides, settings)
    try:
        run = checked(composed, overrides)
        _refuse_folders(settings)
        if run.trainer.processes > 1 and not run.plan and "WORLD_SIZE" not in os.environ:
            code, line = ranks.run([sys.executable, *sys.orig_argv[1:]], run.trainer.processes, {})
            _leave(code, line) if code else sys.exit(0)
        check_processes(run.trainer.processes)
        results = prepare(run, Console())
        with _one_line_if_a_peer_is_lost():
            folder = _experiment()(run, OmegaConf.to_yaml(OmegaConf.structured(run)), overrides)
        if results is not None and folder is not None:
            results.push({"": folder}, {}, Console().note)
    except ConfigError as error:
        _FAILURES.append((2, f"refused: {error}"))
    except RunError as error:
        _FAILURES.append((1, f"failed: {' '.join(str(error).split())}"))  # a user's function may raise many lines
    except Stopped as error:
        _leave(75, f"stopped: {error}")
    return None


NO_PUSH = (
    "a sweep by another sweeper is pushed when it is done: python -m imdb_rlhf.frontier SWEEP --push NAMESPACE/NAME"
)


def _job_of_sweep(run: Run, overrides: list[str], settings: Any) -> Any:
    """A job that a launcher of Hydra's runs here: in a process of its own, with its output in the sweep's folder."""
    from imdb_rlhf.sweep import handed, processes, search
    from imdb_rlhf.sweep.jobs import Job, in_group
    from imdb_rlhf.sweep.records import log_of

    folder = Path(str(settings.sweep.dir)).expanduser()
    run = in_group(run, folder.name)
    sources = {source.provider: source.path for source in settings.runtime.config_sources if source.schema == "file"}
    options = [f"--config-name={settings.job.config_name}"]
    options += [f"--config-dir={sources['command-line']}"] if "command-line" in sources else []
    options += [f"--config-path={sources['main']}"] if Path(sources["main"]) != CONF else []
    task = Job(run, OmegaConf.to_yaml(OmegaConf.structured(run)), overrides, options)
    if run.plan:
        processes.plan(task)
        return None
    _, [status] = processes.inspect([task])
    if settings.sweeper._target_.startswith(f"hydra_plugins.{__package__}_sweeper."):
        handed.work(task, status, log_of(folder, status.name))
        return None  # our sweeper reads the run's folder, and pushes
    if run.hub.push:
        raise ConfigError(f"hub.push={run.hub.push}: {NO_PUSH}")
    search.work(task, folder, status)
    from imdb_rlhf.frontier.objective import objective

    return objective(status.path, run.objective)


@contextmanager
def _one_line_if_a_peer_is_lost() -> Iterator[None]:
    """Turn the traceback that every process of a run writes when one is lost into a line.

    Raises:
        RunError: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if processes_running() == 1 or not ("DistError" in names or "gloo" in str(error)):
            raise
        rank = os.environ.get("RANK", "?")
        what = re.sub(r"^\[[^]]*] ", "", first_line(error)).partition(". ")[0]
        raise RunError(
            f"rank {rank} has lost another process of the run ({what}), whose own last line says why; run the same "
            "command to go on"
        ) from error


def _refuse_folders(settings: Any) -> None:
    """Refuse Hydra's keys that would have to move what a run writes, or the folder that it runs in.

    Raises:
        ConfigError: naming the way out.
    """
    if str(settings.run.dir) != ".":
        raise ConfigError(
            f"hydra.run.dir={settings.run.dir}: a run's folder is <paths.outputs>/runs/<its name>; "
            "paths.outputs=DIR moves it"
        )
    if settings.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: a run stays in the folder where it is started; paths.outputs=DIR moves output"
        )


_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a failure, 2 a configuration refused, 75 stopped by a signal."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]  # argparse would answer in eight lines
    state_version(parser)
    options = parser.parse_args()
    _set_aside(options)
    if threading.current_thread() is threading.main_thread():
        interrupt_at_any()
    ranks.end_with_parent()
    if options.help:
        print(help_text(Path(options.config_dir) if options.config_dir else None))
        return
    if options.shell_completion:
        if not any(word.partition("=")[0] in COMPLETION for word in options.overrides):
            _leave(
                2, f'refused: -sc needs install= or uninstall=bash, zsh or fish: eval "$({program()} -sc install=bash)"'
            )
        complete_choices()
    try:
        register(Path(options.config_dir) if options.config_dir else None)
        _search(options) if _searches(options) else _main()
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


def _sweeper(options: Namespace) -> str:
    """The sweeper that the command line names."""
    named = [word.partition("=")[2] for word in options.overrides if word.lstrip("+").startswith("hydra/sweeper=")]
    return named[-1] if named else "grids"


def _searches(options: Namespace) -> bool:
    """Whether another sweeper than ours is asked for."""
    return bool(options.multirun) and _sweeper(options) != "grids"


def _set_aside(options: Namespace) -> None:
    """Hide a sweep's overrides from Hydra, and refuse a sweep without `-m`."""
    global SWEEP_COMMAND
    sweeps = [word for word in options.overrides if word.lstrip("+").startswith("sweep=")]
    if sweeps and not options.multirun:
        _leave(2, f"refused: {sweeps[0]} is many runs; {program()} -m {sweeps[0]} runs them")
    if sweeps and _searches(options):
        _leave(2, f"refused: {sweeps[0]} is a union of grids, which hydra/sweeper={_sweeper(options)} does not know")
    if options.multirun and (options.cfg or options.info or options.shell_completion):
        _leave(2, "refused: --cfg and --info show the configuration of one run; drop -m, and give each key one value")
    overrides = [word for word in options.overrides if not word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    needed = [word for word in options.overrides if word not in overrides]
    for name in ("config_path", "config_name", "config_dir"):
        if getattr(options, name) is not None:
            needed += [f"--{name.replace('_', '-')}", getattr(options, name)]
    SWEEP_COMMAND = SweepCommand(sys.argv[1:], needed, overrides) if options.multirun else SweepCommand([], [], [])
    if not _searches(options):
        for key in ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir", "hydra.job.chdir"):
            given = [word for word in needed if word.lstrip("+~").startswith(f"{key}=")]
            if options.multirun and given:
                _leave(
                    2,
                    f"refused: {given[0]}: a sweep's folder is <paths.outputs>/sweeps/<its name>; "
                    "paths.outputs=DIR moves it",
                )
        sys.argv = [word for word in sys.argv if word not in SWEEP_COMMAND.overrides]


def _search(options: Namespace) -> None:
    """Run a sweep by another sweeper than ours, and leave with its exit code.

    Its folder is named by its arguments, so that the same command goes on in it.
    """
    from imdb_rlhf.artifacts.files import hash_of
    from imdb_rlhf.sweep import search

    if not any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in options.overrides):
        name = f"{_sweeper(options)}-{hash_of(sorted(options.overrides))[:8]}"
        sys.argv.append(f"hydra.sweep.dir='${{paths.outputs}}/sweeps/{name}'")
    sys.argv.append(f"+hydra.callbacks.{SweepFolder.__name__}._target_={__name__}.{SweepFolder.__name__}")
    problem: RunError | None = None
    try:
        _main()
    except RunError as error:  # of a job, whose value the sweeper asked for
        problem = error
    code = search.finish(SweepFolder.found) if SweepFolder.found is not None else 0
    if problem is not None and code == 0:
        raise problem
    if code:
        sys.exit(code)


class SweepFolder(Callback):
    """Learns from Hydra where the sweep of another sweeper than ours keeps its files."""

    found: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the folder, and put the home folder in for `~`."""
        SweepFolder.found = Path(str(config.hydra.sweep.dir)).expanduser()
        with flag_override(config, ["struct", "readonly"], False):
            config.hydra.sweep.dir = str(SweepFolder.found)


def _refuse_option(message: str) -> NoReturn:
    _leave(2, f"refused: {message}; put options before or after all of the key=value, --help shows some")


def _leave(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
