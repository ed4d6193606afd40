"""Model operations a second of every kind of stage, from results of `python -m benchmarks stages`.

A stage that was measured several times has all operations over all seconds of the measurements that are nearest to what
is asked for: PPO with the same value network, and the nearest batch. A stage that was not measured itself has the rate
of one that does the same work: a forward and a backward pass over completions, or samples that are drawn and scored in
float32.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hours_work import batch_of, composed, jobs_of, scores_by_model, sizes_of
from benchmarks.stages_work import Sizes
from imdb_rlhf.artifacts.files import MANIFEST
from imdb_rlhf.errors import ConfigError

FILE = "stages.json"
_PREFERENCES = tuple(f"{algo}: training" for algo in ("dpo", "unlikelihood", "preferred_ft"))
_EVALUATIONS = tuple(f"{algo}: evaluations" for algo in ("dpo", "unlikelihood", "preferred_ft", "ppo"))
# Stages that do the same kind of work, the nearest first.
ALIKE = {
    "base": ("reference",),
    "reservoir": ("reference",),
    "reference": _EVALUATIONS,
    **{stage: _PREFERENCES for stage in _PREFERENCES},
    **{stage: (*_EVALUATIONS, "reference") for stage in _EVALUATIONS},
}

# What measures a stage: of the rehearsal, in the paper's batches, and so much that loading a model weighs little.
_COMMON = (
    "sft.batch_size=64 groups.batch_size=512 evaluation.batch_size=512 evaluation.samples=4 trainer.micro_batch=16 "
    "data.sft_reviews=12800 data.prompts.train=1024 data.prompts.test=248"
)
_PPO = (
    "algo=ppo ppo.episodes=2048 ppo.batch_size=1024 ppo.minibatch_size=1024 ppo.rollout_batch_size=512 "
    "reward_model.batch_size=192"
)
_TRL = (
    "algo=ppo ppo=trl_2023 ppo.reward=ground_truth ppo.episodes=768 ppo.batch_size=256 ppo.minibatch_size=16 "
    "ppo.rollout_batch_size=512"
)
MEASURING = {
    "dpo": "algo=dpo policy.steps=200",
    "ppo, own value": _PPO,
    "ppo, shared value": _TRL,
    "best_of_n": "algo=best_of_n reservoir.samples=32 reservoir.batch_size=512 reward_model.batch_size=192",
}

# Beside batches, what a rate depends on; where it differs from the work's, that is told.
SETTINGS = (
    "trainer.precision",
    "trainer.micro_batch",
    "sft.max_tokens",
    "groups.k",
    "generation.max_new_tokens",
    "data.prompts.min_tokens",
    "data.prompts.max_tokens",
)


@dataclass(frozen=True)
class Measured:
    """A stage in the account of a result.

    Attributes:
        stage, count, seconds, operations, precision, threads: as `stages_account.Row`.
        batches: examples at a time, of every run that it may be of.
        values: PPO's value networks, likewise; none of another stage.
    """

    stage: str
    count: int
    seconds: float
    operations: float | None
    precision: str | None
    threads: int | None
    batches: tuple[int, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """What a stage is worked out with.

    Attributes:
        stage: that was measured.
        operations: a second.
        seconds: over which it was measured.
        differs: how the measured stage's settings differ from those asked for; empty where they do not.
    """

    stage: str
    operations: float
    seconds: float
    differs: str


@dataclass(frozen=True)
class Results:
    """What all results say together.

    Attributes:
        device: that all were measured on.
        model, sizes: that all were measured with.
        commits, commands: of each.
        stages: every row.
        reward_included: whether the true reward was a model where they were measured.
        side_by_side: the most runs at a time.
        settings: of SETTINGS, the values that the measured runs have.
    """

    device: str
    model: str
    sizes: Sizes
    commits: tuple[str, ...]
    commands: tuple[str, ...]
    stages: tuple[Measured, ...]
    reward_included: bool
    side_by_side: int
    settings: Mapping[str, tuple[Any, ...]]

    def rate(self, stage: str, batch: int | None, value: str | None = None) -> Rate | None:
        """The rate of a stage; None where neither it nor its like was measured.

        Args:
            stage: its name in the account of `stages`.
            batch: examples at a time that are asked for.
            value: PPO's value network that is asked for.
        """
        for name in (stage, *ALIKE.get(stage, ())):
            there = [row for row in self.stages if row.stage == name and row.operations and row.seconds > 0]
            if there:
                nearest = min(_distance(row, batch, value) for row in there)
                near = [row for row in there if _distance(row, batch, value) == nearest]
                seconds = sum(row.seconds for row in near)
                operations = sum(row.operations or 0.0 for row in near) / seconds
                return Rate(name, operations, seconds, _differs(near, batch, value))
        return None

    def each(self, stage: str) -> float:
        """Mean seconds of a stage that is counted by the times it is done; 0 where it took too little for a row."""
        there = [row for row in self.stages if row.stage == stage]
        return sum(row.seconds for row in there) / sum(row.count for row in there) if there else 0.0


def _distance(row: Measured, batch: int | None, value: str | None) -> tuple[bool, float]:
    """How far a measurement's settings are from those asked for: another network, then the batch's ratio."""
    other = value is not None and row.values != (value,)
    return other, 0.0 if batch is None else max((abs(math.log(b / batch)) for b in row.batches), default=math.inf)


def _differs(rows: Sequence[Measured], batch: int | None, value: str | None) -> str:
    said = []
    batches = sorted({b for row in rows for b in row.batches})
    if batch is not None and batches != [batch]:
        said.append(f"batches of {_listed(batches) or 'unknown size'}, here {batch:,}")
    values = sorted({v for row in rows for v in row.values})
    if value is not None and values != [value]:
        said.append(f"ppo.value={_listed(values)}, here {value}, which `{MEASURING[f'ppo, {value} value']}` measures")
    machines = sorted({(str(row.precision), row.threads or 0) for row in rows})
    if len(machines) > 1:
        words = [p if not t else f"{p} on {t} thread{'' if t == 1 else 's'}" for p, t in machines]
        said.append(f"measured in {_listed(words)}")
    return "; ".join(said)


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


def command(model: str, stage: str | None = None, value: str | None = None) -> str:
    """What measures a stage; without one, what all such commands begin with.

    Args:
        model: that is measured.
        stage: its name in the account of `stages`.
        value: PPO's value network.
    """
    found = f"python -m benchmarks stages experiment=rehearsal model={model} {_COMMON}"
    if stage is None:
        return found
    if stage in ("reservoir", "learned_scores"):
        return f"{found} {MEASURING['best_of_n']}"
    if stage.startswith("ppo") or stage == "reward_model":
        return f"{found} {MEASURING['ppo, shared value' if value == 'shared' else 'ppo, own value']}"
    return f"{found} {MEASURING['dpo']}"


def shape(sizes: Sizes) -> str:
    """A model's sizes in words."""
    return f"{sizes.layers} layers, width {sizes.width}, vocabulary {sizes.vocabulary:,}"


