"""Every constant of every preset beside its source, and how often PPO's presets are evaluated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from imdb_rlhf import typed_run
from imdb_rlhf.config.algos import PPORun
from imdb_rlhf.training.loop import evaluation_due
from tests.command import composed, run_of

CONF = typed_run.CONF

# Where constants come from. DPO_CODE is github.com/eric-mitchell/direct-preference-optimization at f8b8c0f, LM is
# github.com/openai/lm-human-preferences at cbfd210, TRL is github.com/huggingface/trl in spring 2023.
PAPER = "arXiv 2305.18290"
DPO_CODE = "DPO authors' code"
LM, TRL = "lm-human-preferences", "TRL 0.4"
LM_PPO, LM_TASK = f"{LM}, train_policy.py, PpoHParams", f"{LM}, launch.py, sentiment"
LM_KL = f"{LM}, train_policy.py, AdaptiveKLController"
LM_ADAM = f"{LM}, utils/core.py, minimize: tf.train.AdamOptimizer(lr, epsilon=1e-5)"
LM_LR = f"{LM}, train_policy.py, train_minibatch: lr * (1 - policy_frac)"
TRL_CONFIG = f"{TRL}, ppo_config.py, PPOConfig"
TRL_ADAM = f"{TRL}, ppo_trainer.py: torch.optim.Adam(lr)"
NOTEBOOK = f"{TRL}, examples/sentiment/notebooks/gpt2-sentiment.ipynb"
UNSTATED = "stated by no source; docs/methods.md"
NAME = "its own name"


@dataclass(frozen=True)
class Preset:
    """A preset's files in conf/, a command that composes it, and (value, source) of each of its constants.

    Without a command the file itself is compared: whoever takes it sets some of its values.

    Attributes:
        section: the part of an `experiment_algo` file.
        at: the section of a run that an optimizer's file fills.
    """

    files: list[str]
    command: list[str]
    constants: dict[str, tuple[Any, str]]
    section: str = ""
    at: str = ""


# What ppo=paper, ziegler and trl_2023 share.
PPO = {
    "ppo.gamma": (1.0, f"{LM_PPO}.gamma; {TRL_CONFIG}.gamma"),
    "ppo.lam": (0.95, f"{LM_PPO}.lam; {TRL_CONFIG}.lam"),
    "ppo.policy_clip": (0.2, f"{LM_PPO}.cliprange; {TRL_CONFIG}.cliprange"),
    "ppo.value_clip": (0.2, f"{LM_PPO}.cliprange_value; {TRL_CONFIG}.cliprange_value"),
    "ppo.value_coefficient": (0.1, f"{LM_PPO}.vf_coef; {TRL_CONFIG}.vf_coef"),
    "ppo.epochs": (4, f"{LM_PPO}.noptepochs; {TRL_CONFIG}.ppo_epochs"),
    "ppo.advantage_whitening": (
        "minibatch",
        f"{LM}, train_policy.py, loss; {TRL}, ppo_trainer.py, loss: both whiten what one step sees",
    ),
    "ppo.optim.beta1": (0.9, f"{LM_ADAM}, its default; {TRL_ADAM}, its default"),
    "ppo.optim.beta2": (0.999, f"{LM_ADAM}, its default; {TRL_ADAM}, its default"),
    "ppo.optim.weight_decay": (0.0, f"{LM_ADAM}: none; {TRL_ADAM}: none"),
    "ppo.optim.max_grad_norm": (None, f"{LM_ADAM}: none; {TRL_CONFIG}.max_grad_norm"),
}
ZIEGLER = {
    **PPO,
    "target_kl": (6.0, f"{LM_TASK}: rewards.adaptive_kl.target"),
    "ppo.preset": ("ziegler", NAME),
    "ppo.normalize": (True, f"{LM}, launch.py, get_train_reward_experiments: normalize_after"),
    "ppo.value": ("shared", f"{LM}, policy.py: model.Model(scalar_heads=['value']) is the policy's own"),
    "ppo.batch_size": (512, f"{LM_TASK}: ppo.batch_size"),
    "ppo.minibatch_size": (512, f"{LM_PPO}.nminibatches is 1"),
    "ppo.whiten_rewards": (True, f"{LM_PPO}.whiten_rewards"),
    "ppo.initial_kl_coefficient": (0.15, f"{LM_TASK}: rewards.kl_coef"),
    "ppo.controller": ("ziegler", LM_KL),
    "ppo.horizon": (10_000.0, f"{LM}, train_policy.py, AdaptiveKLParams.horizon"),
    "ppo.coefficient_range": (2.5, "not used: a horizon is given"),
    "ppo.lr_target_kl": (None, f"{LM_TASK}: one rate"),
    "ppo.optim.lr": (1e-5, f"{LM_TASK}: ppo.lr"),
    "ppo.optim.schedule": ("linear", LM_LR),
    "ppo.optim.eps": (1e-5, LM_ADAM),
}
PAIRS = {
    "policy.epochs": (1.0, f"{DPO_CODE}, config.yaml: n_epochs; the paper states none"),
    "policy.batch_size": (64, f"{PAPER}, appendix B: batch 64"),
    "policy.precision": ("float32", f"{DPO_CODE}, config/model/gpt2-large.yaml: policy_dtype"),
    "policy.optim.lr": (1e-6, f"{PAPER}, appendix B: RMSprop at 1e-6"),
    "policy.optim.warmup_steps": (150, f"{PAPER}, appendix B: linear warm-up over 150 steps"),
    "policy.optim.schedule": ("constant", f"{DPO_CODE}, trainers.py: LambdaLR(min(1, ...))"),
}
BASELINE = {key: (value, f"{UNSTATED}: as dpo, {source}") for key, (value, source) in PAIRS.items()}
LEARNED = {
    "reward_model.init": ("base", f"{PAPER}, appendix C.1: initialised from gpt2-large"),
    "reward_model.epochs": (3.0, f"{PAPER}, appendix C.1: 3 epochs"),
    "reward_model.batch_size": (192, f"{LM}, launch.py, _books_task: batch_size 32, of groups of 4: 6 pairs each"),
    "reward_model.optim.lr": (5e-5, f"{LM}, launch.py, _books_task: lr"),
    "reward_model.optim.warmup_steps": (20, UNSTATED),
    "reward_model.optim.schedule": ("linear", f"{LM}, train_reward.py, train: (1 - start_index / num_train) * lr"),
}
RESERVOIR = {"reservoir.samples": (128, "ours: best-of-N for N of up to 128")}
SAMPLES = "ours: prompts that are held out"
# Methods that the DPO paper has not. GRPO_PAPER is arXiv 2402.03300, section 4.2.
TRL_116, GRPO_PAPER = "TRL 1.16", "DeepSeekMath"


def online(algo: str, **changes: tuple[Any, str]) -> dict[str, tuple[Any, str]]:
    """The constants of a method that learns from its own completions."""
    constants: dict[str, tuple[Any, str]] = {
        "episodes": (204_800, f"{UNSTATED}: as ppo"),
        "batch_size": (512, f"{UNSTATED}: twice as many updates as ppo has batches, for one step per batch"),
        "optim.lr": (1e-6, f"{TRL_116}, {algo}_config.py: learning_rate"),
        "optim.warmup_steps": (0, f"{TRL_116}: none"),
        "optim.schedule": ("constant", f"{UNSTATED}: as dpo"),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return {f"{algo}.{key}": value for key, value in constants.items()}


ONE_STEP = {
    "minibatch_size": (512, f"{GRPO_PAPER}: one update per batch; {TRL_116}: num_iterations"),
    "epochs": (1, f"{GRPO_PAPER}: one update per batch; {TRL_116}: num_iterations"),
}
ONLINE: dict[str, dict[str, tuple[Any, str]]] = {
    "reinforce": online(
        "reinforce",
        baseline=("moving_average", "arXiv 2402.14740, section 2: REINFORCE's baseline"),
        optim__lr=(1e-6, f"{TRL_116}, rloo_config.py: learning_rate"),
    ),
    "rloo": online("rloo", **ONE_STEP),
    "grpo": online(
        "grpo",
        **{
            **ONE_STEP,
            "k": (64, f"{GRPO_PAPER}: 64 outputs per question"),
            "batch_size": (1024, f"{GRPO_PAPER}: training batch"),
            "minibatch_size": (1024, f"{GRPO_PAPER}: one update per batch"),
            "optim__lr": (1e-6, f"{GRPO_PAPER}: policy's learning rate"),
        },
    )
    | {"beta": (0.04, f"{GRPO_PAPER}: KL coefficient")},
    "online_dpo": online("online_dpo", **ONE_STEP, optim__lr=(5e-7, f"{TRL_116}, online_dpo_config.py: learning_rate")),
}


OURS = "ours: no paper has this method at this scale"
VALUE: dict[str, tuple[Any, str]] = {
    "value.batch_size": (256, OURS),
    "value.optim.lr": (5e-5, OURS),
}

PRESETS = {
    "ppo/paper": Preset(
        ["ppo/paper"],
        ["algo=ppo", "ppo=paper"],
        {
            **PPO,
            "target_kl": (6.0, f"{PAPER}, section 6.1: 3, 6, 9 or 12; the one that lm-human-preferences has"),
            "ppo.preset": ("paper", NAME),
            "ppo.normalize": (True, f"{PAPER}, section 6: its PPO normalises rewards"),
            "ppo.value": ("own", UNSTATED),
            "ppo.batch_size": (1024, f"{PAPER}, appendix C.1: 1,024 episodes per step"),
            "ppo.minibatch_size": (1024, f"{LM_PPO}.nminibatches is 1"),
            "ppo.whiten_rewards": (True, f"{LM_PPO}.whiten_rewards"),
            "ppo.initial_kl_coefficient": (None, f"{UNSTATED}: from the reservoir"),
            "ppo.controller": ("ziegler", LM_KL),
            "ppo.horizon": (None, f"{UNSTATED}: from the episodes"),
            "ppo.coefficient_range": (2.5, f"{UNSTATED}: own runs"),
            "ppo.lr_target_kl": (None, f"{LM_TASK}: one rate"),
            "ppo.optim.lr": (1e-5, f"{LM_TASK}: ppo.lr"),
            "ppo.optim.schedule": ("linear", LM_LR),
            "ppo.optim.eps": (1e-5, LM_ADAM),
        },
    ),
    "ppo/ziegler": Preset(["ppo/paper", "ppo/ziegler"], ["algo=ppo", "ppo=ziegler"], ZIEGLER),
    "ppo/trl_2023": Preset(
        ["ppo/paper", "ppo/trl_2023"],
        ["algo=ppo", "ppo=trl_2023"],
        {
            **PPO,
            "target_kl": (6.0, f"{TRL_CONFIG}.target"),
            "ppo.preset": ("trl_2023", NAME),
            "ppo.normalize": (False, f"{NOTEBOOK}: rewards are raw logits"),
            "ppo.value": ("shared", f"{TRL}, AutoModelForCausalLMWithValueHead: v_head on the policy's states"),
            "ppo.batch_size": (256, f"{TRL_CONFIG}.batch_size"),
            "ppo.minibatch_size": (
                16,
                f"{TRL}, examples/sentiment/scripts/gpt2-sentiment.py: mini_batch_size; {TRL_CONFIG} has 1, "
                "where whitening inside one response cancels the reward's size",
            ),
            "ppo.whiten_rewards": (False, f"{TRL}, ppo_trainer.py, loss: rewards are not whitened"),
            "ppo.initial_kl_coefficient": (0.2, f"{TRL_CONFIG}.init_kl_coef"),
            "ppo.controller": ("ziegler", f"{TRL}, ppo_trainer.py: AdaptiveKLController"),
            "ppo.horizon": (10_000.0, f"{TRL_CONFIG}.horizon"),
            "ppo.coefficient_range": (2.5, "not used: a horizon is given"),
            "ppo.lr_target_kl": (None, f"{TRL_CONFIG}: one rate"),
            "ppo.optim.lr": (1.41e-5, f"{NOTEBOOK}: learning_rate"),
            "ppo.optim.schedule": ("constant", f"{NOTEBOOK}: no lr_scheduler"),
            "ppo.optim.eps": (1e-8, f"{TRL_ADAM}, its default"),
        },
    ),
    # The two that no source has: what they change, of models of a few million parameters.
    "ppo/small": Preset(
        ["ppo/small"],
        ["algo=ppo", "ppo=small"],
        {
            "target_kl": (3.0, "the lowest target of the paper"),
            "ppo.preset": ("small", NAME),
            "ppo.batch_size": (256, "own runs: docs/methods.md"),
            "ppo.minibatch_size": (256, "own runs: the whole batch"),
            "ppo.epochs": (3, "own runs"),
            "ppo.value_coefficient": (1.0, "own runs: the value head has a network of its own"),
            "ppo.whiten_rewards": (False, "own runs"),
            "ppo.controller": ("proportional_integral", "own runs: docs/methods.md"),
            "ppo.coefficient_range": (None, "of the other controller"),
            "ppo.lr_target_kl": (3.0, "its target_kl, for which the rate was tuned"),
            "ppo.optim.lr": (1.3e-4, "own runs"),
            "ppo.optim.warmup_steps": (10, "own runs"),
            "ppo.optim.max_grad_norm": (1.0, "own runs"),
            "ppo.optim.schedule": ("constant", "own runs: the controller has to settle the KL"),
        },
    ),
    "ppo/imdb_cpu": Preset(
        ["ppo/imdb_cpu"],
        ["algo=ppo", "ppo=imdb_cpu"],
        {
            "ppo.preset": ("imdb_cpu", NAME),
            "ppo.epochs": (4, "own runs"),
            "ppo.optim.lr": (1e-4, "own runs"),
            "ppo.optim.warmup_steps": (5, "own runs"),
        },
    ),
    "algo/dpo": Preset(
        ["algo/dpo"],
        ["experiment=paper", "algo=dpo"],  # experiment=default trains with other values
        {
            "algo": ("dpo", NAME),
            "beta": (0.1, f"{PAPER}, appendix B: beta 0.1"),
            "policy.optim.lr": PAIRS["policy.optim.lr"],
            "policy.optim.warmup_steps": PAIRS["policy.optim.warmup_steps"],
            "dpo.loss": ("sigmoid", f"{PAPER}, equation 7"),
            "dpo.divergence": ("reverse_kl", f"{PAPER}, equation 3"),
            "dpo.divergence_alpha": (None, f"{PAPER}, equation 3: none"),
            "dpo.label_smoothing": (0.0, f"{PAPER}, equation 7; {DPO_CODE}, config/loss/dpo.yaml: label_smoothing"),
            "dpo.average_logprobs": (False, f"{PAPER}, equation 7: log-probs of whole completions"),
        },
    ),
    "optim/rmsprop": Preset(
        ["optim/rmsprop"],
        ["experiment=paper", "algo=dpo"],
        {
            "name": ("rmsprop", f"{PAPER}, appendix B; {DPO_CODE}, config.yaml: optimizer"),
            "lr": PAIRS["policy.optim.lr"],
            "warmup_steps": PAIRS["policy.optim.warmup_steps"],
            "schedule": PAIRS["policy.optim.schedule"],
            "max_grad_norm": (10.0, f"{DPO_CODE}, config.yaml: max_grad_norm"),
            "alpha": (0.99, f"{DPO_CODE}, trainers.py: torch.optim.RMSprop(lr), its default"),
            "eps": (1e-8, f"{DPO_CODE}, trainers.py: torch.optim.RMSprop(lr), its default"),
        },
        at="policy.optim",
    ),
    "optim/adamw": Preset(
        ["optim/adamw"],
        [],
        {
            "name": ("adamw", "arXiv 1711.05101"),
            "lr": (1e-4, "ours: every stage that uses it sets its own"),
            "warmup_steps": (0, "ours"),
            "schedule": ("constant", "ours"),
            "max_grad_norm": (1.0, "ours"),
            "beta1": (0.9, "torch.optim.AdamW, its default"),
            "beta2": (0.98, "ours: torch has 0.999; runs here have some hundred steps"),
            "eps": (1e-8, "torch.optim.AdamW, its default"),
            "weight_decay": (0.01, "torch.optim.AdamW, its default"),
        },
    ),
    "experiment/paper": Preset(
        ["experiment/paper"],
        ["experiment=paper", "algo=ppo"],
        {
            "model.name": ("gpt2-large", f"{PAPER}, appendix C.1: gpt2-large"),
            "data.name": ("imdb", f"{PAPER}, appendix C.1: prefixes of IMDb reviews"),
            "reward.name": ("siebert", f"{PAPER}, appendix C.1: siebert/sentiment-roberta-large-english"),
            "ppo.preset": ("paper", NAME),
            "data.sft_reviews": (25_000, f"{PAPER}, appendix C.1: a subset of IMDb; its size is ours"),
            "data.prompts.train": (25_000, f"{PAPER}, appendix C.1: 25,000 prefixes"),
            "data.prompts.validation": (512, SAMPLES),
            "data.prompts.test": (512, SAMPLES),
            "sft.epochs": (1.0, f"{PAPER}, appendix C.1: 1 epoch"),
            "sft.batch_size": (64, UNSTATED),
            "sft.max_tokens": (512, f"{DPO_CODE}, config.yaml: max_length"),
            "sft.optim.lr": (1e-5, UNSTATED),
            "sft.optim.warmup_steps": (20, UNSTATED),
            "sft.optim.schedule": ("linear", UNSTATED),
            "evaluation.every": (100, f"{PAPER}, section 6.1: after every 100 training steps"),
            "evaluation.samples": (4, UNSTATED),
            "trainer.micro_batch": (16, "ours: memory; it changes no number"),
        },
    ),
    "experiment_algo/paper: dpo": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=dpo"], PAIRS, section="dpo"
    ),
    "experiment_algo/paper: unlikelihood": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=unlikelihood"], BASELINE, section="unlikelihood"
    ),
    "experiment_algo/paper: preferred_ft": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=preferred_ft"], BASELINE, section="preferred_ft"
    ),
    **{
        f"experiment_algo/paper: {algo}": Preset(
            ["experiment_algo/paper"], ["experiment=paper", f"algo={algo}"], BASELINE, section=algo
        )
        for algo in ("kto", "simpo", "orpo", "cpo", "exo")
    },
    "experiment_algo/paper: bon_sft": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=bon_sft"], {**BASELINE, **LEARNED}, section="bon_sft"
    ),
    "experiment_algo/paper: reward_model": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=reward_model"], LEARNED, section="reward_model"
    ),
    "experiment_algo/paper: best_of_n": Preset(
        ["experiment_algo/paper"],
        ["experiment=paper", "algo=best_of_n"],
        {**LEARNED, **RESERVOIR, "n": (64, f"{UNSTATED}: half of the reservoir")},
        section="best_of_n",
    ),
    "experiment_algo/paper: ppo": Preset(
        ["experiment_algo/paper"],
        ["experiment=paper", "algo=ppo"],
        {**LEARNED, **RESERVOIR, "ppo.episodes": (204_800, f"{UNSTATED}: 200 batches")},
        section="ppo",
    ),
    **{
        f"experiment_algo/paper: {algo}": Preset(
            ["experiment_algo/paper"],
            ["experiment=paper", f"algo={algo}"],
            {**LEARNED, **RESERVOIR, **ONLINE[algo]},
            section=algo,
        )
        for algo in ("reinforce", "rloo", "grpo", "online_dpo")
    },
    "experiment_algo/paper: guided": Preset(
        ["experiment_algo/paper"], ["experiment=paper", "algo=guided"], {**LEARNED, **VALUE}, section="guided"
    ),
    "experiment_algo/paper: distill": Preset(
        ["experiment_algo/paper"],
        ["experiment=paper", "algo=distill"],
        {
            **LEARNED,
            **VALUE,
            "policy.epochs": (1.0, OURS),
            "policy.optim.lr": (1e-5, OURS),
            "policy.optim.warmup_steps": (20, OURS),
            "policy.optim.schedule": ("linear", OURS),
        },
        section="distill",
    ),
    "experiment/trl_gpt2_sentiment": Preset(
        ["experiment/trl_gpt2_sentiment"],
        ["experiment=trl_gpt2_sentiment"],
        {
            "algo": ("ppo", f"{NOTEBOOK}: PPOTrainer"),
            "model.name": ("gpt2", f"{NOTEBOOK}: GPT2 (small)"),
            "data.name": ("imdb", f"{NOTEBOOK}: load_dataset('imdb')"),
            "reward.name": ("distilbert", f"{NOTEBOOK}: lvwerra/distilbert-imdb"),
            "ppo.preset": ("trl_2023", NAME),
            "data.br": ("keep", f"{NOTEBOOK}: reviews are tokenised as they are"),
            "data.min_characters": (201, f"{NOTEBOOK}: len(x['review']) > 200"),
            "data.prompts.train": (24_000, f"{NOTEBOOK}: split='train', about all that the filter leaves of 25,000"),
            "data.prompts.validation": (256, SAMPLES),
            "data.prompts.test": (512, SAMPLES),
            "data.prompts.max_tokens": (7, f"{NOTEBOOK}: LengthSampler(2, 8), which excludes 8"),
            "reward.ranking": ("positive_logit", f"{NOTEBOOK}: the logits for the positive class"),
            "sft.path": ("lvwerra/gpt2-imdb", f"{NOTEBOOK}: model_name"),
            "generation.max_new_tokens": (15, f"{NOTEBOOK}: LengthSampler(4, 16), which excludes 16"),
            "generation.shortest_limit": (4, f"{NOTEBOOK}: LengthSampler(4, 16)"),
        },
    ),
    "experiment_algo/trl_gpt2_sentiment: ppo": Preset(
        ["experiment_algo/trl_gpt2_sentiment"],
        ["experiment=trl_gpt2_sentiment"],
        {
            "ppo.reward": ("ground_truth", f"{NOTEBOOK}: the classifier's logit is the reward"),
            "ppo.scale": ("logit", f"{NOTEBOOK}: function_to_apply none"),
            "ppo.episodes": (24_064, f"{NOTEBOOK}: one pass over the dataset, in batches of 256"),
            "evaluation.every": (1280, "ours: the notebook evaluates at the end only"),
        },
        section="ppo",
    ),
}


def content_of(file: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def constants_of(preset: Preset) -> set[str]:
    """The keys that a preset's files set, and those of the groups that they choose."""

    def walk(node: dict[str, Any], at: str) -> set[str]:
        found: set[str] = set()
        for key, value in node.items():
            if key == "<<" and isinstance(value, dict):  # what a section takes from another
                found |= walk(value, at)
            elif isinstance(value, dict):
                found |= walk(value, f"{at}{key}.")
            elif key != "defaults":
                found.add(f"{at}{key}")
        return found

    keys: set[str] = set()
    for name in preset.files:
        content = content_of(CONF / f"{name}.yaml")
        keys |= walk(content[preset.section] if preset.section else content, "")
        for entry in content.get("defaults", []):
            group = next(iter(entry)).removeprefix("override /") if isinstance(entry, dict) else ""
            if isinstance(entry, dict) and "override /" in next(iter(entry)):
                keys.add({"ppo_preset": "ppo.preset", "algo": "algo"}.get(group, f"{group}.name"))
    return keys


