"""Every key that may be set, typed and checked. Values and their meaning stand in `conf/`; none stand here.

A key that the chosen algorithm does not use has no field in its `Run`, so Hydra refuses it. `Run.__post_init__` checks
ranges when the composed config is turned into these classes, and walks the whole tree, before anything is loaded or
written.
"""

import math
import os
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any

from imdb_rlhf.errors import ConfigError


class Attention(StrEnum):
    """Which attention kernel transformers uses."""

    eager = "eager"
    sdpa = "sdpa"


class Br(StrEnum):
    """What becomes of `<br />` in real reviews."""

    keep = "keep"
    newline = "newline"


class Device(StrEnum):
    """Where the models live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    """Arithmetic of training and sampling; reported numbers are float32 always."""

    auto = "auto"
    bf16 = "bf16"
    float32 = "float32"


class Labels(StrEnum):
    """How the winner of a pair is drawn from the true rewards."""

    deterministic = "deterministic"
    bradley_terry = "bradley_terry"
    noisy = "noisy"


class Order(StrEnum):
    """Whether the pairs of a prefix stay together in training."""

    prefix = "prefix"
    shuffled = "shuffled"


class Ties(StrEnum):
    """What becomes of a pair with equal rewards."""

    drop = "drop"
    random = "random"


class Eos(StrEnum):
    """Whether a completion that was cut at the length limit is trained with an EOS that was never sampled."""

    sampled = "sampled"
    appended = "appended"


class Crop(StrEnum):
    """Where the crops that a two-label reward is trained on start."""

    opening = "opening"
    anywhere = "anywhere"
    mixed = "mixed"


class Positions(StrEnum):
    """Where in a crop a two-label reward is trained to predict the label."""

    last = "last"
    second_half = "second_half"


class Init(StrEnum):
    """Which weights a reward starts from."""

    sft = "sft"
    base = "base"


class DPOLoss(StrEnum):
    """What DPO makes of a margin, or of a ranking."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"
    robust = "robust"
    plackett_luce = "plackett_luce"


class Objective(StrEnum):
    """What a reward model is trained on."""

    pairs = "pairs"
    best_of_k = "best_of_k"


class RewardSource(StrEnum):
    """Which reward a method optimises or selects by."""

    learned = "learned"
    ground_truth = "ground_truth"


class Scale(StrEnum):
    """The true reward on its reporting scale (p(positive)) or on its ranking scale (log-odds)."""

    reward = "reward"
    logit = "logit"


class Ranking(StrEnum):
    """Which number of a two-label classifier is its ranking scale."""

    log_odds = "log_odds"
    positive_logit = "positive_logit"


class ValueNetwork(StrEnum):
    """Where PPO's value head stands."""

    own = "own"
    shared = "shared"


class Whitening(StrEnum):
    """Over what PPO's advantages are whitened."""

    minibatch = "minibatch"
    batch = "batch"


class Schedule(StrEnum):
    """The learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class KeepModel(StrEnum):
    """Which trained policy stays in the run's folder."""

    last = "last"
    best = "best"
    none = "none"


