"""Model operations of every stage: the yardstick of all shares of the matrix-product peak.

Counted is the model's work, whoever does it: the products of weights and of attention, the output layer only where it
is applied, each distinct row once. A multiplication and an addition are two operations; the backward pass is twice the
forward pass. Padding, recomputation and rows that are scored twice are a program's own affair and are not counted.

The same count serves a run that is finished (`Finished`: lengths as they were sampled) and one that only exists as a
configuration (`Planned`: every limit is reached).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.algos.batches import steps_for
from imdb_rlhf.config.stages import PairsConfig
from imdb_rlhf.data.pairs import Pairs, load_pairs, shuffled
from imdb_rlhf.stages.reference import HELD_OUT_ROWS
from imdb_rlhf.training.loop import evaluation_due

# The key of a stage's batch, by the stage or by the end of its name.
BATCHES = {
    **dict.fromkeys(("sft", "groups", "reward_model", "reservoir"), "{}.batch_size"),
    **dict.fromkeys(("reference", "base", "evaluations"), "evaluation.batch_size"),
    **dict.fromkeys(("learned_scores", "rescored"), "groups.batch_size"),
    "ppo: training": "ppo.minibatch_size",
    "training": "policy.batch_size",
}
SAMPLED = ("groups", "rescored", "reservoir", "learned_scores", "reference", "base", "own_model", "evaluations")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT-2: blocks, entries of a state, rows of the output layer."""

    layers: int
    width: int
    vocabulary: int

    @staticmethod
    def of(model: Mapping[str, Any]) -> "Sizes | None":
        """The sizes in a `model:` section or in a Hugging Face `config.json`; None if it does not hold them."""
        for names in (("layers", "width", "vocabulary"), ("n_layer", "n_embd", "vocab_size")):
            if all(name in model for name in names):
                return Sizes(*(int(model[name]) for name in names))
        return None


@dataclass(frozen=True)
class Work:
    """The amount of work of a stage, the model operations of it (None where unknown), texts for the true reward."""

    amount: float | None = None
    unit: str = ""
    operations: float | None = None
    texts: float = 0.0


def batch_of(stage: str, config: Mapping[str, Any]) -> int | None:
    """Examples at a time in a stage, by the configuration; None where there is no such key."""
    section, _, name = BATCHES.get(stage, BATCHES.get(stage.rpartition(": ")[2], "")).format(stage).partition(".")
    return config.get(section, {}).get(name)


def forward(sizes: Sizes, tokens: Any, logits: Any) -> np.ndarray:
    """(rows,) operations of a forward pass over (rows,) tokens, with the output layer at (rows,) of them."""
    tokens = np.asarray(tokens, dtype=np.float64)
    weights = 12 * sizes.width**2  # query, key, value: 3; projection: 1; the two matrices of the perceptron: 4 each
    attention = 2 * tokens * sizes.width  # a token's products with all keys, and with all values
    blocks = 2 * tokens * sizes.layers * (weights + attention)
    return blocks + 2 * np.asarray(logits) * sizes.width * sizes.vocabulary


def sampled(sizes: Sizes, rows: np.ndarray) -> np.ndarray:
    """(rows,) operations of decoding (rows, 2) lengths of prompt and completion: the last token is not read."""
    return forward(sizes, rows.sum(1) - 1, rows[:, 1])


def scored(sizes: Sizes, rows: np.ndarray) -> np.ndarray:
    """(rows,) operations of the log-probs of whole completions."""
    return forward(sizes, rows.sum(1), rows[:, 1])


def bare(sizes: Sizes, rows: np.ndarray) -> np.ndarray:
    """(rows,) operations without the output layer: a scalar head or a value network."""
    return forward(sizes, rows.sum(1), 0)


