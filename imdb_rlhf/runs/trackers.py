"""The trackers of a run and of the stages that it makes: `metrics.jsonl`, W&B, TensorBoard, MLflow and Trackio."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.runs import files, points
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.tracking import Tracker, Trackers, jsonl, wandb_files
from imdb_rlhf.tracking.console import STAGE_WIDTH
from imdb_rlhf.tracking.jsonl import JsonlLog
from imdb_rlhf.tracking.others import OTHERS, OtherTracker
from imdb_rlhf.tracking.wandb import WandbTracker

NONCE = "wandb_nonce"  # in the outputs folder; ends the ids of stages' W&B runs


def trackers_of(folder: RunFolder, start: int) -> Trackers:
    """The trackers of a run that is about to work: `metrics.jsonl`, and those that are configured; none but on rank 0.

    A tracker that has not seen the rows before `start` is given them.

    Args:
        folder: of the run.
        start: the step that it resumes at; 0 for a fresh run.
    """
    if not folder.leader:
        return Trackers()
    trackers = Trackers([JsonlLog(folder.path / files.METRICS, start or None)])
    past = jsonl.read(folder.path / files.METRICS)
    mirrors: list[WandbTracker | OtherTracker] = [*_wandb(folder), *_others(folder, start)]
    for mirror in mirrors:
        if mirror.lacks_the_past:
            mirror.replay(past)
            for step, frame in points.read(folder.path).items():
                if step <= start:
                    test = frame[frame["split"] == "test"]
                    mirror.histogram("eval/reward_histogram", test["reward"].tolist(), step)
        trackers.append(mirror)
    return trackers


def new_trackers(folder: RunFolder) -> Trackers:
    """Those configured trackers that have not seen a finished run, given its metrics."""
    mirrors: list[WandbTracker | OtherTracker] = []
    if wandb_files.in_agent() or not (folder.path / wandb_files.FOLDER).exists():
        mirrors += _wandb(folder)
    mirrors += _others(folder, 0, [name for name in folder.run.logger.others if not _seen(folder, name)])
    for mirror in mirrors:
        mirror.replay(jsonl.read(folder.path / files.METRICS))
    return Trackers(mirrors)


def _seen(folder: RunFolder, name: str) -> bool:
    return (folder.path / f"{name}_run").exists()


def _wandb(folder: RunFolder) -> list[WandbTracker]:
    run, logger = folder.run, folder.run.logger
    if not isinstance(logger, WandbLogger):
        return []
    tracker = WandbTracker(
        folder=folder.path,
        logger=logger,
        config=_plain(asdict(run)),
        group=_group(folder),
        name=folder.name,
        job_type=run.algo,
        run_id=wandb_files.run_id(folder.path, folder.config_hash),
        console_warn=folder.console.warn,
    )
    folder.console.copy_to(tracker.line)
    if tracker.url:
        folder.console.note(f"{'W&B':<{STAGE_WIDTH}} online: {tracker.url}")
    return [tracker]


def _others(folder: RunFolder, start: int, names: Iterable[str] | None = None) -> list[OtherTracker]:
    return [
        OTHERS[name](
            folder=folder.path,
            outputs=Path(folder.run.paths.outputs),
            config=_plain(asdict(folder.run)),
            group=_group(folder),
            run_name=folder.name,
            start=start,
            console_warn=folder.console.warn,
        )
        for name in (folder.run.logger.others if names is None else names)
    ]


def _group(folder: RunFolder) -> str:
    """The group of runs that are of no sweep."""
    logger = folder.run.logger
    given = logger.group if isinstance(logger, WandbLogger) else None
    return given or f"{folder.run.data.name}-{folder.run.reward.name}"


def stage_tracker(folder: RunFolder, stage: str, key: str, past: Path, start: int) -> Tracker | None:
    """The W&B run of a stage that this run trains, in the run's own folder; None without W&B.

    An agent of a W&B sweep knows of one run only, so its runs have none for stages.

    Args:
        folder: of the run that makes it.
        stage: its name.
        key: of its artifact: the run's id is made of it, so a stage that another run goes on with stays one run.
        past: the stage's `metrics.jsonl`.
        start: the step that it resumes at; 0 for a fresh one.
    """
    logger = folder.run.logger
    if not isinstance(logger, WandbLogger) or not folder.leader or wandb_files.in_agent():
        return None
    tracker = WandbTracker(
        folder=folder.path,
        # the run's own W&B run has its code, and its name
        logger=replace(logger, code=False, run_name=logger.run_name_of_several),
        config=_plain(asdict(folder.run)),
        group=_group(folder),
        name=f"{stage}-{key[:8]}",
        job_type=stage,
        run_id=f"{stage}-{key[:16]}-{_nonce(Path(folder.run.paths.outputs))}",
        console_warn=folder.console.warn,
        truth=f"metrics.jsonl of stage {stage} has every row",
    )
    if start and tracker.lacks_the_past:
        tracker.replay(jsonl.read(past))
    return tracker


def _nonce(outputs: Path) -> str:
    path = outputs / NONCE
    if not path.exists():
        atomic_write(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def log_artifacts(folder: RunFolder, trackers: Trackers, result: Mapping[str, Any]) -> None:
    """Tell W&B which model the run made, and from which preferences and reference, if it is to know.

    Args:
        folder: of the run, sealed.
        trackers: of the run.
        result: `summary.json`.
    """
    for tracker in trackers:
        if isinstance(tracker, WandbTracker):
            for stage, kind in (("sft", "model"), ("groups", "preferences"), ("reward_model", "model")):
                artifact = folder.pipeline.artifacts.get(stage)
                if artifact is not None:
                    about = {"stage": stage, "key": artifact.key}
                    tracker.artifact(f"{stage}-{artifact.key[:16]}", kind, artifact.path, about, used=True)
            if (folder.path / "model").is_dir():
                about = {key: result[key] for key in ("algo", "reward", "kl", "step") if result.get(key) is not None}
                tracker.artifact(folder.name, "model", folder.path / "model", about)


def _plain(value: Any) -> Any:
    """Enums as their values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if hasattr(value, "value") else value
