"""Hours that the paper's runs would take on a machine: `python -m benchmarks hours RESULT [RESULT ...]`.

Each RESULT is a folder that `python -m benchmarks stages` left on that machine. The runs of `experiment=paper
sweep=frontier` are composed and not run; hours are the model operations of their stages (`operations.Planned`) over the
operations per second of the same kind of stage. Exit code 1 if a stage was not measured.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import results
from benchmarks.account import FLOW
from benchmarks.operations import Planned, Sizes, Work, bare, batch_of, of_stage
from benchmarks.results import number
from benchmarks.runs import runs_of
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime

PAPER = ["sweep=frontier", "experiment=paper"]
PLAIN = ("checked", "data", "labelled")  # stages in which no model runs: their seconds are taken as they were measured
HEAD = ("stage", "times", "work", "model operations", "measured rate", "hours")

# Stages that do the same kind of work, the nearest first.
_TRAININGS = tuple(f"{algo}: training" for algo in ("dpo", "unlikelihood", "preferred_ft"))
_EVALUATIONS = tuple(f"{algo}: evaluations" for algo in ("dpo", "unlikelihood", "preferred_ft", "ppo"))
ALIKE = {
    **dict.fromkeys(("base", "reservoir"), ("reference",)),
    **dict.fromkeys(_TRAININGS, _TRAININGS),
    **dict.fromkeys(_EVALUATIONS, (*_EVALUATIONS, "reference")),
    "reference": _EVALUATIONS,
}

# What measures all stages: the rehearsal in the paper's batches, long enough that loading a model weighs little.
COMMON = (
    "experiment=rehearsal model=gpt2-large-random sft.batch_size=64 groups.batch_size=512 evaluation.batch_size=512 "
    "evaluation.samples=4 trainer.micro_batch=16 data.sft_reviews=12800 data.prompts.train=1024 data.prompts.test=248"
)
MEASURING = (
    "algo=dpo policy.steps=200 policy.precision=float32",
    "algo=ppo ppo.episodes=2048 ppo.batch_size=1024 ppo.minibatch_size=1024 ppo.rollout_batch_size=512 "
    "reward_model.batch_size=192",
    "algo=ppo ppo=trl_2023 ppo.reward=ground_truth ppo.episodes=768 ppo.batch_size=256 ppo.minibatch_size=16 "
    "ppo.rollout_batch_size=512",
    "algo=best_of_n reservoir.samples=32 reservoir.batch_size=512 reward_model.batch_size=192",
)
NEEDED = f"`python -m benchmarks stages {COMMON}` with each of {', '.join(f'`{words}`' for words in MEASURING)}"


@dataclass(frozen=True)
class Rate:
    """Operations per second of a stage, over how many seconds it was measured, and how its settings differ."""

    stage: str
    operations: float
    seconds: float
    differs: str


@dataclass(frozen=True)
class Measured:
    """All results together.

    Attributes:
        facts: device, sizes (of the model), classifier (whether the true reward was one): the same in all of them.
        commands: that were measured, with their commits.
        parts: of all accounts, as `Account.parts`.
    """

    facts: Mapping[str, Any]
    commands: list[str]
    parts: pd.DataFrame

    def rate(
        self, stage: str, batch: int | None = None, value: str | None = None, precision: str | None = None
    ) -> Rate | None:
        """The rate of a stage, of the nearest measurements; None where neither it nor its like was measured.

        Nearest is a training in the same precision, PPO with the same value network, then the batch of the nearest
        ratio.
        """
        timed = self.parts[(self.parts["seconds"] > 0) & self.parts["operations"].notna()]
        for name in (stage, *ALIKE.get(stage, ())):
            rows = timed[timed["stage"] == name]
            if rows.empty:
                continue
            ratio = rows["batch"].astype(float).div(batch).map(math.log).abs().fillna(math.inf) if batch else 0.0
            wanted = {"precision": precision, "value": value}
            unlike = {f"other_{key}": (rows[key] != want) & (want is not None) for key, want in wanted.items()}
            order = [*unlike, "ratio"]
            rows = rows.assign(**unlike, ratio=ratio).sort_values(order)
            near = rows[(rows[order] == rows[order].iloc[0]).all(axis=1)]
            arithmetic = near["precision"].iloc[0]
            size, network, seconds = near["batch"].iloc[0], near["value"].iloc[0], float(near["seconds"].sum())
            notes = [f"batches of {size:,.0f}, here {batch:,}"] if batch not in (None, size) else []
            notes += [f"in {arithmetic}, here {precision}"] if precision not in (None, arithmetic) else []
            notes += [f"ppo.value={network}, here {value}"] if value not in (None, network) else []
            return Rate(name, float(near["operations"].sum()) / seconds, seconds, "; ".join(notes))
        return None

    def each(self, stage: str) -> float:
        """Mean seconds of a part that is counted by the times it is done; 0 where it was not timed."""
        rows = self.parts[self.parts["stage"].str.endswith(stage)]
        return float(rows["seconds"].sum() / rows["count"].sum()) if len(rows) else 0.0


def read(paths: Sequence[Path]) -> Measured:
    """All results as one.

    Raises:
        ConfigError: a file that is no result, results of different devices, models or kinds of reward, or of runs in
            several processes.
    """
    facts: dict[str, list[Any]] = {"device": [], "sizes": [], "classifier": [], "processes": [1]}
    parts, commands = [], []
    for file in (path / results.FILE if path.is_dir() else path for path in paths):
        try:
            content = json.loads(file.read_text())
            facts["device"].append(content["device"])
            for account in content["accounts"]:
                parts += account["parts"]
                commands.append(f"`{account['command']}` at commit {content['commit']}, {account['slots']} at a time")
                for run in account["runs"]:
                    facts["sizes"].append(Sizes(**run["sizes"]))
                    facts["classifier"].append(_classifies(run["reward"]))
                    facts["processes"].append(run["trainer"]["processes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{file} is no result of `python -m benchmarks stages` ({type(error).__name__}: {error})"
            raise ConfigError(f"{message}; give the folder that it saved to") from error
    for name, values in facts.items():
        if len(set(values)) > 1:
            raise ConfigError(
                f"different {name}: {', '.join(map(str, dict.fromkeys(values)))}; results must agree in it"
            )
    return Measured({name: values[0] for name, values in facts.items()}, commands, pd.DataFrame(parts))


def precision_of(stage: str, config: Mapping[str, Any]) -> str | None:
    """The precision that a policy's training has of its own; None where it is the trainer's."""
    precision = (config.get("policy") or config.get("ppo") or {}).get("precision")
    return str(precision) if precision is not None and stage.endswith(": training") else None


def _classifies(reward: Mapping[str, Any]) -> bool:
    """Whether the true reward is a model, by its configuration."""
    return "path" in reward or reward["name"] == "two_label"


@dataclass
class Line:
    """A line of the table: a stage (its label names the method too), how often it is done, and the work of all of them.

    Without `work` its seconds are those that were measured; without `rate` they are not known.
    """

    label: str
    stage: str
    times: int
    work: Work | None
    rate: Rate | None
    seconds: float | None


def artifacts(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Stage and a run that uses it, of every artifact of the runs once: artifacts with one key are one."""
    runtime, console = Runtime(runs[0].trainer), Console(quiet=True)
    users: dict[tuple[str, str], Run] = {}
    for run in runs:
        for stage, key in Pipeline(run, runtime, console).keys().items():
            users.setdefault((stage, key), run)
    return sorted(((stage, run) for (stage, _), run in users.items()), key=lambda user: FLOW.index(user[0]))


