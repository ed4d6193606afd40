"""Copies of a run in TensorBoard, MLflow and Trackio, through accelerate's trackers.

As with W&B, none may fail, slow or alter the run. Secrets are taken out of the configuration.
"""

import io
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.tracking.mirror import Mirror
from imdb_rlhf.tracking.redact import redacted

PROJECT = "imdb_rlhf"  # of MLflow's experiment and Trackio's project
# Seconds and attempts for a server of MLflow's that does not answer; its own are minutes.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class OtherTracker(Mirror):
    """A `Tracker` that writes to one of accelerate's.

    The file `<name>_run` in the run's folder says that the run is there already.

    Attributes:
        name: of its package.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        folder: Path,
        outputs: Path,
        config: Mapping[str, Any],
        group: str,
        run_name: str,
        start: int,
        console_warn: Callable[[str], None],
    ) -> None:
        """Start the tracker's run, or continue it.

        Args:
            folder: the run's.
            outputs: the folder that all runs share.
            config: the resolved configuration, as plain containers.
            group: shared by the runs of a sweep.
            run_name: its name in charts.
            start: the step that the run resumes at; 0 for a fresh one.
            console_warn: is called once, with one line, if copying failed and has stopped.
        """
        super().__init__(console_warn, "metrics.jsonl has every row")
        self.folder, self.outputs, self.group, self.run_name, self.start = folder, outputs, group, run_name, start
        marker = folder / f"{self.name}_run"
        self.known: str | None = None
        with suppress(OSError):
            self.known = marker.read_text(encoding="utf-8").strip() or None
        self.lacks_the_past = self.known is None
        """Whether the tracker has not seen the rows of a run that goes on."""
        with self.attempt("start"):
            from accelerate.state import PartialState

            PartialState()  # its trackers ask for it; the run's own, where there is one
            known = self.open()
            if self.known is None:
                self.tracker.store_init_configuration(flat(redacted(config)))
            atomic_write(marker, known + "\n")
            self.on = True

    def open(self) -> str:
        """Set and start `tracker`, one of accelerate's; returns what finds the run again."""
        raise NotImplementedError

    @classmethod
    def shown(cls, folder: Path) -> str:
        """The command that shows the runs."""
        raise NotImplementedError

    tracker: Any

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        if self.on:
            with self.attempt("log"):
                self.tracker.log(numbers(row), step=int(row["step"]))

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Do nothing: few trackers have histograms."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        if self.on:
            with self.attempt("log a table"):
                self.write_table(key, list(columns), redacted([list(row) for row in rows]))

    def write_table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Write a table in the tracker's own form."""
        raise NotImplementedError

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Log the numbers of the summary as `summary/...`, and close."""
        if self.on and summary:
            with self.attempt("write the summary"):
                values = {f"summary/{key}": value for key, value in numbers(flat(summary)).items()}
                self.tracker.log(values, step=int(summary.get("step") or 0))
        if self.on:
            with self.attempt("finish"):
                self.close(exit_code)
        self.on = False

    def close(self, exit_code: int) -> None:
        """End the tracker's run."""
        self.tracker.finish()


class TensorBoard(OtherTracker):
    """Event files in the run's folder."""

    title, name = "TensorBoard", "tensorboard"

    def open(self) -> str:
        """A writer in `tensorboard/`; of a run that goes on, the rows after its checkpoint are taken back."""
        from accelerate.tracking import TensorBoardTracker

        again = {"purge_step": self.start + 1} if self.known else {}
        self.tracker = TensorBoardTracker("tensorboard", self.folder, **again)
        self.tracker.start()
        return "tensorboard"

    @classmethod
    def shown(cls, folder: Path) -> str:
        """The command that shows all runs of the folder's folder."""
        return f"tensorboard --logdir {shlex.quote(str(folder.parent))}"

    def histogram(self, key: str, values: Sequence[float], step: int) -> None:
        """Log a histogram."""
        if self.on:
            with self.attempt("log a histogram"):
                import numpy as np

                self.tracker.writer.add_histogram(key, np.asarray(values), step)

    def write_table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Write a table as Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        cells = ([" ".join(str(cell).replace("|", "\\|").split()) for cell in line] for line in lines)
        self.tracker.writer.add_text(key, "\n".join(f"| {' | '.join(line)} |" for line in cells))


class MLflow(OtherTracker):
    """A run of the experiment `imdb_rlhf`, or of MLFLOW_EXPERIMENT_NAME."""

    title, name = "MLflow", "mlflow"

    def open(self) -> str:
        """A run in MLFLOW_TRACKING_URI; without that, in `mlflow.db` beside the runs."""
        from accelerate.tracking import MLflowTracker

        for key, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(key, value)
        import mlflow

        self.outputs.mkdir(parents=True, exist_ok=True)
        files = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{self.outputs.resolve() / 'mlflow.db'}")
            files = (self.outputs.resolve() / "mlartifacts").as_uri()
        tags = {"group": self.group}
        self.tracker = MLflowTracker(PROJECT, files, run_id=self.known, run_name=self.run_name)
        with FileLock(self.outputs / "mlflow.lock", timeout=60):  # two jobs may not make the database at once
            self.tracker.start()
        mlflow.set_tags(tags)
        return str(self.tracker.tracker.info.run_id)

    @classmethod
    def shown(cls, folder: Path) -> str:
        """The command that shows the runs, or the server that does."""
        server = os.environ.get("MLFLOW_TRACKING_URI")
        uri = server or f"sqlite:///{folder.parent.parent.resolve() / 'mlflow.db'}"
        return server if server and server.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def write_table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Write a table as a file of MLflow's."""
        import mlflow

        mlflow.log_dict({"columns": columns, "data": rows}, f"{key}.json")

    def close(self, exit_code: int) -> None:
        """End the run as finished, stopped or failed."""
        import mlflow

        mlflow.end_run("FINISHED" if exit_code == 0 else "KILLED" if exit_code == 75 else "FAILED")


class Trackio(OtherTracker):
    """A run of the project `imdb_rlhf`."""

    title, name = "Trackio", "trackio"

    def open(self) -> str:
        """A run in TRACKIO_SPACE_ID, or on this machine."""
        from accelerate.tracking import TrackioTracker

        with redirect_stdout(io.StringIO()):
            self.tracker = TrackioTracker(PROJECT, name=self.run_name, group=self.group, resume="allow", embed=False)
            self.tracker.start()
        return self.run_name

    @classmethod
    def shown(cls, folder: Path) -> str:
        """The Space, or the command that shows the runs."""
        space = os.environ.get("TRACKIO_SPACE_ID")
        return f"https://huggingface.co/spaces/{space}" if space else f"trackio show --project {PROJECT}"

    def write_table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Write a table as Trackio's."""
        import pandas as pd
        import trackio

        self.tracker.run.log({key: trackio.Table(dataframe=pd.DataFrame(rows, columns=columns))})

    def close(self, exit_code: int) -> None:
        """End the run without a word on the console, when the process ends either."""
        with redirect_stdout(io.StringIO()):
            self.tracker.finish()
        from trackio import context_vars

        context_vars.current_run.set(None)


OTHERS: dict[str, type[OtherTracker]] = {kind.name: kind for kind in (TensorBoard, MLflow, Trackio)}


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a flat row, without its step."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"
    }


def flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; what is no text, number or truth value becomes JSON."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{at}{key}.")
        else:
            result[f"{at}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return result
