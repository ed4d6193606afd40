"""The work of a sweep before anything ran: its runs as they compose, artifacts that they share, operations of each.

Amounts come from the composed configuration alone. Assumed, because nothing was sampled yet: a prompt's length is drawn
evenly between its two limits, a completion has `generation.max_new_tokens`, an SFT row `sft.max_tokens`; a prompt's
completions all differ in reward, so that every pair of a group is there; no PPO batch is cut short. Operations are
counted as in `stages_work.py`, whose rates they are divided by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.stages_work import Rows, Sizes, bare, sampled, scored
from hydra_plugins.imdb_rlhf_sweeper import grids_of, product_of
from imdb_rlhf import cli
from imdb_rlhf.algos.batches import Stream, steps_for
from imdb_rlhf.config.algos import BestOfNRun, DPOLoss, DPORun, PPORun, PreferredFTRun
from imdb_rlhf.config.families import GroupsRun, LearnedRun, PreferenceRun
from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.config.reward import ClassifierReward, Objective, TwoLabelReward
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Order
from imdb_rlhf.data.pairs import Pairs, shuffled
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.stages import HELD_OUT_ROWS
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime

# The key of a stage's batch, by the stage or by the end of its name.
BATCHES = {
    "sft": "sft.batch_size",
    "groups": "groups.batch_size",
    "reference": "evaluation.batch_size",
    "base": "evaluation.batch_size",
    "reward_model": "reward_model.batch_size",
    "reservoir": "reservoir.batch_size",
    "learned_scores": "groups.batch_size",
    "evaluations": "evaluation.batch_size",
    "ppo: training": "ppo.minibatch_size",
    "training": "policy.batch_size",
}


@dataclass(frozen=True)
class Work:
    """What a stage, or a run's part of one, has to do.

    Attributes:
        stage: its name in the account of `stages`.
        amount, unit: how much.
        operations: of the model; None where they cannot be worked out.
        texts: that the true reward scores in it.
    """

    stage: str
    amount: float
    unit: str
    operations: float | None
    texts: float = 0.0


# --- runs -------------------------------------------------------------------------------------------------------------


def jobs_of(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a command line of train.py, as the sweeper makes them.

    Raises:
        ConfigError: a sweep that is not there.
    """
    _, grids = grids_of(words, _lines)
    return [job for grid in grids for job in product_of(grid)]


def _lines(name: str) -> tuple[list[str], dict[str, str]]:
    path = cli.SWEEPS / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"sweep={name}: no such file in {cli.SWEEPS.name}/")
    file: Any = OmegaConf.to_container(OmegaConf.load(path))
    return file["grids"], file.get("experiments") or {}


def composed(jobs: Sequence[Sequence[str]]) -> list[Run]:
    """The run of each job, typed and checked; nothing is loaded.

    Raises:
        ConfigError: naming the job and what is wrong with it.
    """
    cli.register()
    found = []
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        for job in jobs:
            try:
                found.append(cli.checked(compose("config", list(job)), job))
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                said = str(error) if isinstance(error, ConfigError) else cli.explain(error)
                raise ConfigError(f"train.py {' '.join(job)}: {said}") from error
    return found


def sizes_of(model: Mapping[str, Any]) -> Sizes:
    """Layers, width and vocabulary of a configured model; of one on the Hub those of `model=NAME-random`.

    Raises:
        ConfigError: nobody says what shape it has.
    """
    names = ("layers", "width", "vocabulary")
    if not all(name in model for name in names):
        twin = f"{model['name']}-random"
        if not (cli.CONF / "model" / f"{twin}.yaml").exists():
            raise ConfigError(f"model={model['name']}: there is no conf/model/{twin}.yaml that says what shape it has")
        (run,) = composed([[f"model={twin}"]])
        model = vars(run.model)
    return Sizes(*(int(model[name]) for name in names))


