"""A copy of the run in Weights & Biases, which may never fail, slow or alter the run.

A failure in W&B costs one warning and the rest of the copy; `metrics.jsonl` has every row, and `replay` can send them
later. Secrets are taken out of everything that W&B is told.
"""

import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from imdb_rlhf.config.machine import WandbLogger, WandbMode
from imdb_rlhf.tracking import wandb_service
from imdb_rlhf.tracking.mirror import Mirror
from imdb_rlhf.tracking.redact import redact, redacted, redacted_arguments
from imdb_rlhf.tracking.wandb_files import keep_url, offline_parts

PROJECT = "imdb_rlhf"  # where neither the configuration nor the environment names one
SOURCE = (".py", ".yaml", ".js", ".css", ".html")  # of a code artifact


class WandbTracker(Mirror):
    """A `Tracker` that writes to one W&B run, with W&B's files in the run's own folder.

    Every chart's axis is the rows' own `step`: W&B's counter would start at 0 again after a resume. `eval/reward` and
    similar metrics are drawn over `eval/kl`, the plane in which runs are compared.
    """

    title = "W&B"

    def __init__(
        self,
        *,
        folder: Path,
        logger: WandbLogger,
        config: Mapping[str, Any],
        group: str,
        name: str,
        job_type: str,
        run_id: str,
        console_warn: Callable[[str], None],
        truth: str = "metrics.jsonl has every row",
    ) -> None:
        """Start (or, online, continue) the W&B run `run_id`.

        Args:
            folder: the run's folder; W&B creates `wandb/` in it.
            logger: project, entity, mode, tags, and what else W&B is told.
            config: the resolved configuration, as plain containers.
            group: shared by the runs of a sweep, where neither the logger nor WANDB_RUN_GROUP names one.
            name: the run's name in charts; a name of the logger's or WANDB_NAME may have it in the place of `{run}`.
            job_type: the stage or kind of run.
            run_id: from `wandb_files.run_id`; unique in the project.
            console_warn: is called once, with one line, if W&B failed and logging to it has stopped.
            truth: ends that line by saying where the numbers are.
        """
        self.url: str | None = None
        """The run's page, if it is online."""
        self.lacks_the_past = False
        """Whether W&B needs the rows of a run that goes on again: offline, or where they are in an offline part."""
        super().__init__(console_warn, truth)
        self._logger = logger
        self._run: Any = None
        self._ended = False
        self._earlier = offline_parts(folder, run_id)
        with self.attempt("start"):
            import wandb

            mode: Any = _mode() if logger.mode == WandbMode.auto else str(logger.mode)
            with redacted_arguments(sys.argv):
                self._run = wandb.init(
                    dir=str(folder),
                    config=redacted(dict(config)),
                    id=run_id,
                    job_type=job_type,
                    mode=mode,
                    resume="allow" if mode == "online" else None,
                    reinit="create_new",
                    settings=wandb_service.settings(system=logger.system, git=logger.git),
                    **redacted(described(logger, group, name)),
                )
            wandb_service.tidy_at_exit()
            self.on = True
            self.lacks_the_past = mode != "online" or bool(self._earlier)
            if mode == "online":
                self.url = self._run.url
                keep_url(folder, self.url)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
            # No summary="last": W&B does that anyway, and asking for it renames the summary's key.
            self._run.define_metric("eval/kl", step_metric="step")
            for key in ("eval/reward", "eval/reward_logit", "eval/win_rate", "eval/distinct_2"):
                self._run.define_metric(key, step_metric="eval/kl")
            if logger.code:
                self._code()
        if self._run is None and "wandb" in sys.modules:
            with self.attempt("end its process"):
                wandb_service.close(None, 1)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row in one call, so that a metric and the metric it is drawn over stay paired."""
        if self.on:
            with self.attempt("log"):
                self._run.log(dict(row))

    def line(self, text: str) -> None:
        """Add a line to the run's log, if W&B is to have the console's lines."""
        if self.on and self._logger.console:
            with self.attempt("log a line"):
                self._run.write_logs(redact(text))

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Log a histogram of the finite values, if there are any."""
        finite = [value for value in map(float, values) if math.isfinite(value)]
        if self.on and finite:
            with self.attempt("log a histogram"):
                import wandb

                self._run.log({"step": step, key: wandb.Histogram(finite)})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        if self.on:
            with self.attempt("log a table"), self._staging():
                import wandb

                self._run.log({key: wandb.Table(columns=list(columns), data=redacted([list(row) for row in rows]))})

    def figure(self, key: str, figure: Mapping[str, Any]) -> None:
        """Log a figure of plotly, its `data` and `layout`, which W&B shows as it is."""
        if self.on:
            with self.attempt("log a figure"), self._staging():
                import wandb
                from plotly.graph_objects import Figure

                self._run.log({key: wandb.Plotly(Figure(figure))})

    def page(self, key: str, html: str) -> None:
        """Log a page that needs no other file."""
        if self.on:
            with self.attempt("log a page"), self._staging():
                import wandb

                self._run.log({key: wandb.Html(redact(html), inject=False)})

    def picture(self, key: str, path: Path) -> None:
        """Log an image file, copied into the run's own folder."""
        if self.on:
            with self.attempt("log a picture"), self._staging():
                import wandb

                self._run.log({key: wandb.Image(str(path))})

    def artifact(self, name: str, kind: str, path: Path, about: Mapping[str, Any], *, used: bool = False) -> None:
        """Log a folder as an artifact if W&B is to have them; its files are read where they are.

        Args:
            name: of the artifact; the same content under the same name is the same version.
            kind: its type, such as `model`.
            path: of the folder, which must still be there when an offline run is synced.
            about: what is known about it.
            used: it is one that the run was made from, rather than one that it made.
        """
        if self.on and self._logger.artifacts:
            with self.attempt("log an artifact"), self._staging():
                import wandb

                artifact = wandb.Artifact(name, type=kind, metadata=redacted(dict(about)))
                with redirect_stderr(io.StringIO()):  # it says what it adds
                    artifact.add_dir(str(path), policy="immutable")
                # not `use_artifact`, which works online only and waits for the upload
                self._run._log_artifact(artifact, is_user_created=True, use_after_commit=used)

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Write the summary and end the run; W&B shows it as failed if `exit_code` is not 0.

        Offline parts of the same run are removed once this one, which has their rows too, is whole on the disk.
        """
        if self._run is None:
            return
        if self.on:
            with self.attempt("write the summary"):
                self._run.summary.update(redacted(dict(summary)))
        with self.attempt("finish"):  # after a failure too: W&B's file should record the exit code
            self._run.finish(exit_code=exit_code)
        whole = self.on and self.lacks_the_past
        with self.attempt("end its process"):
            wandb_service.close(self._run, exit_code)
        self._run, self.on = None, False
        for part in self._earlier if whole else []:
            shutil.rmtree(part, ignore_errors=True)

    def _code(self) -> None:
        """Log the package's source and conf/."""
        package = wandb_service.PACKAGE
        root = package.parent if (package.parent / "conf").is_dir() else package
        ours = [str(package), str(root / "conf")]
        with self._staging():
            self._run.log_code(
                str(root), include_fn=lambda path: path.endswith(SOURCE) and any(map(path.startswith, ours))
            )

    @contextmanager
    def attempt(self, action: str) -> Iterator[None]:
        """Do something that may fail; W&B's process is ended where it keeps the run waiting."""
        with super().attempt(action), wandb_service.patience(self._note_end):
            yield

    def reason(self, error: Exception) -> str:
        """An error in one line."""
        if self._ended:
            return f"its process did not answer for {wandb_service.PATIENCE:g} s and was ended"
        return super().reason(error)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Make W&B stage its copies of tables and artifacts with the run's own files instead of the home folder."""
        if os.environ.get("WANDB_DATA_DIR"):
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str(Path(self._run.dir).resolve().parent)
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]

    def _note_end(self) -> None:
        self._ended = True


def described(logger: WandbLogger, group: str, name: str) -> dict[str, Any]:
    """What a W&B run is called and where it belongs: what the logger says, else the environment, else our own.

    Args:
        logger: null where the environment may speak.
        group: where neither names one.
        name: of the run, for `{run}` and where neither names it.
    """
    environment = os.environ.get
    tags = logger.tags
    if tags is None:
        tags = [tag for tag in (word.strip() for word in environment("WANDB_TAGS", "").split(",")) if tag]
    return {
        "project": logger.project or environment("WANDB_PROJECT") or PROJECT,
        "entity": logger.entity or environment("WANDB_ENTITY") or None,
        "group": logger.group or environment("WANDB_RUN_GROUP") or group,
        "name": (logger.run_name or environment("WANDB_NAME") or "{run}").replace("{run}", name),
        "notes": logger.notes if logger.notes is not None else environment("WANDB_NOTES") or None,
        "tags": list(tags),
    }


def _mode() -> str:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    return "online" if wbauth.read_netrc_auth(host=wandb_setup.singleton().settings.base_url) else "offline"
