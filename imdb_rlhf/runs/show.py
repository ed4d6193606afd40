"""What the console shows of a run."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd

from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.runs import files
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.kind import RunKind
from imdb_rlhf.runs.trackers import new_trackers
from imdb_rlhf.stages.evaluations import ReferenceEvaluation
from imdb_rlhf.tracking import wandb_files
from imdb_rlhf.tracking.console import STAGE_WIDTH
from imdb_rlhf.tracking.others import OTHERS


def show_again(kind: RunKind) -> None:
    """Show a finished run's results; a logger that has not seen the run is given its metrics."""
    folder = kind.folder
    if not folder.leader:
        return
    result = json.loads((folder.path / files.SUMMARY).read_text())
    table = pd.read_parquet(folder.path / kind.table_file)
    folder.console.note(f"{folder.run.algo:<{STAGE_WIDTH}} finished already, not run again: {folder.path}")
    trackers = new_trackers(folder)
    if trackers:
        kind.log_tables(trackers, table, result)
    show(kind, result, table)


def show(kind: RunKind, result: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Show a run's table and results, and where its files are."""
    folder = kind.folder
    kind.show_table(table, result)
    places = {"folder": str(folder.path)}
    if (folder.path / files.REPORT).exists():
        places["report"] = str(folder.path / files.REPORT)
    places["metrics"] = str(folder.path / files.METRICS)
    if (folder.path / "model").exists():
        places["model"] = str(folder.path / "model")
    wandb_place = wandb_files.place(folder.path)
    if wandb_place is not None:
        places["W&B"] = wandb_place
    for name in folder.run.logger.others:
        places[OTHERS[name].title] = OTHERS[name].shown(folder.path)
    if kind.draws_itself:
        places["frontier"] = _frontier_command(folder)
    folder.console.result(result, places)


def _frontier_command(folder: RunFolder) -> str:
    """The command that draws this run beside the others of its folder that share its prompts and reference."""
    own = folder.pipeline.key(ReferenceEvaluation)
    runs = [file.parent for file in sorted(folder.path.parent.glob(f"*/{files.ARTIFACTS}"))]
    runs = [run for run in runs if (run / MANIFEST).is_file()]  # the others are not finished
    alike = [run for run in runs if json.loads((run / files.ARTIFACTS).read_text()).get("reference") == own]
    places = [folder.path.parent] if alike == runs else alike
    return f"python -m imdb_rlhf.frontier {shlex.join(map(str, places))}"