def artifacts(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Stage and a run that uses it, of every artifact of the runs once: those of one key are one."""
    runtime, console = Runtime(runs[0].trainer), Console(quiet=True)
    users: dict[tuple[str, str], Run] = {}
    for run in runs:
        for stage, key in Pipeline(run, runtime, console).keys().items():
            users.setdefault((stage, key), run)
    return [(stage, run) for (stage, _), run in users.items()]


def batch_of(stage: str, config: Mapping[str, Any]) -> int | None:
    """Examples at a time of a stage, by the configuration as nested mappings; None where there is no such key."""
    key = BATCHES.get(stage) or BATCHES.get(stage.rpartition(": ")[2])
    if key is None:
        return None
    room, _, name = key.partition(".")
    found = config.get(room, {}).get(name)
    return None if found is None else int(found)


def scores_by_model(reward: Mapping[str, Any]) -> bool:
    """Whether the true reward is a model, by its configuration."""
    return "path" in reward or reward["name"] == "two_label"


# --- artifacts --------------------------------------------------------------------------------------------------------


def _mean(count: Callable[[Sizes, Rows], float], run: Run, sizes: Sizes) -> float:
    """Operations of a completion of the configured length, over the lengths of prompts."""
    lengths = range(run.data.prompts.min_tokens, run.data.prompts.max_tokens + 1)
    return count(sizes, [(prompt, run.generation.max_new_tokens) for prompt in lengths]) / len(lengths)


def of_artifact(stage: str, run: Run, sizes: Sizes) -> Work:
    """The work of making an artifact once.

    Args:
        stage: of the pipeline, `data` and `labelled` left out: no model runs there.
        run: that uses it.
        sizes: of the policy, and of every model that starts from it.
    """
    both = run.data.prompts.validation + run.data.prompts.test
    draw, score = _mean(sampled, run, sizes), _mean(scored, run, sizes)
    if stage == "sft":
        return _sft(run, sizes)
    if stage in ("reference", "base", "own_model"):
        count = both * run.evaluation.samples
        return Work(stage, count, "samples", count * (draw + 2 * score), count)
    if stage == "groups" and isinstance(run, GroupsRun) and run.data.preferences is None:
        count = run.data.prompts.train * run.groups.k
        return Work(stage, count, "completions", count * (draw + score), count)
    if stage == "reward_model" and isinstance(run, LearnedRun) and run.data.preferences is None:
        return _reward_model(run, sizes)
    if isinstance(run, BestOfNRun | PPORun) and stage in ("reservoir", "learned_scores"):
        count = both * run.reservoir.samples
        if stage == "reservoir":
            return Work(stage, count, "completions", count * (draw + score), count)
        return Work(stage, count, "completions", count * _mean(bare, run, sizes))
    return Work(stage, 1, "times", None)


def _sft(run: Run, sizes: Sizes) -> Work:
    kept = min(HELD_OUT_ROWS, run.data.sft_reviews // 10)
    examples = steps_for(run.data.sft_reviews - kept, run.sft.batch_size, run.sft.epochs) * run.sft.batch_size
    row = scored(sizes, [(1, run.sft.max_tokens - 1)])
    return Work("sft", examples * run.sft.max_tokens, "tokens", (3 * examples + kept) * row)


def _reward_model(run: LearnedRun, sizes: Sizes) -> Work:
    """As it is counted when measured: distinct completions a pass, and the validation's at evaluations and scaling."""
    config, k = run.reward_model, run.groups.k
    once = run.data.prompts.train * k * _mean(bare, run, sizes)
    trained = 1 - config.validation  # of the groups
    pairs = config.objective == Objective.pairs
    examples = config.epochs * trained * run.data.prompts.train * (k * (k - 1) / 2 if pairs else 1)
    scattered = pairs and run.pairs.order == Order.shuffled  # hardly a completion stands twice in a batch
    passes = 2 * examples * _mean(bare, run, sizes) if scattered else config.epochs * trained * once
    operations = 3 * passes + (config.evaluations + 2) * config.validation * once
    return Work("reward_model", examples, "pairs" if pairs else "groups", operations)


# --- a policy ---------------------------------------------------------------------------------------------------------


def of_policy(run: Run, sizes: Sizes) -> list[Work]:
    """The training of a run's policy and its evaluations; none where nothing is trained."""
    if isinstance(run, PPORun):
        return [_ppo(run, sizes), _evaluations(run, sizes, run.ppo.batches)]
    if not isinstance(run, PreferenceRun):
        return []
    k, size = run.groups.k, run.policy.batch_size
    steps = run.policy.steps or steps_for(run.data.prompts.train * k * (k - 1) // 2, size, run.policy.epochs)
    winners = isinstance(run, PreferredFTRun)
    rankings = isinstance(run, DPORun) and run.dpo.loss == DPOLoss.plackett_luce
    operations = None
    if not rankings and run.data.preferences is None:
        order = (run.pairs.order, run.seed)
        distinct = _distinct(run.data.prompts.train, k, size, steps, order, winners=winners)
        operations = 3 * distinct * _mean(scored, run, sizes)
    training = Work(f"{run.algo}: training", steps * size, "rows" if winners else "pairs", operations)
    return [training, _evaluations(run, sizes, steps)]


@lru_cache(maxsize=16)
def _distinct(prompts: int, k: int, size: int, steps: int, order: tuple[Order, int], *, winners: bool) -> int:
    """Distinct completions (or winners) of each batch, summed over all, where every pair of every group is there."""
    each = np.array(list(combinations(range(k), 2)))[:, ::-1]  # the later completion wins: any order is as good
    rows = (k * np.arange(prompts)[:, None, None] + each).reshape(-1, 2)
    pairs = Pairs(rows, np.repeat(np.arange(prompts), len(each)), {})
    stream = Stream(len(rows), size, lambda epoch: shuffled(pairs, *order, epoch))
    sides = rows[:, :1] if winners else rows
    return sum(len(np.unique(sides[stream.at(step)])) for step in range(steps))


def _ppo(run: PPORun, sizes: Sizes) -> Work:
    """Episodes are sampled, scored under policy and reference, valued, and trained on in each epoch."""
    episodes = run.ppo.batches * run.ppo.batch_size
    draw, score, layers = (_mean(count, run, sizes) for count in (sampled, scored, bare))
    value = layers if run.ppo.value == ValueNetwork.own else 0.0
    learned = layers if run.uses_learned_reward else 0.0
    operations = episodes * (draw + 2 * score + value + learned + run.ppo.epochs * 3 * (score + value))
    return Work("ppo: training", episodes, "episodes", operations, 0.0 if run.uses_learned_reward else episodes)


def _evaluations(run: Run, sizes: Sizes, rounds: int) -> Work:
    """Points every `evaluation.every` rounds (steps, or PPO's batches) and at the end."""
    points = -(-rounds // run.evaluation.every)
    count = points * (run.data.prompts.validation + run.data.prompts.test) * run.evaluation.samples
    operations = count * (_mean(sampled, run, sizes) + 2 * _mean(scored, run, sizes))
    return Work(f"{run.algo}: evaluations", count, "samples", operations, count)


def of_true_reward(run: Run, sizes: Sizes, texts: float) -> Work | None:
    """Texts that a classifier scores, as if it were a reward model of the policy's size; None for another reward."""
    if not isinstance(run.reward, ClassifierReward | TwoLabelReward):
        return None
    return Work("learned_scores", texts, "texts", texts * _mean(bare, run, sizes))
