"""Tiny runs of the whole experiment: how tests start them, and what they read of their folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.tracking.jsonl import read
from tests.command import Answer, train

# The last token decides: so small a policy says nothing that the lexicon knows.
REWARD = """
def score(texts):
    return [sum(map(ord, text[-8:])) % 97 / 97 for text in texts]
"""
TINY = [
    "experiment=smoke",
    "trainer.threads=1",
    "trainer.device=cpu",
    "generation.max_new_tokens=8",
    "data.sft_reviews=200",
    "data.prompts.train=12",
    "data.prompts.validation=4",
    "data.prompts.test=8",
    "evaluation.bootstrap=100",
]
STEPS = ["policy.steps=3", "evaluation.every=2"]


def well(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    return answer


def one_line(answer: Answer, code: int, start: str) -> str:
    assert answer.code == code, answer
    assert answer.err.startswith(start), answer.err
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n")
    return answer.err


def stages_made(answer: Answer) -> dict[str, bool]:
    """Stage -> whether it was made, as a run says it; the others were reused."""
    words = [line.split()[:2] for line in answer.out.splitlines() if len(line.split()) > 1]
    return {stage: what == "made" for stage, what in words if what in ("made", "reused")}


def files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def runs(outputs: Path, start: str = "") -> list[Path]:
    return sorted(path for path in (outputs / "runs").glob(f"{start}*") if path.is_dir())


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def keys_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "artifacts.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics without the time that they took."""
    lines = read(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


@dataclass(frozen=True)
class First:
    """A finished run and the command that made it."""

    outputs: Path
    values: list[str]
    answer: Answer
    folder: Path

    def __call__(self, *more: str, algo: str = "dpo") -> Answer:
        """Another run beside it, which may reuse what it made."""
        steps = STEPS if algo in ("dpo", "unlikelihood", "preferred_ft") else []
        return train(*self.values, f"algo={algo}", *steps, *more)


def reused_keys(first: First) -> set[str]:
    """The keys of the artifacts that the first run uses."""
    return set(json.loads((first.folder / "artifacts.json").read_text()).values())


def preferences(first: First) -> Path:
    key = json.loads((first.folder / "artifacts.json").read_text())["groups"]
    return first.outputs / "artifacts" / "groups" / key / "preferences.parquet"


# --- every method

PPO = ["ppo.episodes=16", "ppo.batch_size=8", "ppo.minibatch_size=4", "ppo.epochs=2", "evaluation.every=1"]
# The reservoir says where to begin: the smoke experiment's own reward is one that there is nothing to learn from.
PPO += ["target_kl=0.05", "ppo.normalize=true", "ppo.initial_kl_coefficient=null", "ppo.optim.lr=1e-2"]
TRUE = ["algo=best_of_n", "best_of_n.selector=ground_truth"]
ONLINE = {
    name: [f"algo={name}", f"{name}.optim.lr=1e-2", f"{name}.optim.warmup_steps=0"]
    for name in ("reinforce", "rloo", "grpo", "online_dpo")
}
MOVING = [*STEPS, "policy.optim.lr=1e-3", "policy.optim.warmup_steps=0"]
METHODS = {
    "unlikelihood": ["algo=unlikelihood", "alpha=0.1", *MOVING],
    "preferred_ft": ["algo=preferred_ft", *MOVING],
    "ipo": ["algo=dpo", "dpo.loss=ipo", "dpo.average_logprobs=true", *MOVING],
    "plackett_luce": ["algo=dpo", "dpo.loss=plackett_luce", *MOVING],
    "kto": ["algo=kto", *MOVING],
    "reward_model": ["algo=reward_model"],
    "bon_sft": ["algo=bon_sft", *MOVING, "policy.batch_size=4"],
    "ppo": ["algo=ppo", *PPO],
    **ONLINE,
    "best_of_n": ["algo=best_of_n", "n=4"],
    "ppo_true": ["algo=ppo", "ppo.reward=ground_truth", *PPO],
    "best_of_1": [*TRUE, "n=1"],
    "best_of_2": [*TRUE, "n=2"],
    "best_of_8": [*TRUE, "n=8"],
}
LEARNED = {"reward_model", "ppo", "best_of_n", "bon_sft", *ONLINE}
ALWAYS = {"config.yaml", "overrides.json", "artifacts.json", "metrics.jsonl", "summary.json", "report.html", "DONE"}


@dataclass(frozen=True)
class Done:
    """A finished run of a method."""

    command: list[str]
    answer: Answer
    folder: Path
    outputs: Path

    @property
    def summary(self) -> dict[str, Any]:
        return summary_of(self.folder)

    def artifact(self, name: str) -> Path:
        """The folder of an artifact that it used."""
        return self.outputs / "artifacts" / name / keys_of(self.folder)[name]

    def again(self, *more: str) -> Answer:
        return train(*self.command, *more)


def logits_of(table: pd.DataFrame) -> np.ndarray:
    """(prompts, samples) true log-odds of the test prompts of a table."""
    part = table[table["split"] == "test"].sort_values(["prompt_id", "sample_id"])
    return part["reward_logit"].to_numpy().reshape(part["prompt_id"].nunique(), -1)


def win_rates(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(prompts,) the share of all pairs of samples that the first wins; ties count half."""
    gaps = first[:, :, None] - second[:, None, :]
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean((1, 2))


# --- settings without an experiment file

# The smoke experiment changes keys that generated reviews alone have.
MODEL = ["model.layers=1", "model.width=32", "model.heads=2", "model.tokenizer_size=400", "model.vocabulary=400"]
PLAIN = [value for value in TINY if not value.startswith("experiment=")]
PLAIN += [
    *MODEL,
    "logger=none",
    "trainer.precision=float32",
    "sft.epochs=1",
    "policy.batch_size=16",
    "pairs.ties=random",
    "pairs.min_margin=0",
]