# --- reading ----------------------------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> Results:
    """All results as one.

    Raises:
        ConfigError: a file that is no result, results of different devices, models or kinds of reward, or of runs in
            several processes.
    """
    try:
        return _read(paths)
    except (KeyError, TypeError, AttributeError, OSError) as error:
        names = " or ".join(map(str, paths))
        raise ConfigError(
            f"{names} is damaged ({type(error).__name__}: {error}); measure again with `python -m benchmarks stages`"
        ) from error


def _read(paths: Sequence[Path]) -> Results:
    stages: list[Measured] = []
    facts: dict[str, list[Any]] = {
        name: [] for name in ("device", "model", "commit", "command", "reward", "slots", "settings", "name")
    }
    for path in paths:
        file, found = _opened(path)
        facts["device"].append((found["device"], found["device"], file))
        facts["commit"].append(found["commit"])
        for account in found["accounts"]:
            configs = _configs(account["command"], file)
            facts["command"].append(account["command"])
            facts["slots"].append(int(account["slots"]))
            for config in configs:
                its, name = sizes_of(config["model"]), config["model"]["name"]
                facts["model"].append((its, f"{name} ({shape(its)})", file))
                facts["name"].append(name)
                scored = scores_by_model(config["reward"])
                facts["reward"].append((scored, config["reward"]["name"], file))
                facts["settings"].append({key: setting(config, key) for key in SETTINGS})
                if config["trainer"]["processes"] != 1:
                    raise ConfigError(
                        f"{file} is of runs in {config['trainer']['processes']} processes; measure with one, as the "
                        "hours are of one device"
                    )
            stages += [_measured(row, configs) for row in account["rows"]]
    device = _one("device", facts["device"])
    sizes: Sizes = _one("model", facts["model"])
    commits, commands = (tuple(dict.fromkeys(facts[name])) for name in ("commit", "command"))
    return Results(
        device=device,
        model=facts["name"][0],
        sizes=sizes,
        commits=commits,
        commands=commands,
        stages=tuple(stages),
        reward_included=_one("true reward", facts["reward"]),
        side_by_side=max(facts["slots"]),
        settings={key: tuple(dict.fromkeys(its[key] for its in facts["settings"])) for key in SETTINGS},
    )


def setting(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where the configuration has none."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _opened(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {FILE}" if path.is_dir() else "is not there"
        raise ConfigError(f"{path} {what}; give the folder that `python -m benchmarks stages` saved to")
    try:
        found = json.loads(file.read_text())
        known = {"device", "commit", "accounts"} <= set(found) and bool(found["accounts"])
    except (ValueError, TypeError):
        known = False
    if not known:
        raise ConfigError(f"{file} is no result of `python -m benchmarks stages`; give the folder that it saved to")
    return file, dict(found)


def _configs(command: str, file: Path) -> list[Mapping[str, Any]]:
    """The configuration of every run of an account: composed again, or read where the runs were only read, too.

    Raises:
        ConfigError: they cannot be had any more.
    """
    words = shlex.split(command)
    if words[:2] == ["python", "train.py"]:
        return [asdict(run) for run in composed(jobs_of([word for word in words[2:] if word != "-m"]))]
    folders = sorted(done.parent for done in (Path(command) / "runs").glob(f"*/{MANIFEST}"))
    if not folders:
        raise ConfigError(f"{file} is of {command}, where no run is any more to tell its model; measure again")
    return [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]


def _measured(row: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> Measured:
    stage = str(row["stage"])
    algo, _, part = stage.rpartition(": ")
    mine = [config for config in configs if not part or not algo or config["algo"] == algo]
    batches = tuple(dict.fromkeys(b for b in (batch_of(stage, config) for config in mine) if b is not None))
    values = tuple(dict.fromkeys(str(c["ppo"]["value"]) for c in mine)) if stage == "ppo: training" else ()
    same = {name: row[name] for name in ("count", "seconds", "operations", "precision", "threads")}
    return Measured(stage, **same, batches=batches, values=values)


def _one(what: str, found: Sequence[tuple[Any, str, Path]]) -> Any:
    """The value that all have.

    Args:
        what: it is.
        found: value, its name and file of each.

    Raises:
        ConfigError: naming two that differ.
    """
    first, name, file = found[0]
    for other, theirs, place in found[1:]:
        if other != first:
            raise ConfigError(
                f"results of two {what}s: {file} is of {name} and {place} of {theirs}; give those of one alone"
            )
    return first