ROWS = [(name, key) for name, preset in PRESETS.items() for key in preset.constants]


@pytest.mark.parametrize(("name", "key"), ROWS, ids=[f"{name}: {key}" for name, key in ROWS])
def test_a_constant_is_its_sources(name: str, key: str) -> None:
    preset = PRESETS[name]
    value, source = preset.constants[key]
    assert source
    if not preset.command:
        assert content_of(CONF / f"{preset.files[0]}.yaml")[key] == value
        return
    found: Any = run_of(*preset.command)
    for part in f"{preset.at}.{key}".lstrip(".").split("."):
        found = getattr(found, part)
    assert found == value, f"{name}: {key} should be {value}, by {source}"


@pytest.mark.parametrize("name", PRESETS)
def test_no_constant_is_forgotten(name: str) -> None:
    preset = PRESETS[name]
    assert constants_of(preset) == set(preset.constants), f"give each constant of {name} a source in this table"


def test_no_preset_is_forgotten() -> None:
    """Files of own experiments (default, imdb_cpu, rehearsal, smoke) have no source."""
    tabled = {file for preset in PRESETS.values() for file in preset.files}
    folders = {f"{folder}/{path.stem}" for folder in ("ppo", "optim") for path in (CONF / folder).glob("*.yaml")}
    assert folders <= tabled
    for name in ("paper", "trl_gpt2_sentiment"):
        sections = set(content_of(CONF / "experiment_algo" / f"{name}.yaml"))
        assert sections == {
            preset.section for key, preset in PRESETS.items() if key.startswith(f"experiment_algo/{name}")
        }


