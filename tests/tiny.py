"""What many tests set up: tiny models, a tokenizer of letters, typed configurations, a few steps of the loop.

Every function takes what a test's numbers depend on as a keyword; what a test does not name, it does not depend on.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from imdb_rlhf.algos.inputs import Optimised, Score
from imdb_rlhf.config.algos import BestOfNConfig, Divergence, DPOConfig, DPOLoss, OwnModelConfig
from imdb_rlhf.config.data import Bos, EmbeddedData, PromptsConfig
from imdb_rlhf.config.decoding import DistillConfig, GuidedRun, RealignConfig, ValueConfig
from imdb_rlhf.config.decoding import Divergence as Direction
from imdb_rlhf.config.hub import HubConfig, Part
from imdb_rlhf.config.machine import (
    Device,
    LauncherConfig,
    LoggerConfig,
    PathsConfig,
    Precision,
    TrainerConfig,
)
from imdb_rlhf.config.model import Attention, ScratchModel
from imdb_rlhf.config.online_algos import (
    Baseline,
    GRPOConfig,
    KLPlace,
    LengthNorm,
    OnlineDPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from imdb_rlhf.config.optim import AdamWConfig, RMSpropConfig, Schedule
from imdb_rlhf.config.ppo import KLControl, PPOConfig, Scale, ValueNetwork, Whitening
from imdb_rlhf.config.preference_algos import BonSFTConfig, CPOConfig, EXOConfig, KTOConfig, SimPOConfig
from imdb_rlhf.config.reward import (
    Crop,
    Init,
    LexiconReward,
    Objective,
    Positions,
    RewardModelConfig,
    RewardSource,
    TwoLabelReward,
)
from imdb_rlhf.config.run import KeepModel, Run
from imdb_rlhf.config.stages import (
    Eos,
    EvaluationConfig,
    GenerationConfig,
    GroupsConfig,
    Labels,
    Order,
    PairsConfig,
    PolicyConfig,
    ReservoirConfig,
    SFTConfig,
    Ties,
)
from imdb_rlhf.models.next_token import NextToken
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards import Scores
from imdb_rlhf.training import loop
from imdb_rlhf.training.runtime import Runtime

R = TypeVar("R", bound=Run)

# --- models


def gpt2_config(
    *,
    vocabulary: int = 19,
    context: int = 16,
    width: int = 16,
    layers: int = 2,
    heads: int = 2,
    spread: float = 0.2,
    eos: int = 0,
    dropout: float = 0.0,
    **changes: Any,
) -> GPT2Config:
    """A tiny GPT-2 whose next-token distributions, at this spread of weights, are far from uniform.

    `changes` are GPT2Config's own keys; they win over the sizes above.
    """
    sizes = {"vocab_size": vocabulary, "n_positions": context, "n_embd": width, "n_layer": layers, "n_head": heads}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    rest = {"initializer_range": spread, "bos_token_id": eos, "eos_token_id": eos}
    return GPT2Config(**{**sizes, **rates, **rest, **changes})


def gpt2(seed: int = 0, **sizes: Any) -> GPT2LMHeadModel:
    """A causal LM with random weights, in evaluation mode; `sizes` as in `gpt2_config`."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(gpt2_config(**sizes)).eval()


def scattered_gpt2(seed: int = 0, attention: str = "eager", spread: float = 0.3, **sizes: Any) -> GPT2LMHeadModel:
    """A causal LM whose biases are not 0 and whose norms do not begin at 1, so that leaving one out is seen."""
    lm = GPT2LMHeadModel(gpt2_config(attn_implementation=attention, **sizes)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            parameter.normal_(float("ln_" in name and "weight" in name), spread, generator=random)
    return lm


def gpt2_scorer(seed: int = 0, labels: int = 1, **sizes: Any) -> GPT2ForSequenceClassification:
    """A classifier or a reward head with random weights; `sizes` as in `gpt2_config`."""
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(gpt2_config(num_labels=labels, **sizes))


def tokenizer(vocabulary: int = 19, eos: int = 0) -> PreTrainedTokenizerFast:
    """A letter per token, a for 0; a text is its tokens' letters without spaces."""
    letters = {letter: index for index, letter in enumerate(string.ascii_letters[:vocabulary])}
    words = Tokenizer(models.WordLevel(letters, unk_token=string.ascii_letters[eos]))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=string.ascii_letters[eos], clean_up_tokenization_spaces=False
    )


def policy(lm: PreTrainedModel, eos: int = 0) -> Policy:
    """A policy of this model; EOS may be a token that its vocabulary lacks and that is therefore never sampled."""
    return Policy(lm, tokenizer(max(lm.config.vocab_size, eos + 1), eos))


