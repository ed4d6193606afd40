"""What a run or a sweep pushes, checked before its work starts and pushed when it is done."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from imdb_rlhf.config.families import GroupsRun
from imdb_rlhf.config.hub import HubConfig, Part
from imdb_rlhf.config.run import KeepModel, Run
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.publish import repository
from imdb_rlhf.publish.repository import Repository, Upload
from imdb_rlhf.tracking.console import STAGE_WIDTH, Console

Say = Callable[[str], None]


def prepare(run: Run, console: Console) -> "Results | None":
    """The push of a single run, checked; None where it pushes nothing, or this process is not the one that writes.

    Raises:
        ConfigError: it cannot succeed.
    """
    if run.hub.push is None or int(os.environ.get("RANK", "0")):
        return None
    results = Results(run.hub, {"": run})
    if run.plan:
        names = ", ".join(map(str, results.repositories))
        console.note(f"{'hub':<{STAGE_WIDTH}} would be pushed: {names}")
        return None
    return _checked(results, console.note)


def prepare_sweep(runs: Mapping[str, Run], say: Say) -> "Results | None":
    """The push of a sweep, checked; None where it pushes nothing.

    Args:
        runs: name of each run's folder -> its configuration; they share `hub`.
        say: shows a line.

    Raises:
        ConfigError: it cannot succeed.
    """
    first = next(iter(runs.values()))
    return None if first.hub.push is None else _checked(Results(first.hub, runs), say)


def _checked(results: "Results", say: Say) -> "Results":
    problem = repository.check(results.hub, results.repositories)
    if problem is not None:
        say(f"{'hub':<{STAGE_WIDTH}} out of reach now, tried again when there is something to push: {problem}")
    return results


@dataclass(frozen=True)
class Results:
    """The repositories of a run or of a sweep.

    A run's model, preferences and report go to NAME, NAME-preferences (a dataset) and NAME (a Space). A sweep has a
    model repository per run, NAME-<run>: on the Hub a model is a repository, with a card, a search entry and downloads
    of its own.

    Attributes:
        hub: where and what.
        runs: name of each run -> its configuration; "" is a single run's.
    """

    hub: HubConfig
    runs: Mapping[str, Run]

    @cached_property
    def models(self) -> dict[str, Repository]:
        """Name of a run -> the repository of its model."""
        leaving = {
            name: run
            for name, run in self.runs.items()
            if Part.model in self.hub.what and run.leaves_model and run.keep_model != KeepModel.none
        }
        return {name: Repository("model", f"{self.hub.push}-{name}".removesuffix("-")) for name in leaving}

    @cached_property
    def preferences(self) -> Repository | None:
        """The dataset, where any run samples groups."""
        samples = any(
            isinstance(run, GroupsRun) and run.uses_groups and run.data.preferences is None
            for run in self.runs.values()
        )
        wanted = samples and Part.preferences in self.hub.what
        return Repository("dataset", f"{self.hub.push}-preferences") if wanted else None

    @cached_property
    def report(self) -> Repository | None:
        """The Space, where any run ends in a policy."""
        drawable = any(run.has_policy for run in self.runs.values())
        return Repository("space", str(self.hub.push)) if drawable and Part.report in self.hub.what else None

    @property
    def repositories(self) -> list[Repository]:
        """All of them, in the order in which they are pushed.

        Raises:
            ConfigError: there are none.
        """
        found = [*([self.preferences] if self.preferences else []), *self.models.values()]
        found += [self.report] if self.report else []
        if not found:
            raise ConfigError(
                f"hub.what=[{','.join(self.hub.what)}]: algo={next(iter(self.runs.values())).algo} leaves nothing of "
                f"that; give some of {', '.join(Part)}, or leave hub.push out"
            )
        return found

    def push(self, paths: Mapping[str, Path], frontiers: Mapping[str, Path], say: Say) -> None:
        """Push everything.

        Args:
            paths: name of each run -> its finished folder.
            frontiers: name of each world -> the folder that its frontier was drawn into, "" for the only one; none
                draws the runs for the Space alone.
            say: shows a line per repository.

        Raises:
            RunError: in one line; what is finished stays so, and what was pushed is not pushed again.
        """
        total, done = len(self.repositories), 0
        try:
            with TemporaryDirectory() as scratch:
                for upload in self._uploads(paths, frontiers, Path(scratch)):
                    place = repository.push(self.hub, upload)
                    say(f"{'hub':<{STAGE_WIDTH}} pushed {upload.repository.kind} {place}")
                    done += 1
        except RunError as error:
            pushed = f" ({done} of {total} repositories were)" if done else ""
            raise RunError(f"{error}{pushed}; the work is finished and kept: the same command pushes it") from error

    def _uploads(self, paths: Mapping[str, Path], frontiers: Mapping[str, Path], scratch: Path) -> Iterator[Upload]:
        """The uploads, each made when the one before it is pushed."""
        from imdb_rlhf.frontier.draw import draw
        from imdb_rlhf.models.card import Published
        from imdb_rlhf.publish import model, space

        exports = model.exports_of({path: self.runs[name] for name, path in paths.items()}) if self.preferences else []
        dataset = None if self.preferences is None or not exports else self.preferences
        if dataset is not None:
            yield model.preferences(exports, dataset, self.hub)
        for name, place in self.models.items():
            run = self.runs[name]
            own = dataset is not None and isinstance(run, GroupsRun) and run.uses_groups
            licence, stated_by = model.licence_of(run, self.hub.license)
            published = Published(
                place.name,
                preferences=dataset.name if dataset is not None and own and run.data.preferences is None else None,
                report=self.report.name if self.report is not None and run.has_policy else None,
                licence=licence,
                licence_from=stated_by,
                revision=self.hub.revision,
            )
            yield model.model(paths[name], run, place, published)
        if self.report is None:
            return
        if not frontiers:
            draw(list(paths.values()), scratch)
            frontiers = {"": scratch}
        yield space.space(
            frontiers,
            self.report,
            models=[each.name for each in self.models.values()],
            datasets=[] if dataset is None else [dataset.name],
            licence=self.hub.license,
        )