def test_the_tables_walk() -> None:
    """By hand, so that an empty set is not taken for a complete one."""
    assert constants_of(PRESETS["ppo/imdb_cpu"]) == {
        "ppo.preset",
        "ppo.epochs",
        "ppo.optim.lr",
        "ppo.optim.warmup_steps",
    }
    assert {"algo", "model.name", "ppo.preset", "sft.path"} <= constants_of(PRESETS["experiment/trl_gpt2_sentiment"])
    assert "reward_model.init" in constants_of(PRESETS["experiment_algo/paper: ppo"])  # from another section


# --- evaluations


@pytest.mark.parametrize(
    ("command", "first", "last"),
    [
        (["experiment=default"], [60], 96),  # 32 batches of 3 steps: after 20 and 32
        (["experiment=imdb_cpu"], [32], 64),  # 16 batches of 4: after 8 and 16
        (["experiment=smoke"], [6], 12),  # both batches of 6
        (["experiment=rehearsal"], [], 8),
        (["experiment=trl_gpt2_sentiment"], [1280, 2560, 3840, 5120], 6016),  # 94 batches of 64
        (["experiment=paper"], [100, 200, 300, 400, 500, 600, 700], 800),
        (["experiment=paper", "ppo=ziegler"], [100, 200, 300, 400], 1600),
        (["experiment=paper", "ppo=trl_2023"], [128, 256, 320, 448, 512, 640, 704, 832, 960, 1024], 51_200),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_when_ppo_is_evaluated(command: list[str], first: list[int], last: int) -> None:
    run = run_of("algo=ppo", *command)
    assert isinstance(run, PPORun)
    steps, period = run.ppo.batches * run.ppo.steps_per_batch, run.ppo.steps_per_batch
    points = [step for step in range(1, steps + 1) if evaluation_due(step, run.evaluation.every, steps, period)]
    assert (points[: len(first)], points[-1], steps) == (first, last, last)
    if command == ["experiment=paper"] or len(command) == 1:
        assert len(points) == len(first) + 1


def test_every_method_of_the_paper_is_evaluated_equally_often() -> None:
    for algo in ("dpo", "unlikelihood", "preferred_ft", "ppo"):
        assert OmegaConf.select(composed("experiment=paper", f"algo={algo}"), "evaluation.every") == 100
