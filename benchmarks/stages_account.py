"""Where the seconds of a run or a sweep went, by what it left in its outputs folder and said on its console.

Seconds of an artifact are those of its `inputs.json`; of a policy's stage those of `summary.json`, divided by the times
in `metrics.jsonl`: an evaluation is what a stretch with one took beyond its steps at the median speed of the others.
Start-up, the frontier's drawing and idle slots are known where the console was timed (`CONSOLE`).
"""

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks import stages_work
from benchmarks.stages_work import Made
from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.errors import ConfigError

# Where `stages.py` leaves what the console said when: wall, code, lines [seconds, text].
CONSOLE = "console.json"
# Artifacts in the order of the data flow.
FLOW = (
    *("data", "sft", "labelled", "two_label", "groups", "reference", "base", "own_model"),
    *("reward_model", "reservoir", "learned_scores"),
)
# What artifacts are counted in: the key of report.json, or rows of the table that lies there.
REPORTED = {
    "sft": ("tokens", "tokens"),
    "groups": ("completions", "completions"),
    "reservoir": ("completions", "completions"),
    "reward_model": ("steps", "steps"),
    "two_label": ("steps", "steps"),
}
COUNTED = {
    "reference": ("evaluation.parquet", "samples"),
    "base": ("evaluation.parquet", "samples"),
    "own_model": ("evaluation.parquet", "samples"),
    "learned_scores": ("scores.parquet", "completions"),
}


@dataclass(frozen=True)
class Row:
    """What a stage took.

    Attributes:
        stage: its name.
        count: how often it was done.
        seconds: in all, of processes that ran side by side added up.
        amount, unit: what was done in them; None where nothing is counted.
        operations: of the model; None where they are not known, or there is no model.
        precision, threads: of its matrix products.
    """

    stage: str
    count: int
    seconds: float
    amount: float | None = None
    unit: str = ""
    operations: float | None = None
    precision: str | None = None
    threads: int | None = None


@dataclass
class Account:
    """All rows, and the whole.

    Attributes:
        wall: seconds of the command; None where its console was not timed.
        slots: runs at a time.
        runs: how many.
        rows: in the order of the data flow.
    """

    wall: float | None
    slots: int
    runs: int
    rows: list[Row] = field(default_factory=list)


def account(outputs: Path) -> Account:
    """What the finished runs of an outputs folder took.

    Raises:
        ConfigError: there is no finished run.
    """
    folders = sorted(done.parent for done in (outputs / "runs").glob(f"*/{MANIFEST}"))
    if not folders:
        raise ConfigError(f"--outputs={outputs} holds no finished run (runs/*/{MANIFEST}); give paths.outputs of one")
    runs = [_Run(folder, outputs) for folder in folders]
    console = _json(outputs / CONSOLE)
    jobs = {job["name"]: job["seconds"] for file in outputs.glob("sweeps/*/sweep.json") for job in _json(file)["jobs"]}
    made = _artifacts(runs)
    policies = [row for run in runs for row in run.rows()]
    found = Account(console.get("wall"), _slots(console), len(runs))
    startup = _startup(console, made)
    if startup is not None:
        found.rows.append(Row("start-up", 1, startup))
    found.rows += [*made, *_joined(policies)]
    if jobs:
        found.rows += _jobs(runs, jobs, made, policies)
    drawn = _drawing(console)
    if drawn is not None:
        found.rows.append(Row("frontier, drawn last", 1, drawn))
    elif console:
        found.rows.append(Row("end of the process", 1, console["wall"] - console["lines"][-1][0]))
    if found.wall is not None:
        rest = found.slots * found.wall - sum(row.seconds for row in found.rows)
        found.rows.append(Row("slots without a job" if jobs else "between the stages", 1, rest))
    return found


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.exists() else {}


# --- artifacts --------------------------------------------------------------------------------------------------------


def _artifacts(runs: Sequence["_Run"]) -> list[Row]:
    """A row a stage, of all artifacts of that stage that the runs use."""
    users: dict[tuple[str, Path], _Run] = {}
    for run in runs:
        for name, folder in run.made.folders.items():
            if (folder / INPUTS).exists():
                users.setdefault((name, folder), run)
    ordered = sorted(users.items(), key=lambda item: FLOW.index(item[0][0]))
    return list(_joined([_artifact(name, folder, run) for (name, folder), run in ordered]))


def _artifact(name: str, folder: Path, run: "_Run") -> Row:
    inputs = _json(folder / INPUTS)
    machine = inputs["inputs"].get("machine") or {}
    amount, unit = None, ""
    if name in REPORTED:
        key, unit = REPORTED[name]
        amount = _json(folder / "report.json").get(key)
    elif name in COUNTED:
        file, unit = COUNTED[name]
        amount = len(pd.read_parquet(folder / file))
    work = stages_work.of_artifact(name, run.made)
    return Row(name, 1, inputs["seconds"], amount, unit, work, machine.get("precision"), machine.get("threads"))


