"""A copy of the run in Weights & Biases, which may never fail, slow or alter the run.

A failure in W&B costs one warning and the rest of the copy; `metrics.jsonl` has every row, and `replay` can send them
later.
"""

import math
import os
import random
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

Mode = Literal["auto", "online", "offline"]


class WandbTracker:
    """A `Tracker` that writes to one W&B run, with W&B's files in the run's own folder.

    Every chart's axis is the rows' own `step`: W&B's counter would start at 0 again after a resume. `eval/reward` and
    similar metrics are drawn over `eval/kl`, the plane in which runs are compared.
    """

    def __init__(
        self,
        *,
        folder: Path,
        config: Mapping[str, Any],
        project: str,
        entity: str | None,
        group: str | None,
        name: str,
        job_type: str,
        run_id: str,
        mode: Mode,
        tags: Sequence[str],
        console_warn: Callable[[str], None],
        truth: str = "metrics.jsonl has every row",
    ) -> None:
        """Start (or, online, continue) the W&B run `run_id`.

        Args:
            folder: the run's folder; W&B creates `wandb/` in it.
            config: the resolved configuration, as plain containers.
            project: the W&B project.
            entity: the project's owner; None is the account's default.
            group: shared by the runs of a sweep.
            name: the run's name in charts.
            job_type: the stage or kind of run.
            run_id: from `run_id`; unique in the project.
            mode: `auto` follows WANDB_MODE; without it, auto is online if an API key is configured, else offline.
            tags: labels to filter by.
            console_warn: is called once, with one line, if W&B failed and logging to it has stopped.
            truth: ends that line by saying where the numbers are.
        """
        self.url: str | None = None
        """The run's page, if it is online."""
        self._folder = folder
        self._warn = console_warn
        self._truth = truth
        self._run: Any = None
        self._on = False
        with self._may_fail("start"):
            import wandb

            chosen = _mode() if mode == "auto" else mode
            self._run = wandb.init(
                dir=str(folder),
                config=dict(config),
                project=project,
                entity=entity,
                group=group,
                name=name,
                job_type=job_type,
                id=run_id,
                mode=chosen,
                tags=list(tags),
                resume="allow" if chosen == "online" else None,
                reinit="create_new",
                settings=_settings(),
            )
            self._on = True
            self.url = self._run.url if chosen == "online" else None
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
            # No summary="last": W&B does that anyway, and asking for it renames the summary's key.
            self._run.define_metric("eval/kl", step_metric="step")
            for key in ("eval/reward", "eval/reward_logit", "eval/win_rate", "eval/distinct_2"):
                self._run.define_metric(key, step_metric="eval/kl")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row in one call, so that a metric and the metric it is drawn over stay paired."""
        if self._on:
            with self._may_fail("log"):
                self._run.log(dict(row))

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the rows of an earlier run, such as a finished run's `metrics.jsonl`."""
        for row in rows:
            self.log(row)

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Log a histogram of the finite values, if there are any."""
        finite = [value for value in map(float, values) if math.isfinite(value)]
        if self._on and finite:
            with self._may_fail("log a histogram"):
                import wandb

                self._run.log({"step": step, key: wandb.Histogram(finite)})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        if self._on:
            with self._may_fail("log a table"), _staging_in(self._folder):
                import wandb

                self._run.log({key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def scatter(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], x: str, y: str, title: str
    ) -> None:
        """Log a chart of one column over another, and the rows as a separate table beside it."""
        if self._on:
            with self._may_fail("log a chart"), _staging_in(self._folder):
                import wandb

                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                self._run.log({key: wandb.plot.scatter(table, x, y, title=title)})

    def picture(self, key: str, path: Path) -> None:
        """Log an image file, copied into the run's own folder."""
        if self._on:
            with self._may_fail("log a picture"), _staging_in(self._folder):
                import wandb

                self._run.log({key: wandb.Image(str(path))})

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Write the summary and end the run; W&B shows it as failed if `exit_code` is not 0."""
        if self._run is None:
            return
        if self._on:
            with self._may_fail("write the summary"):
                self._run.summary.update(dict(summary))
        with self._may_fail("finish"):  # after a failure too: W&B's file should record the exit code
            self._run.finish(exit_code=exit_code)
        self._run, self._on = None, False

    @contextmanager
    def _may_fail(self, action: str) -> Iterator[None]:
        starting = self._run is None
        state = random.getstate()  # W&B's retries draw from it
        try:
            yield
        except Exception as error:
            if self._on or starting:
                first_line = (str(error).strip().splitlines() or [""])[0]
                self._warn(
                    f"W&B could not {action} ({type(error).__name__}: {first_line}); "
                    f"the run goes on without it, {self._truth}"
                )
            self._on = False
        finally:
            random.setstate(state)


def run_id(folder: Path, config_hash: str) -> str:
    """Return the W&B id of the run in `folder`, created at the first call and kept in the file `wandb_id`.

    Everyone who runs the same configuration in one project would share a bare hash, so the id ends in a nonce.
    """
    path = folder / "wandb_id"
    if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    new = f"{config_hash}-{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new + "\n", encoding="utf-8")
    return new


def sync_command(folder: Path) -> str | None:
    """Return the command that uploads the offline W&B files of a run's folder, or None if there are none."""
    if not any((folder / "wandb").glob("offline-run-*")):
        return None
    return f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"


def _mode() -> Any:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    return "online" if wbauth.read_netrc_auth(host=wandb_setup.singleton().settings.base_url) else "offline"


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        x_disable_meta=True,  # do not store the command line, which may hold a token
        x_disable_machine_info=True,  # nor the hardware and its use
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        symlink=False,
        console="off",
        silent=True,
        x_transaction_log_flush_interval=1.0,  # a killed process loses 1 second of rows instead of 15
        init_timeout=20,
        finish_timeout=60,
    )


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Make W&B stage its copy of a table in the run's folder instead of the home folder."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
