"""A W&B workspace of a frontier's runs, as code: the frontier first, then the runs, coloured as in our figures.

It needs the package wandb-workspaces (`pip install "imdb_rlhf[workspaces]"`), which this module alone imports.
"""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier.methods import styles
from imdb_rlhf.tracking.wandb_files import ID

FILE = "workspace.json"
TRAINING = ("train/loss", "eval/reward", "eval/kl", "eval/win_rate", "ppo/kl", "ppo/kl_coefficient", "time/elapsed")


def parse(text: str) -> tuple[str, str]:
    """`ENTITY/PROJECT` as two words.

    Raises:
        ConfigError: it is none, or the package is not installed.
    """
    entity, _, project = text.partition("/")
    if not entity or not project or "/" in project:
        raise ConfigError(f"--workspace {text}: give ENTITY/PROJECT, as in https://wandb.ai/ENTITY/PROJECT")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("--workspace: its package is not installed; pip install wandb-workspaces")
    return entity, project


def write(frontier: Mapping[str, Any], folder: Path, entity: str, project: str, group: str) -> str:
    """Write the workspace's spec into a folder, and save it to W&B where a key is configured.

    Args:
        frontier: the content of `frontier.json`.
        folder: the frontier's.
        entity: the project's owner.
        project: where its runs are.
        group: their W&B group.

    Returns:
        The workspace's page, or what is to be done to get one.

    Raises:
        RunError: W&B refused it.
    """
    workspace = build(frontier, folder, entity, project, group)
    spec = workspace._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    atomic_write(folder / FILE, json.dumps(spec, indent=1, default=str) + "\n")
    if not os.environ.get("WANDB_API_KEY"):
        return f"{folder / FILE} (not saved to W&B: set WANDB_API_KEY and run the same command)"
    try:
        return str(workspace.save().url)
    except Exception as error:
        raise RunError(f"W&B did not save the workspace: {' '.join(str(error).split())[:300]}") from error


def build(frontier: Mapping[str, Any], folder: Path, entity: str, project: str, group: str) -> Any:
    """The workspace, not yet saved: a section for the frontier, one for its runs, one for their training."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    frontier_section = ws.Section(
        name="Frontier",
        is_open=True,
        pinned=True,
        panels=[
            panels.MediaBrowser(title="reward over KL", media_keys=["reward_over_kl"], num_columns=1),
            panels.WeavePanelSummaryTable(table_name="methods"),
            panels.MediaBrowser(title="report", media_keys=["report"], num_columns=1),
            panels.WeavePanelSummaryTable(table_name="frontier"),
        ],
        layout_settings=ws.SectionLayoutSettings(columns=2, rows=2),
    )
    kl, reward = panels.SummaryMetric("kl"), panels.SummaryMetric("reward")
    runs_section = ws.Section(
        name="Runs",
        is_open=True,
        panels=[
            panels.ScatterPlot(title="a point per run", x=kl, y=reward),
            panels.LinePlot(title="the path of each run", x="eval/kl", y=["eval/reward"]),
        ],
        layout_settings=ws.SectionLayoutSettings(columns=2, rows=1),
    )
    training_section = ws.Section(
        name="Training", panels=[panels.LinePlot(title=key, x="step", y=[key]) for key in TRAINING]
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"frontier {group}",
        sections=[frontier_section, runs_section, training_section],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group),
            run_settings={run: ws.RunSettings(color=colour) for run, colour in colours(frontier).items()},
            pinned_columns=["run:displayName", "summary:reward", "summary:kl", "summary:variant"],
        ),
    )


def colours(frontier: Mapping[str, Any]) -> dict[str, str]:
    """W&B's id of every run that W&B knows -> its method's colour."""
    drawn = styles([*(method["name"] for method in frontier["methods"]), *(run["method"] for run in frontier["runs"])])
    found = {}
    for run in frontier["runs"]:
        file = Path(run["path"]) / ID
        if file.is_file():
            found[file.read_text(encoding="utf-8").strip()] = drawn[run["method"]].colour
    return found


def group_of(frontier: Mapping[str, Any], folder: Path) -> str:
    """The W&B group of a frontier's runs, as their `config.yaml` has it; else the folder's name."""
    import yaml

    for run in frontier["runs"]:
        file = Path(run["path"]) / "config.yaml"
        if file.is_file():
            group = (yaml.safe_load(file.read_text(encoding="utf-8")).get("logger") or {}).get("group")
            if group:
                return str(group)
    return folder.resolve().name
