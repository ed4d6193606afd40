"""`report.html` in a run's folder: the run's place in the plane, its training, its samples and its settings."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.artifacts.files import atomic_write
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier.finished import FinishedRun, opened
from imdb_rlhf.frontier.measure import NO_RESERVOIR, axes_of, entry_of, measure
from imdb_rlhf.frontier.methods import has_policy, method_names
from imdb_rlhf.frontier.report.parts import DETAILS, Detail, short
from imdb_rlhf.frontier.report.render import LARGEST, render
from imdb_rlhf.frontier.report.report import page_data
from imdb_rlhf.runs import files
from imdb_rlhf.stages.reservoir import Reservoir
from imdb_rlhf.tracking import result

SCRIPTS = ("common.js", "chart.js", "frontier.js", "run.js", "single.js")
LINKED = (files.SUMMARY, files.METRICS, files.EVALUATIONS, files.SAMPLES, files.CURVE, files.SCORES, files.CONFIG)
SCORES = 600  # of a reward model: how many are drawn


def write(folder: Path) -> Path:
    """Write the report of a finished run, whole or not at all; the same run gives the same bytes.

    It is outside of the run's seal: it is drawn from sealed files alone, and can be drawn again.

    Args:
        folder: of the run, whatever its kind. Its files are taken as they are.

    Returns:
        Where the report is.

    Raises:
        OSError: a file cannot be read, or the report cannot be written.
    """
    run = opened(folder)
    frontier = _frontier(run)
    for detail in DETAILS:
        page = render("run.html", SCRIPTS, run_data(run, frontier, detail))
        if len(page) <= LARGEST:
            break
    path = folder / files.REPORT
    atomic_write(path, page)
    return path


def run_data(run: FinishedRun, frontier: Mapping[str, Any], detail: Detail) -> dict[str, Any]:
    """All data of the page: those of a frontier of one run, and what only this page shows.

    Returns:
        As `page_data`, with another `redraw`, and `facts` (name and text of each result, as the console shows them),
        `links` (files beside the page) and `account` (of a reward model: how its predictions and scores compare with
        the truth; else None).
    """
    data = page_data(frontier, detail)
    if "reliability" in run.summary:  # a reward model has no samples to miss
        entry = data["runs"][0]
        entry["missing"] = [line for line in entry["missing"] if not line.startswith(files.SAMPLES)]
    return data | {
        "redraw": shlex.join(["python", "-m", "imdb_rlhf.frontier", str(run.path.parent)]),
        "facts": [list(fact) for fact in result.figures(run.summary)],
        "links": [name for name in LINKED if (run.path / name).is_file()],
        "account": _account(run),
    }


def _frontier(run: FinishedRun) -> dict[str, Any]:
    """The frontier of one run; without points where it has no policy or cannot be measured."""
    why: list[str] = []
    name = method_names([run])[run.path]
    if _has_place(run):
        try:
            frontier = measure([run], [])
        except (ConfigError, RunError, OSError, ValueError, KeyError) as error:
            why.append(f"reward over KL is not shown: {' '.join(str(error).split())}")
        else:
            # the page says it in its own words, below the plane
            frontier["warnings"] = [line for line in frontier["warnings"] if line != NO_RESERVOIR]
            return frontier if frontier["points"] else frontier | _point(run, name)
    return {
        "world": axes_of(run.config, run.summary.get("prompts")),
        "confidence": float(run.config["evaluation"]["confidence"]),
        "reference": None,
        "base": None,
        "budgets": [],
        "score_kl": 0.0,
        "methods": [],
        "points": [],
        "optimum": None,
        "best_of_n": {},
        "nats": [],
        "tests": [],
        "runs": [entry_of(run, name)],
        "sources": [str(run.path)],
        "skipped": [],
        "warnings": why,
    }


def _has_place(run: FinishedRun) -> bool:
    """Whether a run is a policy, or best-of-N, which the frontier has as a curve and not as a point."""
    return has_policy(run.algo) or (Reservoir.name in run.artifacts and run.summary.get("kl") is not None)


def _point(run: FinishedRun, name: str) -> dict[str, Any]:
    """The parts of a frontier that put a run where its summary says."""
    keys = ("kl", "kl_ci", "reward", "reward_ci")
    at = {key: run.summary.get(key) for key in keys} | {"efficiency": None}
    entry = entry_of(run, name)
    point = {"run": run.name, "method": name, "step": run.summary["step"], "last": True, "above_optimum": False}
    setting = {"knob_value": entry["knob_value"], "seeds": [run.seed], "runs": [run.name], "covers": "prompts"}
    method = {"name": name, "knob": entry["knob"], "settings": [setting | at], "diverged": []}
    return {"points": [point | at], "methods": [method], "runs": [entry]}


def _account(run: FinishedRun) -> dict[str, Any] | None:
    """Of a reward model: predicted and observed shares of pairs, and scores beside the true log-odds."""
    if "reliability" not in run.summary:
        return None
    scores = None
    if (run.path / files.SCORES).is_file():
        table = pd.read_parquet(run.path / files.SCORES)
        table = table.iloc[:: max(1, -(-len(table) // SCORES))]
        scores = [[short(value) for value in table[key].astype(float)] for key in ("reward_logit", "score")]
    return {"reliability": run.summary["reliability"], "scores": scores}
