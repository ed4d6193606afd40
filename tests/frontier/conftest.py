"""Finished run folders made of given numbers, as `imdb_rlhf.runs` leaves them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from imdb_rlhf.artifacts.files import write_manifest
from imdb_rlhf.artifacts.store import INPUTS

Values = Mapping[int, tuple[np.ndarray, np.ndarray]]  # step -> reward and KL, (prompts, samples) each


def config(algo: str, knob: tuple[str, float] | None, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "algo": algo,
        "seed": seed,
        "model": {"name": "tiny", "layers": 2},
        "data": {"name": "embedded", "seed": 0, "prompts": {"max_tokens": 8}, "path": None},
        "reward": {"name": "lexicon"},
        "generation": {"max_new_tokens": 8, "temperature": 1.0},
        "sft": {"path": None, "epochs": 1.0},
        "evaluation": {"seed": 0, "samples": 2, "every": 5, "bootstrap": 400, "confidence": 0.95},
        "trainer": {"threads": 1},
        "logger": {"name": "none"},
        "paths": {"outputs": "outputs"},
        "pairs": {"labels": "deterministic"},
    }
    if algo == "ppo":
        values["ppo"] = {"reward": "learned", "preset": "small", "kl_coefficient": None}
    if knob is not None:
        values[knob[0]] = knob[1]
    for key, value in more.items():
        node = values
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = value
    return values


def rows(values: Values, split: str) -> pd.DataFrame:
    parts = []
    for step, (reward, kl) in values.items():
        prompts, samples = reward.shape
        parts.append(
            pd.DataFrame(
                {
                    "step": step,
                    "split": split,
                    "prompt_id": np.repeat(np.arange(prompts), samples),
                    "sample_id": np.tile(np.arange(samples), prompts),
                    "reward": reward.ravel(),
                    "reward_logit": reward.ravel(),
                    "kl": kl.ravel(),
                    "kl_k1": kl.ravel(),
                    "length": 8,
                    "finished": True,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _artifact(outputs: Path, stage: str, key: str, inputs: Mapping[str, Any], **tables: pd.DataFrame) -> None:
    folder = outputs / "artifacts" / stage / key
    if folder.exists():
        return
    folder.mkdir(parents=True)
    (folder / INPUTS).write_text(json.dumps({"inputs": inputs}))
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    write_manifest(folder)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes one run folder.

    Arguments: algo, knob, seed; test (step -> reward, KL) and validation, the same where it is not given; reference
    (prompts, samples) rewards; reservoir (prompts, M) rewards; learned (prompts, M) scores of it; more: keys of the
    configuration that differ; summary: likewise; world: the name of the reference artifact.
    """

    def write(
        algo: str,
        knob: tuple[str, float] | None,
        test: Values,
        *,
        seed: int = 0,
        validation: Values | None = None,
        reference: np.ndarray | None = None,
        reservoir: np.ndarray | None = None,
        learned: np.ndarray | None = None,
        more: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        world: str = "one",
        name: str | None = None,
        outputs: Path = tmp_path / "outputs",
    ) -> Path:
        shape = next(iter(test.values()))[0].shape
        before = np.full(shape, 0.5) if reference is None else reference
        settings = config(algo, knob, seed, more or {})
        knob_name = "" if knob is None else f"-{knob[0]}{knob[1]:g}"
        folder = outputs / "runs" / (name or f"{algo}{knob_name}-s{seed}-{world}")
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "overrides.json").write_text(json.dumps([f"algo={algo}"]))
        both = pd.concat([rows(test, "test"), rows(test if validation is None else validation, "validation")])
        both.to_parquet(folder / "evaluations.parquet", index=False)
        last = max(test)
        samples = rows({last: test[last]}, "test").rename(columns={"reward": "policy_reward", "kl_k1": "log_ratio"})
        samples = samples.assign(
            reference_reward=before.ravel(), prompt="a film", reference=" before", policy=" after", kl=0.0
        )
        samples.drop(columns=["step", "split"]).to_parquet(folder / "samples.parquet", index=False)
        results = {
            "name": folder.name,
            "algo": algo,
            "variant": "learned, small" if algo == "ppo" else None,
            "knob": None if knob is None else {"name": knob[0], "value": knob[1]},
            "seed": seed,
            "step": last,
            "reward": float(test[last][0].mean()),
            "kl": float(test[last][1].mean()),
            "reward_range": [None, None] if settings["reward"]["name"] == "own" else [0.0, 1.0],
            "seconds": 1.0,
        }
        (folder / "summary.json").write_text(json.dumps(results | dict(summary or {})))
        (folder / "metrics.jsonl").write_text(json.dumps({"stage": algo, "step": last, "train/loss": 1.0}) + "\n")
        inputs = {
            "evaluation": {"seed": 0, "samples": shape[1], "batch_size": 4},
            "reference": f"sft of {world}",
            "reward": settings["reward"],
            "data": "d",
            "generation": settings["generation"],
        }
        frame = pd.concat([rows({0: (before, np.zeros(before.shape))}, split) for split in ("test", "validation")])
        _artifact(outputs, "reference", world, inputs, evaluation=frame)
        artifacts = {"data": "d", "reference": world}
        if reservoir is not None:
            table = rows({0: (reservoir, np.zeros(reservoir.shape))}, "test")
            key = f"{world}{reservoir.shape[1]}"
            _artifact(outputs, "reservoir", key, {}, reservoir=table)
            artifacts["reservoir"] = key
            if learned is not None:
                scores = table[["split", "prompt_id", "sample_id"]].assign(learned=learned.ravel())
                _artifact(outputs, "learned_scores", key, {}, scores=scores)
                artifacts["learned_scores"] = key
        (folder / "artifacts.json").write_text(json.dumps(artifacts))
        write_manifest(folder)
        return folder

    return write