class WandbMode(StrEnum):
    """W&B's mode; auto is online where a key is configured and offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"


# Groups that only one algorithm has.
ALGO_OF_GROUP = {"ppo": "ppo"}
# Keys of a run that its numbers do not depend on.
NOT_IN_HASH = ("logger", "launcher", "paths", "plan")


def _number(owner: Any, key: str, prefix: str, low: float, high: float = math.inf, *, above: bool = False) -> None:
    value = getattr(owner, key)
    if value is None:
        return
    name = f"{prefix}{key}"
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number; give one {_range(low, high, above)}")
    if value < low or (above and value <= low) or value > high:
        raise ConfigError(f"{name}={value} is out of range; give a number {_range(low, high, above)}")


def _range(low: float, high: float, above: bool) -> str:
    text = f"above {low:g}" if above else f"of at least {low:g}"
    return text if high == math.inf else f"{text} and at most {high:g}"


@dataclass
class ModelConfig:
    """What every model has."""

    name: str
    attention: Attention


@dataclass
class PretrainedModel(ModelConfig):
    """A Hugging Face causal LM by Hub id or folder."""

    path: str
    revision: str | None


@dataclass
class ScratchModel(ModelConfig):
    """A GPT-2 with random weights and a byte-level BPE tokenizer trained on the SFT text."""

    layers: int
    width: int
    heads: int
    context: int
    tokenizer_size: int
    vocabulary: int
    init_seed: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("layers", "width", "heads"):
            _number(self, key, at, 1)
        _number(self, "context", at, 4)
        _number(self, "tokenizer_size", at, 260)
        _number(self, "init_seed", at, 0, 2**63 - 1)
        if self.width % self.heads:
            raise ConfigError(f"{at}heads={self.heads} does not divide {at}width={self.width}; choose a divisor")
        if self.vocabulary < self.tokenizer_size:
            raise ConfigError(
                f"model.vocabulary={self.vocabulary} is smaller than model.tokenizer_size={self.tokenizer_size}; "
                "make it at least as large"
            )


@dataclass
class PromptsConfig:
    """How many prompts of each kind, and how long."""

    train: int
    validation: int
    test: int
    min_tokens: int
    max_tokens: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("train", "validation", "test", "min_tokens"):
            _number(self, key, at, 1)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"data.prompts.min_tokens={self.min_tokens} is above data.prompts.max_tokens={self.max_tokens}; "
                "lower the one or raise the other"
            )


@dataclass
class DataConfig:
    """What every dataset has."""

    name: str
    seed: int
    sft_reviews: int
    prompts: PromptsConfig
    preferences: str | None
    preferences_eos: bool

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "sft_reviews", at, 1)


@dataclass
class EmbeddedData(DataConfig):
    """Generated film-review openings."""

    labelled_reviews: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        _number(self, "labelled_reviews", at, 2)


@dataclass
class ImdbData(DataConfig):
    """The Large Movie Review Dataset in the Hub's parquet layout."""

    hub_id: str
    revision: str
    path: str | None
    br: Br
    prompt_splits: list[str]
    test_splits: list[str]
    sft_splits: list[str]
    labelled_splits: list[str]

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        for key in ("sft_splits", "prompt_splits", "test_splits", "labelled_splits"):
            if not getattr(self, key):
                raise ConfigError(f"{at}{key}=[] names no split; give some of train, test, unsupervised")


@dataclass
class OptimConfig:
    """What every optimizer has."""

    name: str
    lr: float
    warmup_steps: int
    schedule: Schedule
    max_grad_norm: float | None

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "lr", at, 0, above=True)
        _number(self, "warmup_steps", at, 0)
        _number(self, "max_grad_norm", at, 0, above=True)


@dataclass
class AdamWConfig(OptimConfig):
    """torch.optim.AdamW."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        _number(self, "beta1", at, 0, 0.999999)
        _number(self, "beta2", at, 0, 0.999999)
        _number(self, "eps", at, 0, above=True)
        _number(self, "weight_decay", at, 0)


@dataclass
class RMSpropConfig(OptimConfig):
    """torch.optim.RMSprop without momentum."""

    alpha: float
    eps: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        super().check(at)
        _number(self, "alpha", at, 0, 0.999999)
        _number(self, "eps", at, 0, above=True)


@dataclass
class RewardConfig:
    """What every true reward has."""

    name: str


@dataclass
class LexiconReward(RewardConfig):
    """The log-odds of the generated world."""


@dataclass
class ClassifierReward(RewardConfig):
    """A Hugging Face sequence classifier by Hub id or folder."""

    path: str
    revision: str | None
    positive_label: str | None
    ranking: Ranking
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "batch_size", at, 1)


@dataclass
class TwoLabelReward(RewardConfig):
    """A two-label head that a stage fine-tunes on labelled reviews."""

    seed: int
    init: Init
    epochs: float
    batch_size: int
    crop: Crop
    positions: Positions
    dropout: float
    lm_weight: float
    held_out: int
    score_batch_size: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "epochs", at, 0, above=True)
        _number(self, "batch_size", at, 1)
        _number(self, "score_batch_size", at, 1)
        _number(self, "held_out", at, 2)
        _number(self, "dropout", at, 0, 0.9)
        _number(self, "lm_weight", at, 0)


@dataclass
class OwnReward(RewardConfig):
    """A user's own function."""

    function: str


