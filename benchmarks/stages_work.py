"""Model operations of the experiment's stages, from what they left: rows and their lengths, steps, configuration.

Counted as in `flops.py`. What is sampled is counted as read once, token by token; what is scored under a model as read
once more. Of PPO and the reward model mean lengths are known, so that theirs are a few per cent off.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from benchmarks import flops
from imdb_rlhf.algos.batches import Stream
from imdb_rlhf.config.stages import PairsConfig
from imdb_rlhf.data import pairs, prompts
from imdb_rlhf.stages import HELD_OUT_ROWS

Rows = Sequence[tuple[int, int]]  # tokens of prompt and of completion


@dataclass(frozen=True)
class Sizes:
    """A GPT-2's, as `flops` wants them."""

    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Made:
    """A run, or an artifact's making, seen from its configuration.

    Attributes:
        config: the run's `config.yaml`.
        folders: of its artifacts, by stage.
    """

    config: Mapping[str, Any]
    folders: Mapping[str, Path]

    @property
    def sizes(self) -> Sizes | None:
        """Of the policy; None where it is no GPT-2."""
        file = self.folders.get("sft", Path()) / "model" / "config.json"
        if file.exists():
            found = json.loads(file.read_text())
            names = ("n_layer", "n_embd", "vocab_size")
        else:
            found, names = self.config["model"], ("layers", "width", "vocabulary")
        return Sizes(*(int(found[name]) for name in names)) if all(name in found for name in names) else None


def sampled(sizes: Sizes, rows: Rows) -> float:
    """Operations of decoding: the last token is drawn and not read."""
    return flops.forward(sizes, [(prompt + tail - 1, tail) for prompt, tail in rows])


def scored(sizes: Sizes, rows: Rows) -> float:
    """Operations of log-probs of whole completions."""
    return flops.forward(sizes, [(prompt + tail, tail) for prompt, tail in rows])


def bare(sizes: Sizes, rows: Rows) -> float:
    """Operations of the layers without the output layer: of a scalar head or a value network."""
    return flops.forward(sizes, [(prompt + tail, 0) for prompt, tail in rows])


def lengths(frame: pd.DataFrame) -> list[tuple[int, int]]:
    """Tokens of prompt and completion of each row of a table of completions."""
    return [(len(p), len(c)) for p, c in zip(frame["prompt_ids"], frame["completion_ids"], strict=True)]


# --- artifacts --------------------------------------------------------------------------------------------------------