def lines(runs: Sequence[Run], shared: Sequence[tuple[str, Run]], measured: Measured, sizes: Sizes) -> list[Line]:
    """A line per stage of the artifacts and per part of every method's runs, in the order of the data flow."""
    users: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for stage, run in shared:
        users.setdefault((stage, stage), []).append(asdict(run))
    for run in runs:
        method = f"{run.algo} ({run.variant})" if run.variant else run.algo
        for part in ("training", "evaluations") if isinstance(run, TrainedRun) else ():
            users.setdefault((f"{method}: {part}", f"{run.algo}: {part}"), []).append(asdict(run))
    table = []
    for (label, stage), configs in users.items():
        if stage in PLAIN:
            table.append(Line(label, stage, len(configs), None, None, len(configs) * measured.each(stage)))
            continue
        value = str(configs[0]["ppo"]["value"]) if stage == "ppo: training" else None
        rate = measured.rate(stage, batch_of(stage, configs[0]), value, precision_of(stage, configs[0]))
        table.append(_line(label, stage, [of_stage(stage, Planned(config), sizes) for config in configs], rate))
    texts = sum(line.work.texts for line in table if line.work is not None)
    if _classifies(asdict(runs[0])["reward"]) and not measured.facts["classifier"]:
        # a classifier scores a text as fast as a reward model of the policy's size
        each = float(bare(sizes, Planned(asdict(runs[0])).rows("reference")).mean())
        stage, label = "learned_scores", f"true reward ({runs[0].reward.name})"
        table.append(_line(label, stage, [Work(texts, "texts", texts * each)], measured.rate(stage)))
    for stage in ("start-up", "loading and results"):
        table.append(Line(f"{stage} of a run", stage, len(runs), None, None, len(runs) * measured.each(stage)))
    return table