@dataclass
class GenerationConfig:
    """How completions are sampled, everywhere."""

    max_new_tokens: int
    shortest_limit: int | None
    temperature: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "max_new_tokens", at, 1)
        _number(self, "shortest_limit", at, 1, self.max_new_tokens)
        _number(self, "temperature", at, 0, above=True)


@dataclass
class SFTConfig:
    """The reference policy."""

    path: str | None
    revision: str | None
    seed: int
    epochs: float
    batch_size: int
    max_tokens: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "epochs", at, 0, above=True)
        _number(self, "batch_size", at, 1)
        _number(self, "max_tokens", at, 2)


@dataclass
class GroupsConfig:
    """K reference completions for each training prompt."""

    seed: int
    k: int
    eos: Eos
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "k", at, 2)
        _number(self, "batch_size", at, 1)


@dataclass
class PolicyConfig:
    """The training of the policy."""

    epochs: float
    steps: int | None
    batch_size: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "epochs", at, 0, above=True)
        _number(self, "steps", at, 1)
        _number(self, "batch_size", at, 1)


@dataclass
class EvaluationConfig:
    """Reward and KL on the validation and test prompts."""

    seed: int
    samples: int
    every: int
    batch_size: int
    bootstrap: int
    confidence: float

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "samples", at, 1)
        _number(self, "every", at, 1)
        _number(self, "batch_size", at, 1)
        _number(self, "bootstrap", at, 100)
        _number(self, "confidence", at, 0.5, 0.9999)


@dataclass
class TrainerConfig:
    """The machine."""

    device: Device
    precision: Precision
    processes: int
    threads: int | None
    micro_batch: int | None
    checkpoint_every: int
    log_every: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "processes", at, 1)
        _number(self, "threads", at, 1)
        _number(self, "micro_batch", at, 1)
        _number(self, "checkpoint_every", at, 0)
        _number(self, "log_every", at, 1)


@dataclass
class LoggerConfig:
    """What every logger has."""

    name: str


@dataclass
class NoLogger(LoggerConfig):
    """Only the run's own files."""


@dataclass
class WandbLogger(LoggerConfig):
    """A Weights & Biases mirror of the run's own files."""

    project: str
    entity: str | None
    group: str | None
    mode: WandbMode
    tags: list[str]


@dataclass
class LauncherConfig:
    """How many jobs of a sweep run at once."""

    name: str
    jobs: int | None

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "jobs", at, 1)


@dataclass
class PathsConfig:
    """Where everything is written."""

    outputs: str