def _joined(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of one stage as one; what is not known of each is not known of all."""
    for key in dict.fromkeys((row.stage, row.precision, row.threads) for row in rows):
        same = [row for row in rows if (row.stage, row.precision, row.threads) == key]
        amounts, works = [row.amount for row in same], [row.operations for row in same]
        yield replace(
            same[0],
            count=sum(row.count for row in same),
            seconds=sum(row.seconds for row in same),
            amount=None if None in amounts else sum(a for a in amounts if a is not None),
            operations=None if None in works else sum(w for w in works if w is not None),
        )


# --- runs -------------------------------------------------------------------------------------------------------------


class _Run:
    """A finished run."""

    def __init__(self, folder: Path, outputs: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.summary = _json(folder / "summary.json")
        keys = _json(folder / "artifacts.json")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        self.made = Made(config, {name: outputs / "artifacts" / name / key for name, key in keys.items()})
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        self.metrics = [json.loads(line) for line in lines]

    @property
    def seconds(self) -> float:
        """Of the policy's own stage: trained, evaluated, left."""
        own = float(self.summary["seconds"])
        if self.made.config["algo"] == "reward_model":  # its account counts the stage that made it
            own -= _json(self.made.folders["reward_model"] / INPUTS)["seconds"]
        return own

    @property
    def upstream(self) -> float:
        """Seconds until all artifacts were there: made, waited for or found."""
        return float(sum(self.summary.get("stage_seconds", {}).values()))

    def rows(self) -> list[Row]:
        """Training, evaluations and the rest of the policy's stage."""
        algo = self.made.config["algo"]
        trained = [row for row in self.metrics if row["stage"] == algo and "train/loss" in row]
        if not trained:
            return [Row(f"{algo}: results", 1, self.seconds)]
        whole, steps = trained[-1]["time/elapsed"], trained[-1]["step"]
        evaluations = evaluation_seconds(trained)
        precision, threads = self._machine()
        frame = pd.read_parquet(self.folder / "evaluations.parquet")
        work = stages_work.of_training(self.made, trained, steps)
        rest = Row(f"{algo}: loading and results", 1, self.seconds - whole)
        if evaluations is None:
            return [Row(f"{algo}: training and evaluations", 1, whole, steps, "steps"), rest]
        seen = stages_work.of_evaluations(self.made, frame)
        return [
            Row(f"{algo}: training", 1, whole - evaluations, steps, "steps", work, precision, threads),
            Row(f"{algo}: evaluations", 1, evaluations, len(frame), "samples", seen, "float32", threads),
            rest,
        ]

    def _machine(self) -> tuple[str | None, int | None]:
        """What the policy was trained with: what the artifacts of training say of the machine."""
        for name in ("sft", "groups", "reward_model"):
            machine = _json(self.made.folders.get(name, Path()) / INPUTS).get("inputs", {}).get("machine")
            if machine:
                return machine["precision"], machine["threads"]
        return None, None


def evaluation_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the evaluations among rows of metrics; None where no stretch is without one.

    Args:
        rows: of one training, with `step`, `time/elapsed` and, where there was an evaluation, `eval/reward`.
    """
    plain: list[tuple[int, float]] = []
    mixed: list[tuple[int, float]] = []
    before = (0, 0.0)
    for row in rows:
        here = (int(row["step"]), float(row["time/elapsed"]))
        steps, seconds = here[0] - before[0], here[1] - before[1]
        (mixed if "eval/reward" in row else plain).append((steps, seconds))
        before = here
    if not plain:
        return 0.0 if not mixed else None
    step = statistics.median(seconds / steps for steps, seconds in plain)
    return sum(max(0.0, seconds - steps * step) for steps, seconds in mixed)


# --- the console ------------------------------------------------------------------------------------------------------


def _startup(console: Mapping[str, Any], made: Sequence[Row]) -> float | None:
    """Seconds until the first stage began, or the first job of a sweep."""
    for seconds, text in console.get("lines", []):
        if re.match(r"\s*\d+/\d+\s+running\b", text):
            return float(seconds)
        first = re.match(r"(\w+)\s+made in ", text)
        if first:
            took = next((row.seconds for row in made if row.stage == first[1]), None)
            return None if took is None else float(seconds) - took
    return None


def _slots(console: Mapping[str, Any]) -> int:
    """The most jobs that ran at a time; 1 where it is not known."""
    now = most = 0
    for _, text in console.get("lines", []):
        state = re.match(r"\s*\d+/\d+\s+(running|done|failed|stopped)\b", text)
        if state:
            now += 1 if state[1] == "running" else -1
            most = max(most, now)
    return max(1, most)


def _drawing(console: Mapping[str, Any]) -> float | None:
    """Seconds from the end of a sweep's last job to the end of the command."""
    ends = [seconds for seconds, text in console.get("lines", []) if re.match(r"\s*\d+/\d+\s+(done|failed)\b", text)]
    return float(console["wall"]) - ends[-1] if ends else None


def _jobs(
    runs: Sequence[_Run], jobs: Mapping[str, float | None], made: Sequence[Row], policies: Sequence[Row]
) -> list[Row]:
    """What a sweep's jobs took beyond their stages: waiting for another's artifact, starting and ending."""
    own = [run for run in runs if jobs.get(run.name) is not None]
    upstream = sum(run.upstream for run in own)
    processes = sum(float(jobs[run.name] or 0.0) for run in own)
    waited = max(0.0, upstream - sum(row.seconds for row in made))
    return [
        Row("waiting for another job's artifact", len(own), waited),
        Row("start and end of jobs", len(own), processes - upstream - sum(run.seconds for run in own)),
    ]