def completion_logprob(
    lm: PreTrainedModel, prompt_ids: list[int], completion_ids: list[int], temperature: float = 1.0
) -> Tensor:
    """The log-prob of one completion from the model's full logits, without padding."""
    ids = torch.tensor([prompt_ids + completion_ids])
    log_softmax = (lm(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
    return log_softmax.gather(1, ids[0, len(prompt_ids) :, None]).sum()


def weights(module: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def gradients(module: nn.Module) -> Tensor:
    """All gradients in one vector, 0 where a parameter has none; they are cleared."""
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone() for p in module.parameters()]
    module.zero_grad()
    return torch.cat(parts)


# --- rewards


class Length:
    """A reward that can be worked out by hand: the number of characters."""

    def score(self, texts: Sequence[str]) -> Scores:
        values = np.array([float(len(text)) for text in texts])
        return Scores(values, values)


def own_reward(folder: Path, body: str = "return [float(len(text)) for text in texts]", name: str = "mine.py") -> str:
    """A user's file with a function `score(texts)`, as `reward.function` names it."""
    (folder / name).write_text(f"def score(texts):\n    {body}\n")
    return f"{folder / name}:score"


# --- data


def group_table(random: np.random.Generator) -> pd.DataFrame:
    """3 groups of 4 completions, with log-probs of a reference."""
    prompts = [random.integers(1, 19, size=2 + row // 4).tolist() for row in range(12)]
    completions = [random.integers(1, 19, size=1 + row % 6).tolist() for row in range(12)]
    return pd.DataFrame({"prompt_ids": prompts, "completion_ids": completions, "ref_logprob": -2.5 * np.arange(12)})


# The 6 pairs of each group of `group_table`: rows of the winner and of the loser.
GROUP_PAIRS = np.array(
    [(best, worst) for first in (0, 4, 8) for best in range(first, first + 4) for worst in range(first, best)]
)

# --- configurations


def trainer(**changes: Any) -> TrainerConfig:
    values = {"device": Device.cpu, "precision": Precision.float32, "processes": 1, "threads": 1, "micro_batch": None}
    return TrainerConfig(**{**values, "checkpoint_every": 0, "log_every": 1, **changes})


def runtime(precision: Precision = Precision.float32, processes: int = 1) -> Runtime:
    """A CPU with one thread per process."""
    return Runtime(trainer(precision=precision, processes=processes))


def adamw(**changes: Any) -> AdamWConfig:
    values = {"name": "adamw", "lr": 0.01, "warmup_steps": 0, "schedule": Schedule.linear, "max_grad_norm": 1.0}
    return AdamWConfig(**{**values, "beta1": 0.9, "beta2": 0.95, "eps": 1e-5, "weight_decay": 0.0, **changes})


def rmsprop(**changes: Any) -> RMSpropConfig:
    values = {"name": "rmsprop", "lr": 0.01, "warmup_steps": 0, "schedule": Schedule.constant, "max_grad_norm": None}
    return RMSpropConfig(**{**values, "alpha": 0.99, "eps": 1e-8, **changes})


def model(**changes: Any) -> ScratchModel:
    values = {"name": "tiny", "attention": Attention.eager, "layers": 1, "width": 16, "heads": 2, "context": 16}
    return ScratchModel(**{**values, "tokenizer_size": 270, "vocabulary": 270, "init_seed": 0, **changes})


def prompts(**changes: int) -> PromptsConfig:
    return PromptsConfig(**{"train": 1, "validation": 1, "test": 1, "min_tokens": 2, "max_tokens": 4, **changes})


def data(**changes: Any) -> EmbeddedData:
    values = {"name": "embedded", "seed": 0, "sft_reviews": 1, "prompts": prompts(), "preferences": None}
    rows = {"bos": Bos.auto, "preferences_eos": False, "labelled_reviews": 2}
    rows |= {"preferences_revision": None, "preferences_split": "train"}
    return EmbeddedData(**{**values, **rows, **changes})


def two_label(**changes: Any) -> TwoLabelReward:
    values = {"name": "two_label", "seed": 0, "init": Init.sft, "epochs": 2.0, "batch_size": 3, "crop": Crop.anywhere}
    rates = {"positions": Positions.second_half, "dropout": 0.0, "lm_weight": 0.0}
    return TwoLabelReward(**{**values, **rates, "held_out": 2, "score_batch_size": 16, "optim": adamw(), **changes})


def generation(
    max_new_tokens: int = 6, shortest_limit: int | None = None, temperature: float = 1.0
) -> GenerationConfig:
    return GenerationConfig(max_new_tokens, shortest_limit, temperature)


def sft(**changes: Any) -> SFTConfig:
    values = {"path": None, "revision": None, "seed": 0, "epochs": 1.0, "batch_size": 6, "max_tokens": 16}
    return SFTConfig(**{**values, "optim": adamw(), **changes})


def groups(**changes: Any) -> GroupsConfig:
    return GroupsConfig(**{"seed": 0, "k": 4, "eos": Eos.sampled, "batch_size": 50, **changes})


def pairs(**changes: Any) -> PairsConfig:
    values = {"labels": Labels.deterministic, "tau": None, "noise": None, "min_margin": 0.0, "ties": Ties.drop}
    return PairsConfig(**{"prompts": None, **values, "order": Order.prefix, **changes})


def steps(**changes: Any) -> PolicyConfig:
    """The policy's training: epochs, or a number of steps."""
    return PolicyConfig(
        **{"epochs": 1.0, "steps": None, "batch_size": 6, "precision": None, "optim": adamw(), **changes}
    )


def evaluation(**changes: Any) -> EvaluationConfig:
    values = {"seed": 0, "samples": 2, "every": 1, "batch_size": 8, "bootstrap": 200, "confidence": 0.95}
    return EvaluationConfig(**{**values, **changes})


def reward_model(**changes: Any) -> RewardModelConfig:
    values = {"seed": 0, "init": Init.sft, "objective": Objective.pairs, "epochs": 2.0, "batch_size": 5}
    return RewardModelConfig(**{**values, "validation": 0.3, "evaluations": 5, "optim": adamw(), **changes})


def value(**changes: Any) -> ValueConfig:
    values: dict[str, Any] = {"reward": RewardSource.ground_truth, "samples": None, "network": ValueNetwork.own}
    values |= {"init": Init.sft, "bins": 20, "rank": 8, "epochs": 2.0, "batch_size": 6}
    return ValueConfig(**{**values, "optim": adamw(), **changes})


def reservoir(**changes: int) -> ReservoirConfig:
    return ReservoirConfig(**{"seed": 0, "samples": 16, "batch_size": 8, **changes})


def dpo(
    loss: DPOLoss = DPOLoss.sigmoid,
    label_smoothing: float = 0.0,
    average_logprobs: bool = False,
    divergence: Divergence = Divergence.reverse_kl,
    divergence_alpha: float | None = None,
) -> DPOConfig:
    return DPOConfig(loss, divergence, divergence_alpha, label_smoothing, average_logprobs)


def ppo(**changes: Any) -> PPOConfig:
    values = {
        "preset": "test",
        "reward": RewardSource.ground_truth,
        "scale": Scale.reward,
        "normalize": False,
        "value": ValueNetwork.shared,
        "episodes": 24,
        "batch_size": 12,
        "minibatch_size": 4,
        "epochs": 2,
        "rollout_batch_size": 5,
        "gamma": 0.9,
        "lam": 0.8,
        "policy_clip": 0.2,
        "value_clip": 0.2,
        "value_coefficient": 0.1,
        "whiten_rewards": False,
        "advantage_whitening": Whitening.minibatch,
        "kl_coefficient": None,
        "controller": KLControl.ziegler,
        "initial_kl_coefficient": None,
        "min_kl_coefficient": 1e-4,
        "max_kl_coefficient": 100.0,
        "horizon": None,
        "coefficient_range": 6.0,
        "lr_target_kl": None,
        "missing_eos_penalty": 0.0,
        "early_stop_kl": None,
        "precision": None,
        "optim": adamw(),
    }
    return PPOConfig(**{**values, **changes})


def online(group: bool = True, **changes: Any) -> dict[str, Any]:
    """What the sections of methods have that learn from their own completions; `group`: K of each prompt."""
    values = {
        "reward": RewardSource.ground_truth,
        "scale": Scale.reward,
        "normalize": False,
        "episodes": 24,
        "batch_size": 12,
        "rollout_batch_size": 5,
        "missing_eos_penalty": 0.0,
        "precision": None,
        "optim": adamw(),
    }
    groups = {"k": 4, "minibatch_size": 4, "epochs": 2} if group else {}
    return {**values, **groups, **changes}


def reinforce(**changes: Any) -> ReinforceConfig:
    return ReinforceConfig(**online(group=False, **{"baseline": Baseline.batch, **changes}))


def rloo(**changes: Any) -> RLOOConfig:
    return RLOOConfig(**online(**{"clip": 0.2, **changes}))


def grpo(**changes: Any) -> GRPOConfig:
    values = {"clip": 0.2, "kl_in": KLPlace.loss, "scale_advantages": True, "length_norm": LengthNorm.completion}
    return GRPOConfig(**online(**{**values, **changes}))


def online_dpo(**changes: Any) -> OnlineDPOConfig:
    return OnlineDPOConfig(**online(**{"labels": Labels.deterministic, "tau": None, **changes}))


def run(kind: type[R], **changes: Any) -> R:
    """A run of this kind: the configurations above but for `changes`, whose keys must be the kind's."""
    values: dict[str, Any] = {
        "algo": "test",
        "seed": 0,
        "plan": False,
        "objective": ["reward@5"],
        "baselines": True,
        "keep_model": KeepModel.last,
        "model": model(),
        "data": data(),
        "reward": LexiconReward("lexicon"),
        "generation": generation(),
        "sft": sft(),
        "evaluation": evaluation(),
        "trainer": trainer(),
        "logger": LoggerConfig(False, False, False),
        "launcher": LauncherConfig("sequential", None),
        "paths": PathsConfig("outputs"),
        "hub": HubConfig(push=None, private=True, revision=None, what=list(Part), license=None),
        "groups": groups(),
        "pairs": pairs(),
        "policy": steps(),
        "reward_model": reward_model(),
        "reservoir": reservoir(),
        "beta": 0.1,
        "dpo": dpo(),
        "kto": KTOConfig(1.0, 1.0),
        "simpo": SimPOConfig(0.5),
        "cpo": CPOConfig(1.0),
        "exo": EXOConfig(1e-3),
        "bon_sft": BonSFTConfig(RewardSource.ground_truth),
        "lam": 0.1,
        "alpha": 0.5,
        "target_kl": 2.0,
        "ppo": ppo(),
        "reinforce": reinforce(),
        "rloo": rloo(),
        "grpo": grpo(),
        "online_dpo": online_dpo(),
        "n": 4,
        "best_of_n": BestOfNConfig(RewardSource.ground_truth),
        "own_model": OwnModelConfig("model", None, None),
        "value": value(),
        "realign": RealignConfig("model", None, None),
        "distill": DistillConfig(Direction.forward),
    }
    keys = {key.name for key in fields(kind)}
    assert changes.keys() <= keys, f"{kind.__name__} has no {changes.keys() - keys}"
    return kind(**{key: {**values, **changes}[key] for key in keys})


# --- what an algorithm is made from


@dataclass
class FixedInputs:
    """`algos.inputs.Inputs` of given values: `scores` is what `score` returns, `kl_coefficient` the first one."""

    policy: Policy
    reference: PreTrainedModel
    runtime: Runtime
    groups: Path = Path()
    prompts: list[list[int]] = field(default_factory=list)
    scores: Score = lambda prompt_ids, completion_ids: np.zeros(len(prompt_ids))
    kl_coefficient: float = 1.0
    teacher: NextToken | None = None

    def guided(self, run: GuidedRun) -> NextToken:
        assert self.teacher is not None
        return self.teacher

    @property
    def learned_score(self) -> Score:
        return self.scores

    def score(self, config: Optimised) -> Score:
        return self.scores

    def first_kl_coefficient(self, config: PPOConfig, target_kl: float | None) -> float:
        return self.kl_coefficient


# --- the loop


def settings(**changes: Any) -> loop.Settings:
    values = {"seed": 0, "optim": adamw(), "micro_batch": None, "checkpoint_every": 0, "log_every": 1}
    return loop.Settings(**{**values, **changes})


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics that two runs of the same numbers share."""
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def train(
    algorithm: Any, options: loop.Settings, folder: Path, machine: Runtime | None = None, **hooks: Any
) -> list[dict[str, Any]]:
    """Train with the package's loop; the logged rows without times."""
    rows: list[dict[str, Any]] = []
    loop.train(algorithm, options, machine or runtime(), folder, loop.Hooks(log=rows.append, **hooks))
    return [without_time(row) for row in rows]


def run_batch(algorithm: Any, batch: Any, limit: int | None = None) -> tuple[float, dict[str, float]]:
    """Mean loss and mean metrics of a batch, in parts of at most `limit` rows; gradients are left in the model."""
    total, sums = 0.0, dict[str, float]()
    for part in batch.parts(0, 1, limit):
        loss, metrics = algorithm.loss(algorithm.module, part)
        (loss / batch.size).backward()
        total += float(loss.detach()) / batch.size
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach()) / batch.size
    return total, sums


class Crash(Exception):
    """What a test raises in the middle of a run."""


def crash_at(step: int) -> Callable[[dict[str, float]], None]:
    """The loop's `advance`, which fails once this step is done and before a checkpoint of it is written."""
    done = 0

    def advance(values: dict[str, float]) -> None:
        nonlocal done
        done += 1
        if done == step:
            raise Crash

    return advance
