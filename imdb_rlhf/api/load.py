"""A finished run's world: its reference, tokenizer, prompts, reward and sampling, to measure other models on."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from imdb_rlhf.api.rewards import TrueReward
from imdb_rlhf.api.world import World
from imdb_rlhf.artifacts.files import plain
from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.config.reward import RewardConfig
from imdb_rlhf.config.typed import typed
from imdb_rlhf.data import hub
from imdb_rlhf.data.prompts import read_prompts
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS
from imdb_rlhf.frontier.finished import FinishedRun, read
from imdb_rlhf.models.tokens import decode
from imdb_rlhf.rewards import CheckedReward, kind_of
from imdb_rlhf.stages import evaluations
from imdb_rlhf.stages.groups import Groups
from imdb_rlhf.stages.reference import TrainedReference
from imdb_rlhf.stages.reservoir import Reservoir
from imdb_rlhf.stages.reviews import EVALUATED_SPLITS, Reviews
from imdb_rlhf.stages.true_reward import COMPARED, TrainedReward

# The artifacts that another run of the world uses, too.
SHARED = (Reviews, TrainedReference, TrainedReward, evaluations.ReferenceEvaluation, Reservoir)


class RunWorld(World):
    """The world of a finished run: what is measured on it stands beside that run.

    Attributes:
        run: the run's folder.
        outputs: the folder of its runs and artifacts (`paths.outputs`).
        preferences: the pairs of the run's groups in TRL's format, a parquet file; None where it used no groups.
    """

    def __init__(self, run: FinishedRun, device: str | torch.device | None = None) -> None:
        self.run, self.outputs, self._run = run.path, run.path.parent.parent, run
        self._artifact = _needed(run, evaluations.ReferenceEvaluation.name)
        recorded = json.loads((self._artifact / INPUTS).read_text())["inputs"]
        groups = run.artifact(Groups.name)
        pairs = None if groups is None else groups / "preferences.parquet"  # none where the user brought them
        self.preferences = pairs if pairs is not None and pairs.exists() else None
        reward = _reward(run, recorded["reward"], torch.device(device or "cpu"))
        evaluation, generation = run.config["evaluation"], run.config["generation"]
        prompts = _needed(run, Reviews.name)
        super().__init__(
            _reference(run, recorded["reference"]),
            None,
            read_prompts(prompts, "test"),
            cast(Any, reward),
            validation_prompts=read_prompts(prompts, "validation"),
            device=device,
            batch_size=evaluation["batch_size"],
            **{key: evaluation[key] for key in ("seed", "samples", "bootstrap", "confidence")},
            **{key: generation[key] for key in ("max_new_tokens", "shortest_limit", "temperature")},
        )
        assert tuple(self.prompts) == EVALUATED_SPLITS
        self._recorded = recorded
        _compare(self.reward, self.tokenizer, self.reference_rows, self._artifact)

    @cached_property
    def reference_rows(self) -> pd.DataFrame:
        """The evaluation rows of the reference, as the run has them."""
        return pd.read_parquet(self._artifact / evaluations.FILE)[COLUMNS + TEXTS]

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the axes depend on, as the run's artifact of the reference's evaluation records it."""
        return dict(self._recorded)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The keys of the run's `config.yaml` that say what it was measured on."""
        names = ("model", "data", "reward", "generation", "sft", "evaluation")
        return {name: self._run.config[name] for name in names} | {"logger": {"name": "none"}}

    @property
    def artifacts(self) -> dict[str, str]:
        """Stage -> key of the run's artifacts that a run beside it uses too."""
        return {s.name: self._run.artifacts[s.name] for s in SHARED if s.name in self._run.artifacts}

    @property
    def reward_range(self) -> list[float | None]:
        """[infimum, supremum] of the reward, as the run's summary has it."""
        return list(self._run.summary.get("reward_range", [None, None]))


def load_world(run: str | Path, *, device: str | torch.device | None = None) -> RunWorld:
    """Open the world of a finished run: reference, tokenizer, prompts, reward and sampling.

    Everything is held against what the run recorded: artifacts against their manifests, the reference and the reward
    against their identity, and the reward's numbers against those of some stored samples.

    Args:
        run: a run's folder, `outputs/runs/NAME`.
        device: where models go; None is a GPU if torch sees one.

    Raises:
        ConfigError: it is no folder of a finished run.
        RunError: what the run was measured on is not there any more, or is not what it was.
    """
    runs, skipped = read([Path(run).expanduser().resolve()])
    if skipped:
        raise ConfigError(f"{run} is not a finished run: {skipped[0]['why']}")
    return RunWorld(runs[0], device)


def _needed(run: FinishedRun, stage: str) -> Path:
    """The folder of an artifact that the world cannot do without."""
    folder = run.artifact(stage)
    if folder is None and stage not in run.artifacts:
        raise RunError(
            f"{run.path} was left by FrontierCallback on a World of your own; make that World again, of the same parts"
        )
    if folder is None:
        raise RunError(f"{run.path}: its artifact {stage}/{run.artifacts[stage]} was removed; run its command again")
    return folder


def _reference(run: FinishedRun, identity: Any) -> Path:
    """The folder of the reference."""
    if TrainedReference.name in run.artifacts:
        return _needed(run, TrainedReference.name) / "model"
    path, revision = run.config["sft"]["path"], run.config["sft"]["revision"]
    if isinstance(identity, Mapping) and hub.identity(path, revision, "sft.path") != identity.get("reference"):
        raise RunError(f"sft.path={path} is not the reference any more that {run.path} was measured from")
    return hub.fetch(path, revision, "sft.path")


def _reward(run: FinishedRun, identity: Any, device: torch.device) -> TrueReward:
    """The true reward of the run."""
    config = typed(RewardConfig, run.config["reward"], f"{run.path}: reward")
    kind = kind_of(config)
    kind.check()
    artifact = _needed(run, TrainedReward.name) if kind.trained else None
    if plain(kind.identity(run.artifacts.get(TrainedReward.name))) != identity:
        raise RunError(f"reward={config.name} is not as {run.path} used it: a file of it changed; restore it")
    return TrueReward(CheckedReward(kind.open(device, artifact), kind), config.name)


def _compare(reward: Any, tokenizer: Any, rows: pd.DataFrame, folder: Path) -> None:
    """Refuse a reward that scores stored samples otherwise."""
    some = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, COMPARED).round().astype(int))]
    both = zip(some["prompt_ids"], some["completion_ids"], strict=True)
    texts = decode(tokenizer, [[*map(int, prompt), *map(int, completion)] for prompt, completion in both])
    again, before = reward.score(texts).logit, some["reward_logit"].to_numpy()
    wrong = np.flatnonzero(~np.isclose(again, before, rtol=1e-3, atol=1e-6))
    if len(wrong):
        at = int(wrong[0])
        raise RunError(
            f"reward={reward.name} gives {again[at]:g} where {folder} holds {before[at]:g}, for the text "
            f"{texts[at][:60]!r}; it is another reward than the run's"
        )