def _report(folder: Path) -> dict[str, Any]:
    file = folder / "report.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _sft(made: Made, sizes: Sizes) -> float:
    rows = prompts.read_rows(made.folders["data"])
    kept = min(HELD_OUT_ROWS, len(rows) // 10)
    every = [(1, len(row) - 1) for row in rows]
    examples = int(_report(made.folders["sft"])["steps"]) * int(made.config["sft"]["batch_size"])
    return 3 * scored(sizes, every[kept:]) * examples / (len(rows) - kept) + scored(sizes, every[:kept])


def _groups(made: Made, sizes: Sizes) -> float:
    rows = lengths(pd.read_parquet(made.folders["groups"] / "groups.parquet"))
    brought = made.config["data"].get("preferences") is not None
    return scored(sizes, rows) + (0.0 if brought else sampled(sizes, rows))


def _reservoir(made: Made, sizes: Sizes) -> float:
    rows = lengths(pd.read_parquet(made.folders["reservoir"] / "reservoir.parquet"))
    return sampled(sizes, rows) + scored(sizes, rows)


def _learned_scores(made: Made, sizes: Sizes) -> float:
    return bare(sizes, lengths(pd.read_parquet(made.folders["reservoir"] / "reservoir.parquet")))


def _evaluated(name: str) -> Callable[[Made, Sizes], float]:
    def work(made: Made, sizes: Sizes) -> float:
        rows = lengths(pd.read_parquet(made.folders[name] / "evaluation.parquet"))
        return sampled(sizes, rows) + 2 * scored(sizes, rows)

    return work


def _reward_model(made: Made, sizes: Sizes) -> float:
    """Passes over the completions of training prefixes, and over the others at evaluations and for the scale."""
    config = made.config["reward_model"]
    rows = lengths(pd.read_parquet(made.folders["groups"] / "groups.parquet"))
    once, held = bare(sizes, rows), float(config["validation"])
    if str(made.config["pairs"]["order"]) == "shuffled" and str(config["objective"]) == "pairs":
        # hardly a completion stands twice in a batch
        trained = 2 * _report(made.folders["reward_model"])["pairs"] * once / len(rows)
    else:
        trained = (1 - held) * once
    return 3 * float(config["epochs"]) * trained + (int(config["evaluations"]) + 2) * held * once


ARTIFACTS: dict[str, Callable[[Made, Sizes], float]] = {
    "sft": _sft,
    "groups": _groups,
    "reference": _evaluated("reference"),
    "base": _evaluated("base"),
    "own_model": _evaluated("own_model"),
    "reservoir": _reservoir,
    "reward_model": _reward_model,
    "learned_scores": _learned_scores,
}


def of_artifact(name: str, made: Made) -> float | None:
    """Model operations of making an artifact; None where none are known (data, a classifier)."""
    sizes, work = made.sizes, ARTIFACTS.get(name)
    return None if sizes is None or work is None else work(made, sizes)


# --- a policy ---------------------------------------------------------------------------------------------------------


def of_training(made: Made, metrics: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """Model operations of a policy's training; None where they are not known.

    Args:
        made: the run.
        metrics: its `metrics.jsonl`.
        steps: optimizer steps that were done.
    """
    sizes, algo = made.sizes, made.config["algo"]
    if sizes is None:
        return None
    if algo == "ppo":
        return _ppo(made, sizes, metrics, steps)
    if algo in ("dpo", "unlikelihood", "preferred_ft") and "groups" in made.folders:
        rankings = made.config.get("dpo", {}).get("loss") == "plackett_luce"
        return None if rankings else 3 * _distinct(made, sizes, steps, winners=algo == "preferred_ft")
    return None


def _distinct(made: Made, sizes: Sizes, steps: int, *, winners: bool) -> float:
    """A forward pass over the distinct completions of each batch, by the order in which the pairs came."""
    config = made.config
    settings = OmegaConf.merge(OmegaConf.structured(PairsConfig), dict(config["pairs"]))
    wanted = OmegaConf.to_object(settings)
    assert isinstance(wanted, PairsConfig)
    seed, batch = int(config["seed"]), int(config["policy"]["batch_size"])
    frame, drawn = pairs.load_pairs(made.folders["groups"], wanted, seed)
    stream = Stream(len(drawn.rows), batch, lambda epoch: pairs.shuffled(drawn, wanted.order, seed, epoch))
    each = np.array([scored(sizes, [row]) for row in lengths(frame)])
    rows = drawn.rows[:, :1] if winners else drawn.rows
    return float(sum(each[np.unique(rows[stream.at(step)])].sum() for step in range(steps)))


def _ppo(made: Made, sizes: Sizes, metrics: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """Episodes of mean length: sampled, scored under policy and reference, valued, and trained on in each epoch."""
    config = made.config["ppo"]
    tails = [row["ppo/length"] for row in metrics if "ppo/length" in row]
    if not tails:
        return None
    heads = [len(row) for row in prompts.read_prompts(made.folders["data"], "train")]
    row = [(round(float(np.mean(heads))), round(float(np.mean(tails))))]
    value = bare(sizes, row) if str(config["value"]) == "own" else 0.0
    learned = bare(sizes, row) if str(config["reward"]) == "learned" else 0.0
    once = sampled(sizes, row) + 2 * scored(sizes, row) + value + learned
    trained = 3 * (scored(sizes, row) + value)
    episodes = steps * int(config["minibatch_size"])  # that were trained on
    return episodes * (once / int(config["epochs"]) + trained)


def of_evaluations(made: Made, frame: pd.DataFrame) -> float | None:
    """Model operations of a run's evaluation points.

    Args:
        made: the run.
        frame: its `evaluations.parquet`: split, prompt_id and length of every sample.
    """
    sizes = made.sizes
    if sizes is None or "reference" not in made.folders:
        return None
    known = pd.read_parquet(
        made.folders["reference"] / "evaluation.parquet", columns=["split", "prompt_id", "prompt_ids"]
    )
    heads = {
        (s, p): len(ids) for s, p, ids in zip(known["split"], known["prompt_id"], known["prompt_ids"], strict=True)
    }
    found: Iterable[tuple[Any, Any, Any]] = zip(frame["split"], frame["prompt_id"], frame["length"], strict=True)
    rows = [(heads[split, prompt], int(length)) for split, prompt, length in found]
    return sampled(sizes, rows) + 2 * scored(sizes, rows)