@dataclass
class Run:
    """What every algorithm has."""

    algo: str
    seed: int
    plan: bool
    keep_model: KeepModel
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    generation: GenerationConfig
    sft: SFTConfig
    evaluation: EvaluationConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    launcher: LauncherConfig
    paths: PathsConfig

    def __post_init__(self) -> None:
        check(self)
        prompt = self.data.prompts.max_tokens
        total = prompt + self.generation.max_new_tokens
        if isinstance(self.model, ScratchModel) and self.sft.path is None:
            if total > self.model.context:
                raise ConfigError(
                    f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={self.generation.max_new_tokens} is "
                    f"longer than model.context={self.model.context}; shorten them or raise model.context"
                )
            if self.sft.max_tokens > self.model.context:
                raise ConfigError(
                    f"sft.max_tokens={self.sft.max_tokens} is longer than model.context={self.model.context}; "
                    "shorten it or raise model.context"
                )
        if self.sft.path is None and self.sft.revision is not None:
            raise ConfigError(
                f"sft.revision={self.sft.revision} is used with sft.path alone; set sft.path or model.revision"
            )
        if self.data.preferences is not None and not self.uses_groups:
            raise ConfigError(
                f"data.preferences={self.data.preferences} is not used by algo={self.algo}"
                f"{'' if self.variant is None else f' ({self.variant})'}; drop it or choose algo=dpo"
            )
        self._divides("sft.batch_size", self.sft.batch_size)
        if isinstance(self.reward, TwoLabelReward):
            if self.sft.path is not None and self.reward.init == Init.base:
                raise ConfigError(
                    "reward.init=base is the model that SFT starts from, and sft.path leaves none; use sft"
                )
            self._divides("reward.batch_size", self.reward.batch_size)

    def _divides(self, name: str, value: int) -> None:
        if value % self.trainer.processes:
            raise ConfigError(
                f"{name}={value} is not a multiple of trainer.processes={self.trainer.processes}; choose a multiple"
            )

    @property
    def knob(self) -> tuple[str, float] | None:
        """Name and value of the key that a paper sweeps for this algorithm, or None."""
        return None

    @property
    def variant(self) -> str | None:
        """What sets runs of one algorithm apart as methods of their own, or None."""
        return None

    @property
    def uses_groups(self) -> bool:
        """Whether K completions of each training prompt are needed."""
        return False

    @property
    def uses_learned_reward(self) -> bool:
        """Whether a reward model is needed."""
        return False

    @property
    def uses_reservoir(self) -> bool:
        """Whether M reference samples of each evaluation prompt are needed."""
        return False


@dataclass
class SFTRun(Run):
    """`algo=sft`: the reference policy itself, evaluated."""


@dataclass
class OwnModelConfig:
    """A causal LM that exists."""

    path: str
    revision: str | None
    name: str | None

    def check(self, at: str) -> None:
        """Refuse a path or a name that is empty."""
        for key in ("path", "name"):
            if getattr(self, key) == "":
                raise ConfigError(f"{at}{key} is empty; give one, or leave {at}name=null")


@dataclass
class OwnModelRun(Run):
    """`algo=own_model`: a model that exists, evaluated as a policy."""

    own_model: OwnModelConfig

    @property
    def variant(self) -> str | None:
        """Its name: as given, or its Hub id, or its folder's name; that of a run's `model/` is the run's."""
        given, path = self.own_model.name, self.own_model.path
        if given is not None or not os.path.isdir(os.path.expanduser(path)):
            return given or path
        folder, last = os.path.split(os.path.abspath(os.path.expanduser(path)))
        return os.path.basename(folder) if last == "model" and os.path.basename(folder) else last


@dataclass
class PairsConfig:
    """Which pairs are drawn from the groups, and who wins them."""

    labels: Labels
    tau: float | None
    noise: float | None
    min_margin: float
    ties: Ties
    order: Order

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "tau", at, 0, above=True)
        _number(self, "noise", at, 0, 0.5)
        _number(self, "min_margin", at, 0)
        if self.ties == Ties.random and self.min_margin > 0:
            raise ConfigError(
                f"{at}ties=random has no effect: {at}min_margin={self.min_margin} drops every tie; set it to 0"
            )
        if self.tau is not None and self.labels != Labels.bradley_terry:
            raise ConfigError(
                f"{at}tau={self.tau} is used by {at}labels=bradley_terry alone; drop it or set the labels"
            )
        if self.noise is not None and self.labels != Labels.noisy:
            raise ConfigError(f"{at}noise={self.noise} is used by {at}labels=noisy alone; drop it or set the labels")
        if self.noise is None and self.labels == Labels.noisy:
            raise ConfigError(
                f"{at}labels=noisy needs {at}noise, the share of flipped labels; for example {at}noise=0.1"
            )


