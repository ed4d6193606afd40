"""Values of the wrong type, and values that do not go together."""

from dataclasses import fields

import pytest

from imdb_rlhf.config.algos import PPORun
from tests.command import refusal, run_of

TWO_LABEL = "reward=two_label"
IMDB = "data=imdb"
PPO = "algo=ppo"
PREFERENCES = "data.preferences=a.parquet"


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
        ("data.bos=yes", "expected one of [auto, always, never]"),
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
    message = refusal(*more, override)
    assert message.startswith(f"{override}: ") and reason in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.bos=always"],
            "data.bos=always: the tokenizer that is trained for model=tiny has no BOS token; use data",
        ),
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
        *(
            (["reward=own", f"reward.function='{name}'"], f"reward.function={name} is not of the form file.py:name")
            for name in ("own.py", "own.txt:score", ":score", "own.py:", "own.py:not a name", "mine")
        ),
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
            [PPO, "ppo.coefficient_range=2.5"],
            "ppo.coefficient_range=2.5 is of ppo.controller=ziegler; set it to null, or ppo.controller=ziegler",
        ),
        (
            [PPO, "ppo.horizon=10000"],
            "ppo.horizon=10000.0 is of ppo.controller=ziegler; set it to null, or ppo.controller=ziegler",
        ),
        (
            [PPO, "ppo.controller=ziegler"],
            "ppo.controller=ziegler needs ppo.coefficient_range=2.5, or a ppo.horizon; give one of them",
        ),
        (
            [
                PPO,
                "ppo=paper",
                "ppo.batch_size=256",
                "ppo.minibatch_size=256",
                "ppo.horizon=51",
            ],  # 0.2 * 256 / 51 is above 1
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


@pytest.mark.parametrize("key", ["prompt_splits", "test_splits", "sft_splits", "labelled_splits"])
def test_no_split(key):
    assert refusal(IMDB, f"data.{key}=[]").startswith(f"data.{key}=[] names no split; give some of")


def test_a_knob_in_the_section_of_another_algorithm():
    class RLOORun(PPORun):
        """Inherits PPO's section."""

    run = run_of("algo=ppo", "target_kl=null", "ppo.kl_coefficient=0.1")
    assert isinstance(run, PPORun)
    other = RLOORun(**{field.name: getattr(run, field.name) for field in fields(run)} | {"algo": "rloo"})
    assert other.knob == ("kl_coefficient", 0.1)
    other.check_knob()


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ("a" * 300, "File name too long"),
        ("/".join(["a" * 200] * 25), "File name too long"),
        ("/dev/null/x", "/dev/null is not a folder"),
        ("/dev/null", "/dev/null is not a folder"),
        ("{file}/x/y", "is not a folder"),
    ],
)
def test_outputs_that_cannot_be_made(tmp_path, outputs, reason):
    (tmp_path / "file").write_text("")
    message = refusal(f"paths.outputs={outputs.format(file=tmp_path / 'file')}")
    assert message.startswith("paths.outputs='") and "cannot be made: " in message and reason in message
    assert len(message) < 400


@pytest.mark.parametrize("outputs", ["new", "new/newer", "../new"])
def test_outputs_need_not_be_there(tmp_path, monkeypatch, outputs):
    monkeypatch.chdir(tmp_path)
    assert run_of(f"paths.outputs={outputs}").paths.outputs == outputs
    assert not list(tmp_path.iterdir())
