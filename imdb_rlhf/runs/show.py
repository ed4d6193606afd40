"""What the console and W&B show of a run."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import pandas as pd

from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.runs import files
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.kind import RunKind
from imdb_rlhf.stages.evaluations import ReferenceEvaluation
from imdb_rlhf.tracking import Trackers, jsonl
from imdb_rlhf.tracking.console import STAGE_WIDTH
from imdb_rlhf.tracking.jsonl import JsonlLog
from imdb_rlhf.tracking.wandb import WandbTracker, run_id, sync_command


def trackers_of(folder: RunFolder, start: int) -> Trackers:
    """The trackers of a run that is about to work: `metrics.jsonl`, and W&B if it is configured; none but on rank 0.

    Args:
        folder: of the run.
        start: the step that it resumes at; 0 for a fresh run.
    """
    if not folder.leader:
        return Trackers()
    trackers = Trackers([JsonlLog(folder.path / files.METRICS, start or None)])
    wandb_run = _wandb_run(folder)
    if wandb_run is not None:
        trackers.append(wandb_run)
    return trackers


def _wandb_run(folder: RunFolder) -> WandbTracker | None:
    run, logger = folder.run, folder.run.logger
    if not isinstance(logger, WandbLogger):
        return None
    return WandbTracker(
        folder=folder.path,
        config=_plain(asdict(run)),
        project=logger.project,
        entity=logger.entity,
        group=logger.group or f"{run.data.name}-{run.reward.name}",
        name=folder.name,
        job_type=run.algo,
        run_id=run_id(folder.path, folder.config_hash),
        mode=cast(Any, str(logger.mode)),
        tags=list(logger.tags),
        console_warn=folder.console.warn,
    )


def show_again(kind: RunKind) -> None:
    """Show a finished run's results; a logger that has not seen the run is given its metrics."""
    folder = kind.folder
    if not folder.leader:
        return
    result = json.loads((folder.path / files.SUMMARY).read_text())
    table = pd.read_parquet(folder.path / kind.table_file)
    folder.console.note(f"{folder.run.algo:<{STAGE_WIDTH}} finished already, not run again: {folder.path}")
    if isinstance(folder.run.logger, WandbLogger) and not (folder.path / "wandb").exists():
        wandb_run = _wandb_run(folder)
        if wandb_run is not None:
            wandb_run.replay(jsonl.read(folder.path / files.METRICS))
            kind.log_tables(Trackers([wandb_run]), table, result)
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
    if (folder.path / "wandb").exists():
        places["W&B"] = sync_command(folder.path) or "online"
    if kind.draws_itself:
        places["frontier"] = _frontier_command(folder)
    folder.console.result(result, places)


def _frontier_command(folder: RunFolder) -> str:
    """The command that draws this run beside the others of its folder that share its prompts and reference."""
    own = folder.pipeline.key(ReferenceEvaluation)
    runs = [file.parent for file in sorted(folder.path.parent.glob(f"*/{files.ARTIFACTS}"))]
    alike = [run for run in runs if json.loads((run / files.ARTIFACTS).read_text()).get("reference") == own]
    places = [folder.path.parent] if alike == runs else alike
    return f"python -m imdb_rlhf.frontier {shlex.join(map(str, places))}"


def _plain(value: Any) -> Any:
    """Enums as their values, for W&B."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if hasattr(value, "value") else value