@dataclass
class GroupsRun(Run):
    """What every algorithm that learns from groups of completions has."""

    groups: GroupsConfig
    pairs: PairsConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uses_groups:
            longest = self.data.prompts.max_tokens + self.generation.max_new_tokens + 1
            context = self.model.context if isinstance(self.model, ScratchModel) and self.sft.path is None else longest
            if self.groups.eos == Eos.appended and longest > context:
                raise ConfigError(
                    f"groups.eos=appended makes rows of {longest} tokens, longer than model.context={context}; "
                    "shorten generation.max_new_tokens"
                )
        if self.data.preferences is not None and self.pairs.labels == Labels.bradley_terry:
            raise ConfigError(
                "pairs.labels=bradley_terry draws labels from rewards, but data.preferences brings its own; "
                "use pairs.labels=deterministic or noisy"
            )

    @property
    def uses_groups(self) -> bool:
        """They are what is learnt from."""
        return True


@dataclass
class PreferenceRun(GroupsRun):
    """What every algorithm that trains a policy on groups has."""

    policy: PolicyConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("policy.batch_size", self.policy.batch_size)


@dataclass
class DPOConfig:
    """Which loss of the family."""

    loss: DPOLoss
    label_smoothing: float
    average_logprobs: bool

    def check(self, at: str) -> None:
        """Refuse a value out of range, or a key that the loss does not use."""
        _number(self, "label_smoothing", at, 0, 0.4999)
        if self.label_smoothing and self.loss not in (DPOLoss.sigmoid, DPOLoss.robust):
            raise ConfigError(
                f"{at}label_smoothing={self.label_smoothing} is used by {at}loss=sigmoid and robust alone; set it to 0"
            )
        if self.loss == DPOLoss.robust and not self.label_smoothing:
            raise ConfigError(
                f"{at}loss=robust needs {at}label_smoothing, the share of flipped labels; "
                f"for example {at}label_smoothing=0.1"
            )
        if self.average_logprobs and self.loss != DPOLoss.ipo:
            raise ConfigError(f"{at}average_logprobs=true is used by {at}loss=ipo alone; drop it")


@dataclass
class DPORun(PreferenceRun):
    """`algo=dpo`: direct preference optimization; the knob is beta."""

    beta: float
    dpo: DPOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _number(self, "beta", "", 0, above=True)
        if self.dpo.loss == DPOLoss.plackett_luce:
            if self.data.preferences is not None:
                raise ConfigError(
                    "dpo.loss=plackett_luce ranks groups of completions, but data.preferences brings pairs; "
                    "use another dpo.loss"
                )
            if self.pairs.labels == Labels.noisy:
                raise ConfigError(
                    "pairs.labels=noisy flips pairs, and dpo.loss=plackett_luce has rankings; use bradley_terry"
                )

    @property
    def knob(self) -> tuple[str, float] | None:
        """Beta."""
        return "beta", self.beta

    @property
    def variant(self) -> str | None:
        """The loss, where it is not the paper's."""
        return None if self.dpo.loss == DPOLoss.sigmoid else str(self.dpo.loss)


@dataclass
class UnlikelihoodRun(PreferenceRun):
    """`algo=unlikelihood`: the winner's likelihood up, the loser's down with weight alpha, which is the knob."""

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _number(self, "alpha", "", 0)

    @property
    def knob(self) -> tuple[str, float] | None:
        """Alpha."""
        return "alpha", self.alpha


@dataclass
class PreferredFTRun(PreferenceRun):
    """`algo=preferred_ft`: supervised fine-tuning on the winners."""


@dataclass
class RewardModelConfig:
    """The learned reward."""

    seed: int
    init: Init
    objective: Objective
    epochs: float
    batch_size: int
    validation: float
    evaluations: int
    optim: OptimConfig

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "epochs", at, 0, above=True)
        _number(self, "batch_size", at, 1)
        _number(self, "validation", at, 0, 0.5, above=True)
        _number(self, "evaluations", at, 1)


