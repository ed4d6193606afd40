"""Where the seconds of a run or a sweep went, from its outputs folder and its console.

An artifact's seconds are those of its `inputs.json`; a policy's stage has those of `summary.json`, divided by the times
in `metrics.jsonl`: an evaluation is the time of a stretch with one beyond its steps at the median speed of the others.
The timed console (`CONSOLE`) tells start-up and the rest.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.operations import Finished, Sizes, Work, batch_of, of_stage
from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.artifacts.store import INPUTS

# The console of a command: its wall seconds, and its lines [seconds, text].
CONSOLE = "console.json"
# Artifacts in the order of the data flow.
FLOW = ["checked", "data", "sft", "labelled", "two_label", "groups", "rescored", "reference", "base", "own_model"]
FLOW += ["reward_model", "reservoir", "learned_scores"]
NO_WORK = Work()
JOB = r"\s*\d+/\d+\s+"  # how a sweep's console begins a job's line


@dataclass
class Account:
    """The seconds of a command, how many runs there were at a time, its parts, and the configuration of each run.

    A part is a dict per artifact, part of a run and rest: stage, count, seconds, amount, unit, operations, precision,
    threads, batch (examples at a time), value (PPO's value network); None where unknown.
    """

    wall: float
    slots: int
    parts: list[dict[str, Any]]
    runs: list[dict[str, Any]]

    def rows(self) -> pd.DataFrame:
        """The parts of one stage, precision and number of threads as one row; unknown of one is unknown of all."""
        grouped = pd.DataFrame(self.parts).groupby(["stage", "precision", "threads"], sort=False, dropna=False)
        totals = {name: (name, lambda values: values.sum(skipna=False)) for name in ("amount", "operations")}
        sums = {name: (name, "sum") for name in ("count", "seconds")}
        return grouped.agg(unit=("unit", "first"), **sums, **totals).reset_index()


def read_account(outputs: Path) -> Account:
    """The account of the finished runs of an outputs folder that holds a timed console."""
    runs = [_Run(done.parent, outputs) for done in sorted((outputs / "runs").glob(f"*/{MANIFEST}"))]
    users = {(FLOW.index(name), folder): run for run in runs for name, folder in run.source.folders.items()}
    artifacts = [users[key].artifact(FLOW[key[0]]) for key in sorted(users) if (key[1] / INPUTS).exists()]
    parts = [*artifacts, *(part for run in runs for part in run.parts())]
    console = _json(outputs / CONSOLE)
    wall, lines, slots = console["wall"], console["lines"], _slots(console["lines"])
    parts.insert(0, _part("start-up", _startup(lines, artifacts)))
    if len(runs) > 1:
        upstream = sum(sum(run.summary.get("stage_seconds", {}).values()) for run in runs)
        waited = max(0.0, upstream - sum(part["seconds"] for part in artifacts))
        parts.append(_part("waiting for another run's artifact", waited, count=len(runs)))
    parts.append(_part("the rest", slots * wall - sum(part["seconds"] for part in parts)))
    configs = [{**run.source.config, "sizes": asdict(run.sizes) if run.sizes else None} for run in runs]
    return Account(wall, slots, parts, configs)


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _part(stage: str, seconds: float, work: Work = NO_WORK, count: int = 1) -> dict[str, Any]:
    part = {"stage": stage, "count": count, "seconds": seconds}
    part |= {"amount": work.amount, "unit": work.unit, "operations": work.operations}
    return part | dict.fromkeys(("precision", "threads", "batch", "value"))


class _Run:
    """A finished run."""

    def __init__(self, folder: Path, outputs: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        folders = {name: outputs / "artifacts" / name / key for name, key in _json(folder / "artifacts.json").items()}
        self.algo, self.summary = str(config["algo"]), _json(folder / "summary.json")
        self.trained = [row for row in metrics if row["stage"] == self.algo and "train/loss" in row]
        self.source = Finished(config, folder, folders, self.trained)
        self.sizes: Sizes | None = self.source.sizes

    def part(self, stage: str, seconds: float, machine: Mapping[str, Any]) -> dict[str, Any]:
        """A stage of this run with its work, of which nothing is known where the policy is no GPT-2."""
        work, config = NO_WORK if self.sizes is None else of_stage(stage, self.source, self.sizes), self.source.config
        known = {name: machine.get(name) for name in ("precision", "threads")} | {"batch": batch_of(stage, config)}
        value = config["ppo"]["value"] if stage == "ppo: training" else None
        return _part(stage, seconds, work) | known | {"value": value}

    def artifact(self, name: str) -> dict[str, Any]:
        """The making of an artifact that this run uses."""
        return self.part(name, _json(self.source.folders[name] / INPUTS)["seconds"], self.machine(name))

    def machine(self, name: str) -> dict[str, Any]:
        """Precision and threads of an artifact; nothing where it does not exist or does not depend on them."""
        inputs = _json(self.source.folders[name] / INPUTS) if name in self.source.folders else {}
        return inputs.get("inputs", {}).get("machine") or {}

    def parts(self) -> list[dict[str, Any]]:
        """Training, evaluations and the rest of the policy's own stage."""
        whole = float(self.summary["seconds"])
        if self.algo == "reward_model":  # its account counts the stage that made it
            whole -= _json(self.source.folders["reward_model"] / INPUTS)["seconds"]
        if not self.trained:
            return [_part(f"{self.algo}: loading and results", whole)]
        loop, evaluations = self.trained[-1]["time/elapsed"], evaluation_seconds(self.trained)
        rest = _part(f"{self.algo}: loading and results", whole - loop)
        if evaluations is None:
            return [_part(f"{self.algo}: training and evaluations", loop), rest]
        # the policy is trained as the artifacts of training were,
        machine = next((m for m in map(self.machine, ("sft", "groups", "reward_model")) if m), {})
        section = self.source.config.get("policy") or self.source.config.get("ppo") or {}
        own = {"precision": section["precision"]} if section.get("precision") else {}  # unless it has one of its own
        training = self.part(f"{self.algo}: training", loop - evaluations, machine | own)
        return [training, self.part(f"{self.algo}: evaluations", evaluations, machine | {"precision": "float32"}), rest]


def evaluation_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the evaluations (rows with `eval/reward`) among a training's metrics; None if each row has one."""
    ends = [(0, 0.0, False), *((row["step"], row["time/elapsed"], "eval/reward" in row) for row in rows)]
    stretches = [(b[0] - a[0], b[1] - a[1], b[2]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    plain = [seconds / steps for steps, seconds, evaluated in stretches if not evaluated]
    if not plain:
        return None
    step = statistics.median(plain)
    return float(sum(max(0.0, seconds - steps * step) for steps, seconds, evaluated in stretches if evaluated))


def _startup(lines: Sequence[tuple[float, str]], artifacts: Sequence[Mapping[str, Any]]) -> float:
    """Seconds until the first stage began, or the first job of a sweep; 0 where the console does not tell."""
    for seconds, text in lines:
        if re.match(rf"{JOB}running\b", text):
            return seconds
        if stage := re.match(r"(\w+)\s+made in ", text):
            took = [part["seconds"] for part in artifacts if part["stage"] == stage[1]]
            return seconds - took[0] if took else 0.0
    return 0.0


def _slots(lines: Sequence[tuple[float, str]]) -> int:
    """The most jobs that ran at a time; 1 where it is not known."""
    running, most = 0, 1
    for _, text in lines:
        if state := re.match(rf"{JOB}(running|done|failed|stopped)\b", text):
            running += 1 if state[1] == "running" else -1
            most = max(most, running)
    return most
