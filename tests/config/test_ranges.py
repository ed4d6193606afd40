"""Ranges by hand: every number out of range is refused with its key, its value and the way out."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from imdb_rlhf.config.keys import CLASSES
from imdb_rlhf.config.ranges import Range, Seed, check, range_of
from imdb_rlhf.errors import ConfigError
from tests.command import refusal, run_of

ABOVE_0 = "give a number above 0"
AT_LEAST_0, AT_LEAST_1, AT_LEAST_2 = (f"give a number of at least {n}" for n in range(3))
TWO_LABEL = "reward=two_label"
SIEBERT = "reward=siebert"
IMDB = "data=imdb"
PPO = "algo=ppo"
PREFERENCES = "data.preferences=a.parquet"


# --- the walk


@dataclass
class Inner:
    share: Annotated[float, Range(0, 1)]
    rate: Annotated[float | None, Range(0, above=True)]
    name: str

    def check(self, at: str) -> None:
        if self.name == "half" and self.share != 0.5:
            raise ConfigError(f"{at}share is not a half")


@dataclass
class Outer:
    count: Annotated[int, Range(1, 3)]
    seed: Seed | None
    bare: float
    inner: Inner


def nested(share: float = 0.5, rate: float | None = None, name: str = "", **changes: float) -> Outer:
    values: dict[str, Any] = {"count": 1, "seed": None, "bare": 0.0, **changes}
    return Outer(**values, inner=Inner(share, rate, name))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(count=4), "count=4 is out of range; give a number of at least 1 and at most 3"),
        (nested(count=0), "count=0 is out of range; give a number of at least 1 and at most 3"),
        (nested(seed=-1), "seed=-1 is out of range; give a number of at least 0 and at most 9223372036854775807"),
        (nested(share=1.5), "inner.share=1.5 is out of range; give a number of at least 0 and at most 1"),
        (nested(rate=0.0), "inner.rate=0.0 is out of range; give a number above 0"),
        (nested(share=math.nan), "inner.share=nan is not a finite number; give one of at least 0 and at most 1"),
        (nested(rate=math.inf), "inner.rate=inf is not a finite number; give one above 0"),
        (nested(bare=-math.inf), "bare=-inf is not a finite number; give one that is"),
        (nested(share=0.4, name="half"), "inner.share is not a half"),
        (nested(share=-1, name="half"), "inner.share=-1 is out of range; give a number of at least 0 and at most 1"),
    ],
)
def test_the_walk_names_the_key_and_the_way_out(value, message):
    with pytest.raises(ConfigError) as refused:
        check(value)
    assert str(refused.value) == message


@pytest.mark.parametrize("value", [nested(), nested(share=0, rate=5e-324, count=3, seed=2**63 - 1), nested(share=1)])
def test_the_walk_takes_the_ends_of_a_range(value):
    check(value)


def test_every_number_has_a_range_and_every_seed_the_same():
    for name, schema in CLASSES.items():
        hints = get_type_hints(schema, include_extras=True)
        plain = get_type_hints(schema)
        for field in fields(schema):
            if get_origin(plain[field.name]) is list:
                continue  # `check` has its ends
            if {int, float} & {plain[field.name], *get_args(plain[field.name])}:
                wanted = range_of(hints[field.name])
                assert wanted is not None, f"{name}.{field.name}"
                assert field.name.removeprefix("init_") != "seed" or wanted == Range(0, 2**63 - 1)


# --- every key


@pytest.mark.parametrize(
    ("override", "way_out", "more"),
    [
        ("reward.lm_weight=-1", AT_LEAST_0, [TWO_LABEL]),
        ("seed=-1", AT_LEAST_0, []),
        ("seed=9223372036854775808", "at most 9223372036854775807", []),
        ("sft.seed=-1", AT_LEAST_0, []),
        ("data.seed=-1", AT_LEAST_0, []),
        ("groups.seed=-1", AT_LEAST_0, []),
        ("evaluation.seed=-1", AT_LEAST_0, []),
        ("reward.seed=-1", AT_LEAST_0, [TWO_LABEL]),
        ("reward_model.seed=-1", AT_LEAST_0, ["algo=reward_model"]),
        ("reservoir.seed=-1", AT_LEAST_0, ["algo=best_of_n"]),
        ("model.init_seed=-1", AT_LEAST_0, []),
        ("beta=1e7", "at most 1000000", []),
        ("generation.temperature=101", "at most 100", []),
        ("policy.optim.lr=1001", "at most 1000", []),
        ("policy.epochs=1001", "at most 1000", []),
        ("policy.batch_size=1000001", "at most 1000000", []),
        ("trainer.processes=5000", "at most 4096", []),
        ("trainer.threads=513", "at most 512", []),
        ("groups.k=10001", "at most 10000", []),
        ("ppo.policy_clip=11", "at most 10", [PPO]),
        ("ppo.lam=1.01", "at most 1", [PPO]),
        ("beta=0", ABOVE_0, []),
        ("beta=-1", ABOVE_0, []),
        ("generation.temperature=0", "of at least 0.001", []),
        ("generation.temperature=-0.5", "of at least 0.001", []),
        ("generation.max_new_tokens=0", AT_LEAST_1, []),
        ("groups.k=1", AT_LEAST_2, []),
        ("groups.k=0", AT_LEAST_2, []),
        ("groups.k=-4", AT_LEAST_2, []),
        ("groups.batch_size=0", AT_LEAST_1, []),
        ("policy.steps=0", AT_LEAST_1, []),
        ("policy.steps=-1", AT_LEAST_1, []),
        ("policy.epochs=0", ABOVE_0, []),
        ("policy.epochs=-1", ABOVE_0, []),
        ("policy.batch_size=0", AT_LEAST_1, []),
        ("policy.optim.lr=0", ABOVE_0, []),
        ("policy.optim.lr=-0.1", ABOVE_0, []),
        ("policy.optim.warmup_steps=-1", AT_LEAST_0, []),
        ("policy.optim.max_grad_norm=0", ABOVE_0, []),
        ("policy.optim.alpha=1", "at most", []),
        ("policy.optim.eps=0", ABOVE_0, []),
        ("sft.optim.beta1=1", "at most", []),
        ("sft.optim.beta2=-0.1", "at least 0", []),
        ("sft.optim.weight_decay=-1", AT_LEAST_0, []),
        ("sft.epochs=0", ABOVE_0, []),
        ("sft.batch_size=0", AT_LEAST_1, []),
        ("sft.max_tokens=1", AT_LEAST_2, []),
        ("data.sft_reviews=0", AT_LEAST_1, []),
        ("data.labelled_reviews=1", AT_LEAST_2, []),
        ("data.prompts.train=0", AT_LEAST_1, []),
        ("data.prompts.validation=0", AT_LEAST_1, []),
        ("data.prompts.test=-1", AT_LEAST_1, []),
        ("data.prompts.min_tokens=0", AT_LEAST_1, []),
        ("data.sft_reviews=-3", AT_LEAST_1, [IMDB]),
        ("data.min_characters=0", AT_LEAST_1, [IMDB]),
        ("model.layers=0", AT_LEAST_1, []),
        ("model.heads=0", AT_LEAST_1, []),
        ("model.width=0", AT_LEAST_1, []),
        ("model.context=2", "at least 4", []),
        ("model.tokenizer_size=256", "at least 260", []),
        ("evaluation.samples=0", AT_LEAST_1, []),
        ("evaluation.every=0", AT_LEAST_1, []),
        ("evaluation.every=-5", AT_LEAST_1, []),
        ("evaluation.batch_size=0", AT_LEAST_1, []),
        ("evaluation.bootstrap=99", "at least 100", []),
        ("evaluation.confidence=1", "at most 0.9999", []),
        ("evaluation.confidence=0.4", "at least 0.5", []),
        ("trainer.processes=0", AT_LEAST_1, []),
        ("trainer.threads=0", AT_LEAST_1, []),
        ("trainer.micro_batch=0", AT_LEAST_1, []),
        ("trainer.checkpoint_every=-1", AT_LEAST_0, []),
        ("trainer.log_every=0", AT_LEAST_1, []),
        ("pairs.noise=0.6", "at most 0.5", ["pairs.labels=noisy"]),
        ("pairs.tau=0", ABOVE_0, ["pairs.labels=bradley_terry"]),
        ("pairs.min_margin=-1", AT_LEAST_0, []),
        ("reward.batch_size=0", AT_LEAST_1, [SIEBERT]),
        ("reward.batch_size=0", AT_LEAST_1, [TWO_LABEL]),
        ("reward.score_batch_size=0", AT_LEAST_1, [TWO_LABEL]),
        ("reward.epochs=0", ABOVE_0, [TWO_LABEL]),
        ("reward.held_out=1", AT_LEAST_2, [TWO_LABEL]),
        ("reward.dropout=0.95", "at most 0.9", [TWO_LABEL]),
        ("reward.optim.lr=0", ABOVE_0, [TWO_LABEL]),
        ("generation.shortest_limit=0", AT_LEAST_1, []),
        ("generation.shortest_limit=49", "at most 48", ["generation.max_new_tokens=48"]),
        ("dpo.label_smoothing=0.5", "at most 0.4999", []),
        ("dpo.label_smoothing=-0.1", "at least 0", []),
        ("alpha=-0.1", AT_LEAST_0, ["algo=unlikelihood"]),
        ("policy.steps=0", AT_LEAST_1, ["algo=preferred_ft"]),
        ("reward_model.epochs=0", ABOVE_0, ["algo=reward_model"]),
        ("reward_model.batch_size=0", AT_LEAST_1, ["algo=reward_model"]),
        ("reward_model.validation=0", "above 0 and at most 0.5", ["algo=reward_model"]),
        ("reward_model.validation=0.6", "above 0 and at most 0.5", ["algo=reward_model"]),
        ("reward_model.evaluations=0", AT_LEAST_1, ["algo=reward_model"]),
        ("reward_model.optim.lr=0", ABOVE_0, ["algo=reward_model"]),
        ("n=0", AT_LEAST_1, ["algo=best_of_n"]),
        ("n=-2", AT_LEAST_1, ["algo=best_of_n"]),
        ("reservoir.samples=1", AT_LEAST_2, ["algo=best_of_n", "n=1"]),
        ("reservoir.batch_size=0", AT_LEAST_1, ["algo=best_of_n"]),
        ("target_kl=0", ABOVE_0, [PPO]),
        ("target_kl=-3", ABOVE_0, [PPO]),
        ("ppo.kl_coefficient=-0.1", AT_LEAST_0, [PPO, "target_kl=null"]),
        ("ppo.batch_size=0", AT_LEAST_1, [PPO]),
        ("ppo.minibatch_size=0", AT_LEAST_1, [PPO]),
        ("ppo.epochs=0", AT_LEAST_1, [PPO]),
        ("ppo.rollout_batch_size=0", AT_LEAST_1, [PPO]),
        ("ppo.gamma=1.5", "at least 0 and at most 1", [PPO]),
        ("ppo.lam=-0.5", "at least 0 and at most 1", [PPO]),
        ("ppo.policy_clip=0", ABOVE_0, [PPO]),
        ("ppo.value_clip=0", ABOVE_0, [PPO]),
        ("ppo.value_coefficient=-1", AT_LEAST_0, [PPO]),
        ("ppo.horizon=0", ABOVE_0, [PPO]),
        ("ppo.coefficient_range=0", ABOVE_0, [PPO]),
        ("ppo.early_stop_kl=0", ABOVE_0, [PPO]),
        ("ppo.missing_eos_penalty=-1", AT_LEAST_0, [PPO]),
        ("ppo.initial_kl_coefficient=0", ABOVE_0, [PPO]),
        ("ppo.min_kl_coefficient=0", ABOVE_0, [PPO]),
        ("ppo.max_kl_coefficient=-1", ABOVE_0, [PPO]),
        ("ppo.optim.lr=0", ABOVE_0, [PPO]),
    ],
)
def test_out_of_range(override, way_out, more):
    key, _, value = override.partition("=")
    message = refusal(*more, then=override)
    named, _, rest = message.partition("=")
    assert named == key
    assert float(rest.split()[0]) == float(value)
    assert "is out of range" in message and way_out in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("key", ["beta", "policy.optim.lr", "generation.temperature", "sft.epochs", "pairs.min_margin"])
def test_not_a_finite_number(key, value):
    message = refusal(then=f"{key}={value}")
    assert message.startswith(f"{key}={value.replace('1e999', 'inf')} is not a finite number; give one")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("algo", "key"),
    [
        ("ppo", "target_kl"),
        ("ppo", "ppo.gamma"),
        ("ppo", "ppo.horizon"),
        ("ppo", "ppo.max_kl_coefficient"),
        ("ppo", "ppo.optim.lr"),
        ("unlikelihood", "alpha"),
        ("reward_model", "reward_model.validation"),
        ("dpo", "dpo.label_smoothing"),
    ],
)
def test_not_a_finite_number_of_a_method(algo, key, value):
    assert refusal(f"algo={algo}", then=f"{key}={value}").startswith(f"{key}={value} is not a finite number; give one")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_whole_number_is_neither_nan_nor_inf(value):
    assert refusal(f"policy.steps={value}").startswith(f"policy.steps={value}: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=unlikelihood", "alpha=0"],
        ["algo=best_of_n", "n=1"],
        ["algo=best_of_n", "n=64", "reservoir.samples=64"],
        ["algo=best_of_n", "best_of_n.selector=ground_truth", "reward_model.init=base", "sft.path=there"],
        [PPO, "target_kl=null", "ppo.kl_coefficient=0"],
        [PPO, "ppo.episodes=64", "ppo.batch_size=64", "ppo.minibatch_size=64"],
        [PPO, "ppo.min_kl_coefficient=0.1", "ppo.initial_kl_coefficient=0.1", "ppo.max_kl_coefficient=0.1"],
        ["ppo=trl_2023", PPO],
        [PPO, "ppo.reward=ground_truth", "ppo.scale=logit"],
        ["algo=reward_model", PREFERENCES],
        ["algo=reward_model", "reward_model.validation=0.5", "reward_model.evaluations=1"],
        ["dpo.loss=robust", "dpo.label_smoothing=0.4999"],
        ["dpo.loss=ipo", "dpo.average_logprobs=true"],
        ["dpo.loss=plackett_luce", "pairs.labels=bradley_terry"],
        ["generation.shortest_limit=48", "generation.max_new_tokens=48"],
        ["beta=1e-9"],
        ["generation.max_new_tokens=72", "sft.max_tokens=80", "model.context=80"],  # 8 + 72 = 80, the context
        ["data.prompts.min_tokens=8"],
        ["groups.k=2"],
        ["policy.steps=1"],
        ["policy.optim.max_grad_norm=null"],
        ["trainer.checkpoint_every=0"],
        ["pairs.labels=noisy", "pairs.noise=0.5"],
        ["pairs.labels=bradley_terry", "pairs.tau=0.5"],
        ["seed=0"],
        ["seed=9223372036854775807"],
        ["sft.path=reference", "generation.max_new_tokens=5000"],  # another context, read later
        ["sft.path=reference", "sft.revision=main"],
        ["beta='0.1'"],
        ["trainer.processes=2"],
        ["algo=sft", "keep_model=none"],
    ],
)
def test_what_is_just_in_range_is_taken(overrides):
    run_of(*overrides)