@dataclass
class LearnedRun(GroupsRun):
    """What every algorithm that can use a reward model has."""

    reward_model: RewardModelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uses_learned_reward:
            return
        self._divides("reward_model.batch_size", self.reward_model.batch_size)
        if self.sft.path is not None and self.reward_model.init == Init.base:
            raise ConfigError(
                "reward_model.init=base is the model that SFT starts from, and sft.path leaves none; use sft"
            )
        if self.reward_model.objective == Objective.best_of_k:
            if self.data.preferences is not None:
                raise ConfigError(
                    "reward_model.objective=best_of_k chooses from groups, but data.preferences brings pairs; use pairs"
                )
            if self.pairs.labels == Labels.noisy:
                raise ConfigError(
                    "pairs.labels=noisy flips pairs, and reward_model.objective=best_of_k has choices; "
                    "use bradley_terry"
                )

    @property
    def uses_groups(self) -> bool:
        """The reward model learns from them."""
        return self.uses_learned_reward


@dataclass
class RewardModelRun(LearnedRun):
    """`algo=reward_model`: the learned reward itself, held to account."""

    @property
    def uses_learned_reward(self) -> bool:
        """It is the result."""
        return True

    @property
    def variant(self) -> str | None:
        """What it is trained on, where that is not pairs."""
        return None if self.reward_model.objective == Objective.pairs else str(self.reward_model.objective)


@dataclass
class ReservoirConfig:
    """M reference samples of each evaluation prompt."""

    seed: int
    samples: int
    batch_size: int

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        _number(self, "samples", at, 2)
        _number(self, "batch_size", at, 1)


@dataclass
class BestOfNConfig:
    """By what the best is chosen."""

    selector: RewardSource


@dataclass
class BestOfNRun(LearnedRun):
    """`algo=best_of_n`: the best of N reference samples; nothing is trained; the knob is n."""

    n: int
    best_of_n: BestOfNConfig
    reservoir: ReservoirConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _number(self, "n", "", 1)
        if self.n > self.reservoir.samples:
            raise ConfigError(
                f"n={self.n} is above reservoir.samples={self.reservoir.samples}; lower the one or raise the other"
            )

    @property
    def knob(self) -> tuple[str, float] | None:
        """N."""
        return "n", self.n

    @property
    def variant(self) -> str | None:
        """The selector."""
        return str(self.best_of_n.selector)

    @property
    def uses_learned_reward(self) -> bool:
        """Where it selects."""
        return self.best_of_n.selector == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """The samples to choose from."""
        return True


