"""A run's folder: the policy is trained and evaluated there, and everything that it came to is left there."""

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.artifacts.files import MANIFEST, check_manifest, hash_of, in_use, write_json, write_manifest
from imdb_rlhf.config.algos import BestOfNRun, OwnModelRun, RewardModelRun
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.config.run import NOT_IN_HASH, KeepModel
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.evaluation import reservoir
from imdb_rlhf.evaluation.evaluate import evaluate, metrics
from imdb_rlhf.evaluation.stats import distinct_n
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.card import card
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.runs import record
from imdb_rlhf.tracking import Trackers
from imdb_rlhf.tracking.jsonl import JsonlLog, read
from imdb_rlhf.tracking.wandb import WandbTracker, run_id, sync_command
from imdb_rlhf.training import checkpoint, loop

# Not part of what a run came to: a mirror that may be added later.
OUTSIDE = ("wandb/*", "wandb_id")
# What an unfinished run goes on from.
SCAFFOLD = (f"{record.PARTS}/*", "checkpoint*/*", "best/*")


class RunFolder:
    """`<outputs>/runs/<algo>-<knob>-s<seed>-<hash8>` of one configuration."""

    def __init__(self, pipeline: Pipeline, config_yaml: str, overrides: list[str]) -> None:
        self.pipeline, self.run, self.runtime = pipeline, pipeline.run, pipeline.runtime
        self.console, self.config_yaml, self.overrides = pipeline.console, config_yaml, overrides
        knob = "" if self.run.knob is None else f"-{self.run.knob[0]}{self.run.knob[1]:g}"
        self.name = f"{self.run.algo}{knob}-s{self.run.seed}-{self.config_hash[:8]}"
        self.path = Path(self.run.paths.outputs) / "runs" / self.name

    @cached_property
    def config_hash(self) -> str:
        """Of everything that the run's numbers depend on."""
        config = {key: value for key, value in asdict(self.run).items() if key not in NOT_IN_HASH}
        for places in (config["data"], config["model"], config["reward"], config["sft"]):
            places.pop("path", None)  # where it lies does not matter; its content is in the artifacts' keys
        if isinstance(self.run, OwnModelRun):
            config["own_model"] |= {"path": None, "name": self.run.variant}  # the name stands in the summary
        config["trainer"].pop("checkpoint_every")
        return hash_of({"config": config, "artifacts": self.pipeline.keys(), "machine": self.runtime.facts()}, 32)

    @property
    def leader(self) -> bool:
        """Whether this process writes."""
        return self.runtime.rank == 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            RunError: another one is in it.
        """
        if not self.leader:
            yield
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"paths.outputs={self.run.paths.outputs} cannot be made: {error}; give another") from error
        with in_use(self.path):
            yield

    def finished(self) -> bool:
        """Whether the run is done and its files are what they were.

        Raises:
            RunError: a file was changed since.
        """
        problem = check_manifest(self.path) if self.leader and (self.path / MANIFEST).exists() else None
        done, problem = self.runtime.broadcast(((self.path / MANIFEST).exists(), problem))
        if problem is not None:
            raise RunError(f"{self.path} was changed after it was finished: {problem}; move it away to run again")
        return done

    def plan(self) -> None:
        """Say what would become of the folder."""
        state = "finished, would not be run again" if (self.path / MANIFEST).exists() else "to be made"
        self.console.note(f"{self.run.algo:<12} {state}   {self.path}")

    def begin(self) -> None:
        """Make the folder, with the configuration and the artifacts that it will use."""
        if self.leader:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(self.config_yaml)
            write_json(self.path / "artifacts.json", self.pipeline.keys())
            write_json(self.path / "overrides.json", self.overrides)

    # --- training and evaluation -----------------------------------------------------------------------------------

    def train_and_evaluate(self) -> None:
        """Train the policy from the reference, evaluate it as it goes, and leave the results.

        Raises:
            RunError: a number that is not finite, or no preference pair is left.
            Stopped: a signal came and a checkpoint is written.
        """
        began = time.perf_counter()
        found = checkpoint.load(self.path)
        start = 0 if found is None else found.step
        trackers = self._trackers(start)
        try:
            result, table = self._work(trackers, start, began)
        except BaseException as error:
            trackers.finish({}, exit_code=75 if isinstance(error, Stopped) else 1)
            raise
        if self.leader:
            self._show(result, table)

    def _work(self, trackers: Trackers, start: int, began: float) -> tuple[dict[str, Any], pd.DataFrame]:
        run, pipeline = self.run, self.pipeline
        before = pipeline.evaluation("reference")
        if isinstance(run, RewardModelRun):
            return self._reward_model(trackers, began)
        base = pipeline.evaluation("base") if pipeline.has_base else None
        extra: dict[str, Any] = {}
        estimates = self._best_of_n(before, base) if isinstance(run, BestOfNRun) else {}
        policy = None
        if run.algo in ALGOS:
            policy = pipeline.reference_policy()
            extra = self._train(policy, trackers, start)
        elif self.leader:
            frame = pipeline.evaluation("own_model") if isinstance(run, OwnModelRun) else before
            if isinstance(run, BestOfNRun):
                frame = reservoir.draws(pipeline.reservoir, run.best_of_n.selector, run.n, run.evaluation.samples)
            record.keep_point(self.path, frame, 0)
            values: dict[str, Any] = metrics(frame)
            if isinstance(run, BestOfNRun):  # the estimates of the whole reservoir instead of the draws' means
                values |= {f"eval/{key}": estimates[key] for key in ("reward", "reward_logit", "kl")}
                values = {key: value for key, value in values.items() if key not in ("eval/kl_per_token", "eval/kl_k1")}
            trackers.log({"stage": run.algo, "step": 0} | values)
        self.runtime.barrier()
        points = record.points(self.path)
        self.runtime.barrier()  # rank 0 removes them below
        kept = record.best_step(points) if run.keep_model == KeepModel.best else max(points)
        seconds = time.perf_counter() - began
        result = record.summary(run, self.name, points[kept], before, self.config_hash, seconds, pipeline.seconds, base)
        if isinstance(run, BestOfNRun):
            result |= estimates
            # distinct-2 falls as the text grows: on as many samples as there are draws
            few = before[(before["split"] == "test") & (before["sample_id"] < result["samples_per_prompt"])]
            result["reference"]["distinct_2"] = distinct_n(few["completion"])
        if run.uses_learned_reward:
            report = json.loads((pipeline.path("reward_model") / "report.json").read_text())
            extra["reward_model"] = record.learned_reward(report)
        result |= extra
        table = record.samples(points[kept], before)
        if self.leader:
            self._leave(policy, points, result, table)
            self._mirror(trackers, table, result)
        self.runtime.barrier()
        return result, table

    def _best_of_n(self, before: pd.DataFrame, base: pd.DataFrame | None) -> dict[str, Any]:
        """What the reservoir says of best-of-N."""
        run = self.run
        assert isinstance(run, BestOfNRun)
        others = {"win_rate": before} | ({} if base is None else {"win_rate_base": base})
        return reservoir.summary(self.pipeline.reservoir, run.best_of_n.selector, run.n, others, run.evaluation)

    def _reward_model(self, trackers: Trackers, began: float) -> tuple[dict[str, Any], pd.DataFrame]:
        """The account of the reward model, which its stage has rendered, as a run of its own."""
        source = self.pipeline.path("reward_model")
        report = json.loads((source / "report.json").read_text())
        seconds = time.perf_counter() - began + self.pipeline.artifacts["reward_model"].seconds
        result = record.reward_model(self.run, self.name, report, self.config_hash, seconds)
        table = pd.read_parquet(source / "scores.parquet")
        if self.leader:
            for row in read(source / "metrics.jsonl"):
                trackers.log(row)
            if self.run.keep_model != KeepModel.none:
                shutil.copytree(source / "model", self.path / "model", dirs_exist_ok=True)
                shutil.copy(source / "normalisation.json", self.path / "model" / "normalisation.json")
            table.to_parquet(self.path / "scores.parquet", index=False)
            write_json(self.path / "summary.json", result)
            write_manifest(self.path, (*OUTSIDE, *SCAFFOLD))
            self._mirror_reward_model(trackers, table, result)
        self.runtime.barrier()
        return result, table

    def _train(self, policy: Policy, trackers: Trackers, start: int) -> dict[str, Any]:
        """Train the policy with evaluations on the way; what the algorithm itself reports of it."""
        run, pipeline = self.run, self.pipeline
        made = pipeline.materials(policy)
        reference = made.reference
        algorithm = ALGOS[run.algo].from_materials(made, run)
        self.console.note(f"{run.algo:<12} {algorithm.remark()}" + (f"; going on at step {start}" if start else ""))
        if run.data.preferences is not None:
            self.console.note(
                "             pairs as they stand in data.preferences: pairs.min_margin and pairs.ties do not apply"
            )
        wanted = pipeline.evaluation_prompts()
        if self.leader:
            record.drop_points(self.path, start)
        self.runtime.barrier()
        done = record.points(self.path)
        best = max((metrics(frame)["eval/validation_reward"] for frame in done.values()), default=-float("inf"))

        def evaluate_at(step: int) -> dict[str, float]:
            nonlocal best
            frame = evaluate(
                policy, reference, pipeline.reward, wanted, run.evaluation, run.generation, self.runtime, step
            )
            values = metrics(frame)
            if run.uses_learned_reward:
                test = frame[frame["split"] == "test"]
                scores = pipeline.learned_reward.score_ids(list(test["prompt_ids"]), list(test["completion_ids"]))
                values["eval/learned_reward"] = float(scores.mean())
            if self.leader:
                record.keep_point(self.path, frame, step)
                trackers.histogram("eval/reward_histogram", frame[frame["split"] == "test"]["reward"].tolist(), step)
                if run.keep_model == KeepModel.best and values["eval/validation_reward"] > best:
                    policies.save(policy, self.path / "best", "", run.generation.temperature)
            best = max(best, values["eval/validation_reward"])
            return values

        def advance(values: dict[str, float]) -> None:
            names = {"loss": "loss", "ppo/score": "score", "ppo/kl": "rollout KL"}
            names |= {"eval/reward": "reward", "eval/kl": "KL"}
            progress.advance(1, **{names[key]: value for key, value in values.items() if key in names})

        settings = pipeline.tools.policy_settings(algorithm.period)
        with self.console.progress(run.algo, algorithm.steps, start=start) as progress:
            loop.train(algorithm, settings, self.runtime, self.path, loop.Hooks(trackers.log, advance, evaluate_at))
        return algorithm.report()

    def _leave(
        self, policy: Policy | None, points: dict[int, pd.DataFrame], result: dict[str, Any], table: pd.DataFrame
    ) -> None:
        run = self.run
        record.evaluations(points).to_parquet(self.path / "evaluations.parquet", index=False)
        table.to_parquet(self.path / "samples.parquet", index=False)
        if isinstance(run, BestOfNRun):
            rows = reservoir.curve(self.pipeline.reservoir, run.best_of_n.selector)
            rows.to_parquet(self.path / "curve.parquet", index=False)
        write_json(self.path / "summary.json", result)
        shutil.rmtree(self.path / "model", ignore_errors=True)
        if isinstance(run, BestOfNRun | OwnModelRun):
            pass  # its model is the reference, or lies elsewhere
        elif run.keep_model == KeepModel.best and (self.path / "best").exists():
            shutil.copytree(self.path / "best", self.path / "model")
            (self.path / "model" / "README.md").write_text(card(run, result))
        elif run.keep_model != KeepModel.none:
            kept = policy or self.pipeline.reference_policy()
            policies.save(kept, self.path / "model", card(run, result), run.generation.temperature)
        # sealed before anything is removed: a kill in between leaves either a finished run or one to go on with
        write_manifest(self.path, (*OUTSIDE, *SCAFFOLD))
        shutil.rmtree(self.path / record.PARTS)
        shutil.rmtree(self.path / "best", ignore_errors=True)
        checkpoint.remove(self.path)

    # --- tracking --------------------------------------------------------------------------------------------------

    def _trackers(self, start: int) -> Trackers:
        if not self.leader:
            return Trackers()
        trackers = Trackers([JsonlLog(self.path / "metrics.jsonl", start or None)])
        mirror = self._wandb()
        if mirror is not None:
            trackers.append(mirror)
        return trackers

    def _wandb(self) -> WandbTracker | None:
        logger = self.run.logger
        if not isinstance(logger, WandbLogger):
            return None
        return WandbTracker(
            folder=self.path,
            config=_plain(asdict(self.run)),
            project=logger.project,
            entity=logger.entity,
            group=logger.group or f"{self.run.data.name}-{self.run.reward.name}",
            name=self.name,
            job_type=self.run.algo,
            run_id=run_id(self.path, self.config_hash),
            mode=cast(Any, str(logger.mode)),
            tags=list(logger.tags),
            console_warn=self.console.warn,
        )

    def _mirror(self, trackers: Trackers, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        columns = ["prompt", "reference", "reference_reward", "policy", "policy_reward", "kl", "log_ratio"]
        first = table[table["sample_id"] == 0].head(100)
        trackers.table("samples", columns, first[columns].values.tolist())
        for key, whose in (("reward_before", "reference"), ("reward_after", "policy")):
            trackers.histogram(key, table[f"{whose}_reward"].tolist(), int(result["step"]))
        trackers.finish(result)

    def _mirror_reward_model(self, trackers: Trackers, table: pd.DataFrame, result: Mapping[str, Any]) -> None:
        columns = ["lower", "upper", "count", "predicted", "observed"]
        bins = [[row[column] for column in columns] for row in result["reliability"]]
        trackers.table("reliability", columns, bins)
        trackers.histogram("score", table["score"].tolist(), int(result["step"]))
        trackers.finish({key: value for key, value in result.items() if key != "reliability"})

    def show_again(self) -> None:
        """Say what a finished run came to; a logger that has not seen it is given its metrics."""
        if not self.leader:
            return
        result = json.loads((self.path / "summary.json").read_text())
        held = isinstance(self.run, RewardModelRun)
        table = pd.read_parquet(self.path / ("scores.parquet" if held else "samples.parquet"))
        self.console.note(f"{self.run.algo:<12} finished already, not run again: {self.path}")
        if isinstance(self.run.logger, WandbLogger) and not (self.path / "wandb").exists():
            mirror = self._wandb()
            if mirror is not None:
                mirror.replay(read(self.path / "metrics.jsonl"))
                show = self._mirror_reward_model if held else self._mirror
                show(Trackers([mirror]), table, result)
        self._show(result, table)

    def _show(self, result: Mapping[str, Any], table: pd.DataFrame) -> None:
        if isinstance(self.run, RewardModelRun):
            self.console.reliability(result["reliability"])
        else:
            self.console.samples(record.shown(table))
        places = {"folder": str(self.path), "metrics": str(self.path / "metrics.jsonl")}
        if (self.path / "model").exists():
            places["model"] = str(self.path / "model")
        if (self.path / "wandb").exists():
            places["W&B"] = sync_command(self.path) or "online"
        if isinstance(self.run, OwnModelRun):
            places["frontier"] = self._frontier()
        self.console.result(result, places)

    def _frontier(self) -> str:
        """The command that draws this run beside the others of its folder that share its prompts and reference."""
        mine = self.pipeline.keys()["reference"]
        runs = [file.parent for file in sorted(self.path.parent.glob("*/artifacts.json"))]
        alike = [run for run in runs if json.loads((run / "artifacts.json").read_text()).get("reference") == mine]
        places = [self.path.parent] if alike == runs else alike
        return f"python -m imdb_rlhf.frontier {shlex.join(map(str, places))}"


def _plain(value: Any) -> Any:
    """Enums as their values, for W&B."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if hasattr(value, "value") else value