def _line(label: str, stage: str, works: Sequence[Work], rate: Rate | None) -> Line:
    operations = sum(work.operations or math.nan for work in works)
    total = Work(sum(work.amount or 0.0 for work in works), works[0].unit, operations, sum(w.texts for w in works))
    seconds = None if rate is None or math.isnan(operations) else operations / rate.operations
    return Line(label, stage, len(works), total, rate, seconds)


def cells(line: Line) -> list[str]:
    """A line's texts under HEAD."""
    work, rate = line.work, line.rate
    hours = "not measured" if line.seconds is None else number(line.seconds / 3600)
    if work is None:
        return [line.label, str(line.times), "", "", "as measured" if line.seconds else "not timed", hours]
    speed = "" if rate is None else f"{number(rate.operations)}/s over {rate.seconds:,.3g} s"
    return [line.label, str(line.times), f"{work.amount:,.0f} {work.unit}", number(work.operations), speed, hours]


def notes(rows: Sequence[Line], measured: Measured, sizes: Sizes) -> list[str]:
    """What was not measured, and what the hours rest on, a sentence each."""
    missing = [line.label for line in rows if line.seconds is None]
    sentences = [f"Not measured: {', '.join(missing)}; run {NEEDED}."] if missing else []
    if sizes != measured.facts["sizes"]:
        sentences.append(f"Measured with another model: {measured.facts['sizes']}, and the work is of {sizes}.")
    of: dict[str, list[str]] = {}
    for line in rows:
        if line.rate is not None:
            parts = [] if line.rate.stage == line.stage else [f"at the rate of {line.rate.stage}, not measured itself"]
            of.setdefault("; ".join([*parts, *filter(None, [line.rate.differs])]), []).append(line.label)
    sentences += [f"{', '.join(labels)}: {note}." for note, labels in of.items() if note]
    return [
        *sentences,
        "Assumed: lengths at their limits, a prompt's rewards all differ, no PPO batch is cut short; one run after the "
        "other, artifacts that runs share made once; a classifier as fast per text as learned_scores per completion; "
        "data, loading and start-up as they were measured.",
        *(f"Rates of {command}." for command in measured.commands),
    ]


def main(words: Sequence[str]) -> int:
    """Work it out, print it, save it; returns 0, or 1 if a stage that is needed was not measured."""
    parser = results.parser_of("hours", __doc__, device=False)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="a folder that `stages` left")
    options = parser.parse_args(words)
    if not options.results:
        parser.error(f"no result to read rates from: run {NEEDED}, and give the folders that they save to")
    try:
        measured = read(options.results)
    except ConfigError as error:
        parser.error(str(error))
    runs = runs_of(PAPER)
    # a model on the Hub has the shape of its stand-in with random weights
    sizes = Sizes.of(vars(runs_of([f"model={runs[0].model.name}-random"])[0].model))
    assert sizes is not None
    rows = lines(runs, artifacts(runs), measured, sizes)
    known, device = [line.seconds for line in rows if line.seconds is not None], measured.facts["device"]
    result = results.Result(parser, options, ["hours", *words])
    total = f"{'' if len(known) == len(rows) else 'at least '}{number(sum(known) / 3600)} hours"
    head = f"{len(runs)} runs of `{' '.join(PAPER)}` on {device}: {total} one after the other."
    below = notes(rows, measured, sizes)
    table = results.table(HEAD, [cells(line) for line in rows])
    text = "\n".join([f"# Hours\n\n{head}\n", table, *(f"- {note}" for note in below)]) + "\n"
    result.save(text, device=device, hours=sum(known) / 3600, rows=[asdict(line) for line in rows], notes=below)
    result.show(text)
    return int(len(known) < len(rows))