@dataclass
class PPOConfig:
    """Proximal policy optimization: constants of the optimisation, and what is optimised."""

    preset: str
    reward: RewardSource
    scale: Scale
    normalize: bool
    value: ValueNetwork
    episodes: int
    batch_size: int
    minibatch_size: int
    epochs: int
    rollout_batch_size: int
    gamma: float
    lam: float
    policy_clip: float
    value_clip: float
    value_coefficient: float
    whiten_rewards: bool
    advantage_whitening: Whitening
    kl_coefficient: float | None
    initial_kl_coefficient: float | None
    min_kl_coefficient: float
    max_kl_coefficient: float
    horizon: float | None
    coefficient_range: float
    missing_eos_penalty: float
    early_stop_kl: float | None
    optim: OptimConfig

    @property
    def batches(self) -> int:
        """Batches of episodes in a run."""
        return self.episodes // self.batch_size

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that a batch of episodes is used for."""
        return self.epochs * (self.batch_size // self.minibatch_size)

    def check(self, at: str) -> None:
        """Refuse a value out of range."""
        for key in ("batch_size", "minibatch_size", "epochs", "rollout_batch_size"):
            _number(self, key, at, 1)
        for key in ("gamma", "lam"):
            _number(self, key, at, 0, 1)
        for key in ("policy_clip", "value_clip", "horizon", "coefficient_range", "early_stop_kl"):
            _number(self, key, at, 0, above=True)
        for key in ("kl_coefficient", "value_coefficient", "missing_eos_penalty"):
            _number(self, key, at, 0)
        for key in ("initial_kl_coefficient", "min_kl_coefficient", "max_kl_coefficient"):
            _number(self, key, at, 0, above=True)
        if self.batch_size % self.minibatch_size:
            raise ConfigError(
                f"{at}minibatch_size={self.minibatch_size} does not divide {at}batch_size={self.batch_size}; "
                "choose a divisor"
            )
        if self.episodes < self.batch_size:
            raise ConfigError(
                f"{at}episodes={self.episodes} is less than one batch ({at}batch_size={self.batch_size}); raise it"
            )
        if self.min_kl_coefficient > self.max_kl_coefficient:
            raise ConfigError(
                f"{at}min_kl_coefficient={self.min_kl_coefficient} is above "
                f"{at}max_kl_coefficient={self.max_kl_coefficient}; lower the one or raise the other"
            )
        if self.horizon is not None and self.horizon <= 0.2 * self.batch_size:
            raise ConfigError(
                f"{at}horizon={self.horizon} is so short that one batch of {self.batch_size} episodes would take the "
                f"coefficient to 0; give more than {0.2 * self.batch_size:g}"
            )
        start = self.initial_kl_coefficient
        if start is not None and not self.min_kl_coefficient <= start <= self.max_kl_coefficient:
            raise ConfigError(
                f"{at}initial_kl_coefficient={start} is outside {at}min_kl_coefficient={self.min_kl_coefficient} to "
                f"{at}max_kl_coefficient={self.max_kl_coefficient}; choose one between"
            )


@dataclass
class PPORun(LearnedRun):
    """`algo=ppo`: proximal policy optimization; the knob is target_kl, or the fixed coefficient."""

    target_kl: float | None
    ppo: PPOConfig
    reservoir: ReservoirConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _number(self, "target_kl", "", 0, above=True)
        fixed = self.ppo.kl_coefficient
        if self.target_kl is not None and fixed is not None:
            raise ConfigError(
                f"target_kl={self.target_kl} and ppo.kl_coefficient={fixed} exclude each other: one is adaptive, the "
                "other fixed; set target_kl=null or ppo.kl_coefficient=null"
            )
        if self.ppo.scale == Scale.logit and self.uses_learned_reward:
            raise ConfigError(
                "ppo.scale=logit is a scale of the true reward, and ppo.reward=learned has its own; "
                "set ppo.reward=ground_truth or ppo.scale=reward"
            )
        if self.target_kl is None and fixed is None:
            raise ConfigError("target_kl=null needs ppo.kl_coefficient, the fixed one; or give target_kl")
        self._divides("ppo.minibatch_size", self.ppo.minibatch_size)

    @property
    def knob(self) -> tuple[str, float] | None:
        """The target, or the fixed coefficient."""
        if self.target_kl is not None:
            return "target_kl", self.target_kl
        assert self.ppo.kl_coefficient is not None
        return "kl_coefficient", self.ppo.kl_coefficient

    @property
    def variant(self) -> str | None:
        """What is optimised, and by which preset."""
        return f"{self.ppo.reward}, {self.ppo.preset}"

    @property
    def uses_learned_reward(self) -> bool:
        """Where it is optimised."""
        return self.ppo.reward == RewardSource.learned

    @property
    def uses_reservoir(self) -> bool:
        """For the coefficient to begin with, and the true reward's scale."""
        adaptive = self.target_kl is not None and self.ppo.initial_kl_coefficient is None
        return adaptive or (self.ppo.normalize and self.ppo.reward == RewardSource.ground_truth)


def check(node: Any, at: str = "") -> None:
    """Check `node` and all below it: every number finite, every value in its range.

    Raises:
        ConfigError: naming the key.
    """
    if at and hasattr(node, "check"):
        node.check(at)
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            check(value, f"{at}{field.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{at}{field.name}={value} is not a finite number; give one that is")


def check_processes(wanted: int) -> None:
    """Refuse a number of running processes that is not the wanted one.

    `accelerate launch --cpu --num_processes 2` silently runs one; torchrun says how many there are in WORLD_SIZE.

    Raises:
        ConfigError: naming both numbers and the way out.
    """
    running = int(os.environ.get("WORLD_SIZE", "1"))
    if running != wanted:
        raise ConfigError(
            f"trainer.processes={wanted}, but {running} running; start with `torchrun --nproc-per-node {wanted} "
            f"train.py ...` (ACCELERATE_USE_CPU=true on CPUs) or set trainer.processes={running}"
        )