@dataclass(frozen=True)
class Finished:
    """A finished run: lengths as they were sampled. `metrics` are its rows about the policy's training."""

    config: Mapping[str, Any]
    run: Path
    folders: Mapping[str, Path]
    metrics: list[dict[str, Any]]

    @property
    def sizes(self) -> Sizes | None:
        """Of the policy; None where it is no GPT-2."""
        file = self.folders.get("sft", Path()) / "model" / "config.json"
        return Sizes.of(json.loads(file.read_text()) if file.exists() else self.config["model"])

    @property
    def steps(self) -> int:
        """Optimizer steps of the policy."""
        return int(self.metrics[-1]["step"])

    def rows(self, stage: str) -> np.ndarray:
        """(rows, 2) lengths of prompt and completion in a stage; an episode of PPO has the mean lengths of all."""
        if stage == "sft":
            lengths = np.load(self.folders["data"] / "sft.npz")["lengths"].astype(np.int64)
            return np.stack([np.ones_like(lengths), lengths - 1], 1)
        if stage == "episodes":
            prompts = pd.read_parquet(self.folders["data"] / "prompts.parquet").query("split == 'train'")["ids"]
            lengths = [row["ppo/length"] for row in self.metrics if "ppo/length" in row]
            count = round(self.steps * self.config["ppo"]["minibatch_size"] / self.config["ppo"]["epochs"])
            return np.tile([round(prompts.map(len).mean()), round(float(np.mean(lengths)))], (count, 1))
        if stage == "evaluations":
            known = pd.read_parquet(self.folders["reference"] / "evaluation.parquet")
            prompts = known.drop_duplicates(["split", "prompt_id"]).set_index(["split", "prompt_id"])["prompt_ids"]
            frame = pd.read_parquet(self.run / "evaluations.parquet").set_index(["split", "prompt_id"])
            return np.stack([prompts.map(len)[frame.index], frame["length"]], 1)
        stage = {"learned_scores": "reservoir", "rescored": "groups"}.get(stage, stage)
        file = f"{stage if stage in ('groups', 'reservoir') else 'evaluation'}.parquet"
        table = pd.read_parquet(self.folders[stage] / file)
        return np.stack([table["prompt_ids"].map(len), table["completion_ids"].map(len)], 1)

    def pairs(self) -> Pairs:
        """The pairs of its groups, drawn again as the run drew them."""
        return load_pairs(
            self.folders["groups"], PairsConfig(**{"prompts": None, **self.config["pairs"]}), int(self.config["seed"])
        )[1]


