"""Ranges by hand: every value out of range is refused with its key, its value and the way out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf import cli
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True, scope="module")
def hydra_reads_conf() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def run_of(*overrides: str) -> Run:
    return cli.to_run(compose("config", list(overrides)))


def refusal(*overrides: str) -> str:
    """The line that `cli` prints for these overrides."""
    try:
        run_of(*overrides)
    except ConfigError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = cli.explain(error)
    else:
        pytest.fail(f"{overrides} was not refused")
    assert "\n" not in message
    return message


ABOVE_0 = "give a number above 0"
AT_LEAST_0, AT_LEAST_1, AT_LEAST_2 = (f"give a number of at least {n}" for n in range(3))
TWO_LABEL, SIEBERT, IMDB, PPO = "reward=two_label", "reward=siebert", "data=imdb", "algo=ppo"
PREFERENCES = "data.preferences=a.parquet"


@pytest.mark.parametrize(
    ("override", "way_out", "more"),
    [
        ("reward.lm_weight=-1", AT_LEAST_0, [TWO_LABEL]),
        ("beta=0", ABOVE_0, []),
        ("beta=-1", ABOVE_0, []),
        ("generation.temperature=0", ABOVE_0, []),
        ("generation.temperature=-0.5", ABOVE_0, []),
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
    said = refusal(*more, override)
    named, _, rest = said.partition("=")
    assert named == key
    assert float(rest.split()[0]) == float(value)
    assert "is out of range" in said and way_out in said


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("key", ["beta", "policy.optim.lr", "generation.temperature", "sft.epochs", "pairs.min_margin"])
def test_not_a_finite_number(key, value):
    said = refusal(f"{key}={value}")
    assert said.startswith(f"{key}={value.replace('1e999', 'inf')} is not a finite number; give one")


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
    assert refusal(f"algo={algo}", f"{key}={value}").startswith(f"{key}={value} is not a finite number; give one")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_whole_number_is_neither_nan_nor_inf(value):
    assert refusal(f"policy.steps={value}").startswith(f"policy.steps={value}: ")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("beta=much", "could not be converted to Float"),
        ("beta=true", "could not be converted to Float"),
        ("beta=[0.1]", "could not be converted to Float"),
        ("beta=null", "is not Optional"),
        ("seed=1.5", "could not be converted to Integer"),
        ("seed=true", "could not be converted to Integer"),
        ("groups.k=four", "could not be converted to Integer"),
        ("policy.steps=abc", "could not be converted to Integer"),
        ("plan=maybe", "not a valid bool"),
        ("keep_model=first", "expected one of [last, best, none]"),
        ("pairs.labels=hard", "expected one of [deterministic, bradley_terry, noisy]"),
        ("trainer.device=tpu", "expected one of [auto, cpu, cuda]"),
        ("data.prompts=3", "is not a subclass of PromptsConfig"),
        ("paths.outputs=null", "is not Optional"),
        ("model.layers=null", "is not Optional"),
        ("dpo.loss=kto", "expected one of [sigmoid, ipo, hinge, robust, plackett_luce]"),
        ("algo=best_of_n n=2.5", "could not be converted to Integer"),
        ("algo=best_of_n n=nan", "could not be converted to Integer"),
        ("algo=best_of_n best_of_n.selector=best", "expected one of [learned, ground_truth]"),
        ("algo=ppo ppo.reward=true", "expected one of [learned, ground_truth]"),
        ("algo=ppo ppo.reward=oracle", "expected one of [learned, ground_truth]"),
        ("algo=ppo ppo.reward=null", "is not Optional"),
        ("algo=ppo ppo.scale=log", "expected one of [reward, logit]"),
        ("algo=ppo ppo.value=none", "expected one of [own, shared]"),
        ("algo=ppo ppo.advantage_whitening=none", "expected one of [minibatch, batch]"),
        ("algo=ppo target_kl=much", "could not be converted to Float"),
        ("algo=reward_model reward_model.objective=listwise", "expected one of [pairs, best_of_k]"),
        ("algo=reward_model reward_model.init=random", "expected one of [sft, base]"),
    ],
)
def test_wrong_type(override, reason):
    *more, override = override.split()
    said = refusal(*more, override)
    assert said.startswith(f"{override}: ") and reason in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompts.min_tokens=9"], "data.prompts.min_tokens=9 is above data.prompts.max_tokens=8; lower"),
        (["model.width=130", "model.heads=4"], "model.heads=4 does not divide model.width=130; choose a divisor"),
        (
            ["model.tokenizer_size=1024", "model.vocabulary=1000"],
            "model.vocabulary=1000 is smaller than model.tokenizer_size=1024; make it",
        ),
        (
            ["generation.max_new_tokens=73", "model.context=80"],
            "data.prompts.max_tokens=8 + generation.max_new_tokens=73 is longer than model.context=80; shorten them",
        ),
        (
            ["sft.max_tokens=81", "model.context=80"],
            "sft.max_tokens=81 is longer than model.context=80; shorten it or raise",
        ),
        (["sft.revision=main"], "sft.revision=main is used with sft.path alone; set sft.path"),
        (["pairs.tau=2"], "pairs.tau=2.0 is used by pairs.labels=bradley_terry alone; drop it"),
        (["pairs.noise=0.1"], "pairs.noise=0.1 is used by pairs.labels=noisy alone; drop it"),
        (["pairs.labels=noisy"], "pairs.labels=noisy needs pairs.noise"),
        (["pairs.labels=bradley_terry", "data.preferences=a.parquet"], "pairs.labels=bradley_terry draws labels from"),
        (
            ["trainer.processes=3", "sft.batch_size=64"],
            "sft.batch_size=64 is not a multiple of trainer.processes=3; choose a multiple",
        ),
        (["trainer.processes=4", "policy.batch_size=66"], "policy.batch_size=66 is not a multiple of trainer.proc"),
        ([TWO_LABEL, "trainer.processes=4", "reward.batch_size=2"], "reward.batch_size=2 is not a multiple of"),
        (["reward=own"], "reward.function has no value; set reward.function="),
        (["beta=???"], "beta has no value; set beta="),
        (["algo=sft", PREFERENCES], "data.preferences=a.parquet is not used by algo=sft; drop it"),
        (
            [PPO, "ppo.reward=ground_truth", PREFERENCES],
            "data.preferences=a.parquet is not used by algo=ppo (ground_truth, small); drop it",
        ),
        (
            ["algo=best_of_n", "best_of_n.selector=ground_truth", PREFERENCES],
            "data.preferences=a.parquet is not used by algo=best_of_n (ground_truth); drop it",
        ),
        (["pairs.ties=random", "pairs.min_margin=0.5"], "pairs.ties=random has no effect: pairs.min_margin=0.5 drops"),
        (
            ["dpo.loss=ipo", "dpo.label_smoothing=0.1"],
            "dpo.label_smoothing=0.1 is used by dpo.loss=sigmoid and robust alone; set it to 0",
        ),
        (["dpo.loss=robust"], "dpo.loss=robust needs dpo.label_smoothing, the share of flipped labels; for example"),
        (["dpo.average_logprobs=true"], "dpo.average_logprobs=true is used by dpo.loss=ipo alone; drop it"),
        (
            ["dpo.loss=plackett_luce", "pairs.labels=noisy", "pairs.noise=0.1"],
            "pairs.labels=noisy flips pairs, and dpo.loss=plackett_luce has rankings; use bradley_terry",
        ),
        (
            ["dpo.loss=plackett_luce", PREFERENCES],
            "dpo.loss=plackett_luce ranks groups of completions, but data.preferences brings pairs; use another",
        ),
        (
            ["algo=reward_model", "reward_model.objective=best_of_k", PREFERENCES],
            "reward_model.objective=best_of_k chooses from groups, but data.preferences brings pairs; use pairs",
        ),
        (
            [PPO, "reward_model.objective=best_of_k", "pairs.labels=noisy", "pairs.noise=0.1"],
            "pairs.labels=noisy flips pairs, and reward_model.objective=best_of_k has choices; use bradley_terry",
        ),
        (
            ["algo=best_of_n", "reward_model.init=base", "sft.path=there"],
            "reward_model.init=base is the model that SFT starts from, and sft.path leaves none; use sft",
        ),
        (
            ["algo=best_of_n", "n=9", "reservoir.samples=8"],
            "n=9 is above reservoir.samples=8; lower the one or raise the other",
        ),
        (
            [PPO, "target_kl=3", "ppo.kl_coefficient=0.1"],
            "target_kl=3.0 and ppo.kl_coefficient=0.1 exclude each other: one is adaptive, the other fixed; set tar",
        ),
        (
            [PPO, "ppo.kl_coefficient=0.1"],
            "target_kl=3.0 and ppo.kl_coefficient=0.1 exclude each other",
        ),  # the preset's
        ([PPO, "ppo.scale=logit"], "ppo.scale=logit is a scale of the true reward, and ppo.reward=learned has its own"),
        ([PPO, "target_kl=null"], "target_kl=null needs ppo.kl_coefficient, the fixed one; or give target_kl"),
        (
            [PPO, "ppo.batch_size=64", "ppo.minibatch_size=24"],
            "ppo.minibatch_size=24 does not divide ppo.batch_size=64; choose a divisor",
        ),
        (
            [PPO, "ppo.batch_size=64", "ppo.minibatch_size=128"],
            "ppo.minibatch_size=128 does not divide ppo.batch_size=64; choose a divisor",
        ),
        (
            [PPO, "trainer.processes=2", "ppo.batch_size=9", "ppo.minibatch_size=3"],
            "ppo.minibatch_size=3 is not a multiple of trainer.processes=2; choose a multiple",
        ),
        (
            [PPO, "trainer.processes=2", "reward_model.batch_size=31"],
            "reward_model.batch_size=31 is not a multiple of trainer.processes=2; choose a multiple",
        ),
        (
            ["algo=unlikelihood", "trainer.processes=2", "policy.batch_size=31"],
            "policy.batch_size=31 is not a multiple of trainer.processes=2; choose a multiple",
        ),
        (
            [PPO, "ppo.batch_size=64", "ppo.minibatch_size=64", "ppo.episodes=63"],
            "ppo.episodes=63 is less than one batch (ppo.batch_size=64); raise it",
        ),
        (
            [PPO, "ppo.batch_size=256", "ppo.horizon=51"],  # 0.2 * 256 / 51 is above 1
            "ppo.horizon=51.0 is so short that one batch of 256 episodes would take the coefficient to 0; give",
        ),
        (
            [PPO, "ppo.min_kl_coefficient=2", "ppo.max_kl_coefficient=1"],
            "ppo.min_kl_coefficient=2.0 is above ppo.max_kl_coefficient=1.0; lower the one or raise the other",
        ),
        (
            [PPO, "ppo.initial_kl_coefficient=1000"],
            "ppo.initial_kl_coefficient=1000.0 is outside ppo.min_kl_coefficient=0.0001 to ppo.max_kl_coefficient=100",
        ),
    ],
)
def test_values_that_do_not_go_together(overrides, message):
    assert refusal(*overrides).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "start", "names"),
    [
        (["algo=sft", "beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "+beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "++beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "groups.k=4"], "groups.k=4: no such key for algo=sft", "generation"),
        (["algo=sft", "+pairs.ties=drop"], "pairs={'ties': 'drop'}: no such key for algo=sft", "generation"),
        (["target_kl=3"], "target_kl=3: no such key for algo=dpo", "beta"),
        (["+target_kl=3"], "target_kl=3: no such key for algo=dpo", "beta"),
        (["policy.step=3"], "policy.step=3: no such key; did you mean policy.steps?", "policy.optim"),
        (["+policy.step=3"], "policy.step=3: no such key for algo=dpo; did you mean policy.steps?", "policy.optim"),
        (["policy.optim.beta1=0.5"], "policy.optim.beta1=0.5: no such key", "policy.optim.alpha"),
        (["sft.optim.alpha=0.5"], "sft.optim.alpha=0.5: no such key", "sft.optim.weight_decay"),
        (["model=gpt2", "model.layers=3"], "model.layers=3: no such key", "model.path"),
        (["data.path=reviews"], "data.path=reviews: no such key", "data.labelled_reviews"),
        (["logger=none", "logger.project=x"], "logger.project=x: no such key", "logger.name"),
        (["reward.epochs=3"], "reward.epochs=3: no such key", "reward.name"),
        (["ppo.gamma=0.9"], "ppo.gamma=0.9: no such key for algo=dpo; it belongs to algo=ppo; keys of dpo: ", "beta"),
        ([PPO, "beta=0.1"], "beta=0.1: no such key for algo=ppo; it belongs to algo=dpo; keys of ppo: ", "target_kl"),
        (["algo=sft", "n=4"], "n=4: no such key for algo=sft; it belongs to algo=best_of_n; keys of sft: ", "seed"),
        (
            ["algo=unlikelihood", "dpo.loss=ipo"],
            "dpo.loss=ipo: no such key for algo=unlikelihood; it belongs to algo=dpo; keys of unlikelihood: ",
            "alpha",
        ),
        (["algo=preferred_ft", "alpha=1"], "alpha=1: no such key for algo=preferred_ft; it belongs to", "policy"),
        (["algo=preferred_ft", "+alpha=1"], "alpha=1: no such key for algo=preferred_ft; it belongs to", "policy"),
        (
            ["algo=reward_model", "reservoir.samples=8"],
            "reservoir.samples=8: no such key for algo=reward_model; it belongs to algo=best_of_n, ppo; keys of",
            "reward_model",
        ),
        (
            ["algo=best_of_n", "policy.steps=3"],
            "policy.steps=3: no such key for algo=best_of_n; it belongs to algo=dpo, unlikelihood, preferred_ft; keys",
            "reservoir",
        ),
        (["+ppo=trl_2023"], "target_kl: no such key for algo=dpo; it belongs to algo=ppo", "beta"),
        ([PPO, "ppo.foo=2"], "ppo.foo=2: no such key; keys there: ", "ppo.gamma"),
        ([PPO, "ppo.gama=0.9"], "ppo.gama=0.9: no such key; did you mean ppo.gamma? keys there: ", "ppo.lam"),
        (["betta=0.1"], "betta=0.1: no such key for algo=dpo; did you mean beta? keys there: ", "policy"),
    ],
)
def test_a_key_that_is_not_used(overrides, start, names):
    said = refusal(*overrides)
    assert said.startswith(start) and names in said.partition(":")[2]


@pytest.mark.parametrize(
    ("override", "start", "choices"),
    [
        ("algo=grpo", "algo=grpo: no such choice; there are", ["dpo", "sft"]),
        ("model=gpt3", "model=gpt3: no such choice; there are", ["gpt2", "tiny"]),
        ("data=yelp", "data=yelp: no such choice; there are", ["embedded", "imdb"]),
        ("reward=vader", "reward=vader: no such choice; there are", ["lexicon", "siebert"]),
        ("optim@policy.optim=sgd", "optim=sgd: no such choice; there are", ["adamw", "rmsprop"]),
        ("experiment=mine", "experiment=mine: no such choice; there are", ["default", "imdb_cpu"]),
        ("colour=red", "colour=red: no such key for algo=dpo", ["model"]),
    ],
)
def test_an_unknown_choice(override, start, choices):
    said = refusal(override)
    assert said.startswith(start)
    assert all(choice in said.partition(":")[2] for choice in choices)


def test_a_preset_of_another_algorithm():
    said = "ppo=... chooses a preset of algo=ppo, and this is another algorithm; add algo=ppo"
    for overrides in (["ppo=trl_2023"], ["algo=unlikelihood", "ppo=small"], ["ppo=small", "algo=sft"]):
        assert refusal(*overrides) == said
    chosen = refusal("algo=ppo", "ppo=mine")
    assert chosen.startswith("ppo=mine: no such choice; there are ") and " paper, " in chosen


def test_an_optimizer_of_another_algorithm():
    said = refusal("algo=ppo", "optim@policy.optim=adamw")
    assert said.startswith("optim@policy.optim: no such group for this algorithm; it belongs to algo=dpo, ")


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
        ["seed=-1"],
        ["sft.path=reference", "generation.max_new_tokens=5000"],  # another context, read later
        ["sft.path=reference", "sft.revision=main"],
        ["beta='0.1'"],
        ["trainer.processes=2"],
        ["algo=sft", "keep_model=none"],
    ],
)
def test_what_is_just_in_range_is_taken(overrides):
    run_of(*overrides)


@pytest.mark.parametrize("key", ["prompt_splits", "test_splits", "sft_splits", "labelled_splits"])
def test_no_split(key):
    assert refusal(IMDB, f"data.{key}=[]").startswith(f"data.{key}=[] names no split; give some of")