@dataclass(frozen=True)
class Planned:
    """A configured run, of which nothing was sampled yet.

    Assumed: groups are sampled; prompts take every allowed length in turn, completions and SFT rows reach their limit;
    the rewards of a prompt's completions all differ; no batch of PPO is cut short.
    """

    config: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Optimizer steps of the policy."""
        if "ppo" in self.config:
            config = self.config["ppo"]
            return int(config["episodes"] // config["batch_size"] * self.period)
        config = self.config["policy"]
        return int(config["steps"] or steps_for(len(self.pairs().rows), config["batch_size"], config["epochs"]))

    @property
    def period(self) -> int:
        """Optimizer steps per batch of PPO's episodes; 1 in other methods."""
        config = self.config.get("ppo")
        return 1 if config is None else int(config["epochs"] * (config["batch_size"] // config["minibatch_size"]))

    def rows(self, stage: str) -> np.ndarray:
        """(rows, 2) lengths of prompt and completion in a stage."""
        config, prompts = self.config, self.config["data"]["prompts"]
        if stage == "sft":
            return np.tile([1, config["sft"]["max_tokens"] - 1], (config["data"]["sft_reviews"], 1))
        held_out = prompts["validation"] + prompts["test"]
        if stage in ("groups", "rescored"):
            count = prompts["train"] * config["groups"]["k"]
        elif stage in ("reservoir", "learned_scores"):
            count = held_out * config["reservoir"]["samples"]
        elif stage == "episodes":
            count = self.steps // self.period * config["ppo"]["batch_size"]
        else:
            points, every = 1, config["evaluation"]["every"]
            if stage == "evaluations":
                ends = range(self.period, self.steps + 1, self.period)
                points = sum(evaluation_due(done, every, self.steps, self.period) for done in ends)
            count = points * held_out * config["evaluation"]["samples"]
        lengths = np.resize(np.arange(prompts["min_tokens"], prompts["max_tokens"] + 1), count)
        return np.stack([lengths, np.full(count, config["generation"]["max_new_tokens"])], 1)

    def pairs(self) -> Pairs:
        """Every pair of every group; the later completion wins, as any order will do."""
        prompts, k = self.config["data"]["prompts"]["train"], self.config["groups"]["k"]
        within = np.array(list(combinations(range(k), 2)))[:, ::-1]
        rows = (k * np.arange(prompts)[:, None, None] + within).reshape(-1, 2)
        return Pairs(rows, np.repeat(np.arange(prompts), len(within)), {})


Source = Finished | Planned


def of_stage(stage: str, source: Source, sizes: Sizes) -> Work:
    """The work of a stage: an artifact's name, `ALGO: training` or `ALGO: evaluations`; all models have one size."""
    algo, _, part = stage.rpartition(": ")
    if part == "sft":
        return _sft(source, sizes)
    if part == "reward_model":
        return _reward_model(source, sizes)
    if part == "training":
        return _ppo(source, sizes) if algo == "ppo" else _preferences(source, sizes, winners=algo == "preferred_ft")
    if part not in SAMPLED:
        return Work()
    rows = source.rows(part)
    count = len(rows)
    if part == "learned_scores":
        return Work(count, "completions", float(bare(sizes, rows).sum()))
    if part == "rescored":
        return Work(count, "completions", float(scored(sizes, rows).sum()))
    drawn, read = float(sampled(sizes, rows).sum()), float(scored(sizes, rows).sum())
    if part in ("groups", "reservoir"):
        external = part == "groups" and source.config["data"].get("preferences") is not None
        return Work(count, "completions", read if external else drawn + read, count)
    return Work(count, "samples", drawn + 2 * read, count)  # scored under policy and reference


def _sft(source: Source, sizes: Sizes) -> Work:
    """Trained rows three times (forward, backward), the held-out ones once."""
    config, rows = source.config["sft"], source.rows("sft")
    held_out = min(HELD_OUT_ROWS, len(rows) // 10)
    examples = steps_for(len(rows) - held_out, config["batch_size"], config["epochs"]) * config["batch_size"]
    costs = scored(sizes, rows)
    operations = 3 * examples * costs[held_out:].mean() + costs[:held_out].sum()
    return Work(float(examples * rows.sum(1).mean()), "tokens", float(operations))


def _reward_model(source: Source, sizes: Sizes) -> Work:
    """Passes over the groups that are trained on, and over the others at evaluations and twice for the scale."""
    config, costs = source.config["reward_model"], bare(sizes, source.rows("groups"))
    trained, of_pairs = 1 - config["validation"], str(config["objective"]) == "pairs"
    examples = trained * (len(source.pairs().rows) if of_pairs else source.config["data"]["prompts"]["train"])
    if of_pairs and str(source.config["pairs"]["order"]) == "shuffled":
        each_pass = 2 * examples * costs.mean()  # hardly any completion is in a batch twice
    else:
        each_pass = trained * costs.sum()
    operations = 3 * config["epochs"] * each_pass + (config["evaluations"] + 2) * config["validation"] * costs.sum()
    return Work(steps_for(round(examples), config["batch_size"], config["epochs"]), "steps", float(operations))


def _preferences(source: Source, sizes: Sizes, *, winners: bool) -> Work:
    """The distinct completions (or winners) of each batch, forward and backward."""
    config, steps = source.config, source.steps
    if config.get("dpo", {}).get("loss") == "plackett_luce":
        return Work(steps, "steps")  # of rankings, which are not counted
    pairs, size = source.pairs(), config["policy"]["batch_size"]
    epochs = -(-steps * size // len(pairs.rows))
    orders = [shuffled(pairs, config["pairs"]["order"], int(config["seed"]), epoch) for epoch in range(epochs)]
    batches = np.concatenate(orders)[: steps * size].reshape(steps, size)
    completions = np.sort((pairs.rows[:, :1] if winners else pairs.rows)[batches].reshape(steps, -1), axis=1)
    distinct = np.ones_like(completions, dtype=bool)
    distinct[:, 1:] = completions[:, 1:] != completions[:, :-1]
    costs = scored(sizes, source.rows("groups"))
    return Work(steps, "steps", 3 * float(costs[completions[distinct]].sum()))


def _ppo(source: Source, sizes: Sizes) -> Work:
    """Episodes are sampled, scored under policy and reference, valued, and trained on in each epoch."""
    config, rows = source.config["ppo"], source.rows("episodes")
    value = bare(sizes, rows).sum() if str(config["value"]) == "own" else 0.0
    learned = bare(sizes, rows).sum() if str(config["reward"]) == "learned" else 0.0
    once = sampled(sizes, rows).sum() + 2 * scored(sizes, rows).sum() + value + learned
    operations = once + config["epochs"] * 3 * (scored(sizes, rows).sum() + value)
    return Work(source.steps, "steps", float(operations), 0.0 if str(config["reward"]) == "learned" else len(rows))
