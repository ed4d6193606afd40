"""The command line: what is refused, how, and that nothing is written."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imdb_rlhf import cli
from imdb_rlhf.errors import ConfigError, RunError, Stopped

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str


def command(*arguments: str, cwd: Path) -> Answer:
    """`python train.py ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def train(here, monkeypatch, capfd) -> Callable[..., Answer]:
    """The same as `command` in this process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; gone again after the test

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        monkeypatch.setattr(cli, "_OUTCOMES", [])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            assert left.code is None or isinstance(left.code, int)
            code = left.code or 0
        printed = capfd.readouterr()
        return Answer(code, printed.out, printed.err)

    return run


def one_line(answer: Answer, code: int, start: str) -> str:
    assert (answer.code, answer.out) == (code, ""), answer.err
    assert answer.err.startswith(start)
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n")
    return answer.err


# --- refused: exit 2, one line, nothing written


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["beta=0"], "beta=0.0 is out of range"),
        (["+beta=0.3", "algo=sft"], "beta=0.3: no such key for algo=sft"),
        (["-m", "algo=sft,dpo", "beta=0.3"], "job algo=sft beta=0.3: beta=0.3: no such key for algo=sft"),
        (["-m", "beta=0.1,0"], "job beta=0: beta=0.0 is out of range"),
        (["-m", "algo=ppo,dpo", "target_kl=3"], "job algo=dpo target_kl=3: target_kl=3: no such key for algo=dpo; it "),
        (["-m", "ppo=paper,ziegler", "algo=ppo,dpo"], "job ppo=paper algo=dpo: ppo=... chooses a preset of algo=ppo"),
    ],
)
def test_a_refusal_in_a_process_of_its_own(here, arguments, start):
    one_line(command(*arguments, cwd=here), 2, f"refused: {start}")
    assert not list(here.iterdir())


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "multirun"])
@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["beta=-1"], "beta=-1.0 is out of range; give a number above 0"),
        (["beta=nan"], "beta=nan is not a finite number"),
        (["beta=inf"], "beta=inf is not a finite number"),
        (["beta=much"], "beta=much: Value 'much' of type 'str' could not be converted to Float"),
        (["policy.steps=-5"], "policy.steps=-5 is out of range"),
        (["groups.k=1"], "groups.k=1 is out of range"),
        (["data.prompts.min_tokens=9"], "data.prompts.min_tokens=9 is above data.prompts.max_tokens=8"),
        (["generation.max_new_tokens=100"], "data.prompts.max_tokens=8 + generation.max_new_tokens=100 is longer"),
        (["generation.temperature=0"], "generation.temperature=0.0 is out of range"),
        (["algo=sft", "beta=0.3"], "beta=0.3: no such key for algo=sft"),
        (["algo=sft", "+beta=0.3"], "beta=0.3: no such key for algo=sft"),
        (["algo=sft", "++beta=0.3"], "beta=0.3: no such key for algo=sft"),
        (["+policy.optim.momentum=0.9"], "policy.optim.momentum=0.9: no such key"),
        (["target_kl=3"], "target_kl=3: no such key for algo=dpo; it belongs to algo=ppo; keys of dpo: "),
        (["algo=ppo", "beta=0.1"], "beta=0.1: no such key for algo=ppo; it belongs to algo=dpo; "),
        (["algo=unlikelihood", "dpo.loss=ipo"], "dpo.loss=ipo: no such key for algo=unlikelihood; it belongs to "),
        (["algo=ppo", "target_kl=0"], "target_kl=0.0 is out of range; give a number above 0"),
        (["algo=ppo", "target_kl=3", "ppo.kl_coefficient=0.1"], "target_kl=3.0 and ppo.kl_coefficient=0.1 exclude"),
        (["algo=ppo", "target_kl=null"], "target_kl=null needs ppo.kl_coefficient"),
        (["algo=ppo", "ppo.reward=true"], "ppo.reward=true: Invalid value 'True', expected one of [learned, ground"),
        (["algo=best_of_n", "n=100"], "n=100 is above reservoir.samples=64; lower the one or raise the other"),
        (["algo=unlikelihood", "alpha=-0.1"], "alpha=-0.1 is out of range; give a number of at least 0"),
        (["ppo=trl_2023"], "ppo=... chooses a preset of algo=ppo, and this is another algorithm; add algo=ppo"),
        (["algo=sft", "ppo=paper"], "ppo=... chooses a preset of algo=ppo, and this is another algorithm"),
        (["ppo=mine", "algo=ppo"], "ppo=mine: no such choice; there are "),
        (["model=gpt5"], "model=gpt5: no such choice; there are"),
        (["experiment=nowhere"], "experiment=nowhere: no such choice; there are"),
        (["colour=red"], "colour=red: no such key for algo=dpo"),
        (["reward=own"], "reward.function has no value; set reward.function="),
        (["model=null"], "Config group override must be a string"),
        (["~beta"], "beta has no value; set beta="),
        (["beta"], "Error parsing override 'beta'"),
        (["--colour=red"], "unrecognized arguments: --colour=red"),
        (["--cfg", "all the keys"], "argument --cfg/-c: invalid choice"),
        (["--config-dir", "nowhere"], "Additional config directory"),
    ],
)
def test_a_refusal(train, here, arguments, start, multirun):
    one_line(train(*multirun, *arguments, f"paths.outputs={here / 'out'}"), 2, f"refused: {start}")
    assert not list(here.iterdir())


def test_a_value_with_a_comma_is_a_sweep(train, here):
    assert "--multirun" in one_line(train("beta=0.1,1"), 2, "refused: Ambiguous value for argument 'beta=0.1,1'")
    assert not list(here.iterdir())


def test_another_number_of_processes_than_wanted(train, here):
    one_line(train("trainer.processes=2"), 2, "refused: trainer.processes=2, but 1 running; start with `torchrun")
    assert not list(here.iterdir())


def test_options_between_values(train, here):
    assert "before or after" in one_line(
        train("beta=1", "-m", "seed=0,1"), 2, "refused: unrecognized arguments: seed=0"
    )


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "multirun"])
def test_an_experiment_file_with_a_key_that_the_algorithm_does_not_use(train, here, tmp_path, multirun):
    mine = tmp_path / "mine"
    (mine / "experiment").mkdir(parents=True)
    (mine / "experiment" / "mine.yaml").write_text("# @package _global_\nbeta: 0.3\n")
    (mine / "experiment" / "typo.yaml").write_text("# @package _global_\npolicy:\n  step: 3\n")
    (mine / "experiment" / "range.yaml").write_text("# @package _global_\nbeta: -0.3\n")
    options = ["--config-dir", str(mine), *multirun]
    said = one_line(train(*options, "experiment=mine", "algo=sft"), 2, "refused: beta: no such key for algo=sft")
    assert "it belongs to algo=dpo; keys of sft: algo, seed" in said
    one_line(train(*options, "experiment=typo"), 2, "refused: policy.step: no such key; did you mean policy.steps?")
    one_line(train(*options, "experiment=range"), 2, "refused: beta=-0.3 is out of range")
    one_line(train(*options, "experiment=mine,range"), 2, "refused: ")
    assert not list(here.iterdir())
    shown = train(*options[:2], "--cfg", "job", "experiment=mine")
    assert shown.code == 0 and OmegaConf.create(shown.out).beta == 0.3


# --- asked


def test_help_lists_every_group(here):
    answer = command("--help", cwd=here)
    assert (answer.code, answer.err) == (0, "")
    groups = ("algo", "data", "model", "reward", "experiment", "launcher", "logger", "optim", "ppo", "sweep", "trainer")
    for group in groups:
        assert f"\n{group}: " in answer.out, group
    assert "algo: best_of_n, dpo, own_model, ppo, preferred_ft, reward_model, sft, unlikelihood" in answer.out
    assert not list(here.iterdir())


def test_cfg_job_shows_the_composed_configuration(train, here):
    answer = train("--cfg", "job", "beta=0.5", "data=imdb")
    assert (answer.code, answer.err) == (0, "")
    shown = OmegaConf.create(answer.out)
    assert (shown.algo, shown.beta, shown.data.name, shown.policy.optim.name) == ("dpo", 0.5, "imdb", "rmsprop")
    assert "hydra" not in shown
    assert not list(here.iterdir())


@pytest.mark.parametrize("arguments", [["ppo=trl_2023", "algo=ppo"], ["algo=ppo", "ppo=trl_2023"]])
def test_a_preset_may_stand_before_the_algorithm(train, here, arguments):
    answer = train("--cfg", "job", *arguments)
    assert (answer.code, answer.err) == (0, "")
    assert OmegaConf.create(answer.out).ppo.preset == "trl_2023"
    assert not list(here.iterdir())


LEARNED = ["data", "sft", "groups", "reference", "reward_model"]


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (["algo=sft"], ["data", "sft", "reference"]),
        (["algo=unlikelihood"], ["data", "sft", "groups", "reference"]),
        (["algo=preferred_ft"], ["data", "sft", "groups", "reference"]),
        (["algo=reward_model"], LEARNED),
        (["algo=best_of_n"], [*LEARNED, "reservoir", "learned_scores"]),
        (["algo=best_of_n", "best_of_n.selector=ground_truth"], ["data", "sft", "reference", "reservoir"]),
        (["algo=ppo"], [*LEARNED, "reservoir", "learned_scores"]),
        (["algo=ppo", "ppo.reward=ground_truth"], ["data", "sft", "reference", "reservoir"]),
        (["algo=ppo", "target_kl=null", "ppo.kl_coefficient=0.1"], LEARNED),
        (["algo=ppo", "ppo=trl_2023", "ppo.reward=ground_truth"], ["data", "sft", "reference"]),
    ],
)
def test_a_plan_of_every_method(train, here, arguments, stages):
    answer = train("plan=true", "trainer.threads=1", *arguments)
    assert (answer.code, answer.err) == (0, "")
    method = arguments[0].removeprefix("algo=")
    assert [line.split()[0] for line in answer.out.splitlines()] == [*stages, "about", method]
    assert f"outputs/runs/{method}-" in answer.out
    assert not list(here.iterdir())


def test_plan_names_the_stages_and_writes_nothing(train, here):
    answer = train("plan=true", "trainer.threads=1")
    assert (answer.code, answer.err) == (0, "")
    assert [line.split()[0] for line in answer.out.splitlines()] == [
        "data",
        "sft",
        "groups",
        "reference",
        "about",
        "dpo",
    ]
    assert "outputs/runs/dpo-beta0.1-s0-" in answer.out
    assert not list(here.iterdir())


def test_a_plan_of_a_sweep_writes_nothing(train, here):
    answer = train("-m", "plan=true", "beta=0.1,1", "trainer.threads=1")
    assert answer.code == 0
    assert len(re.findall(r"to be made +outputs/runs/dpo-beta", answer.out)) == 2
    assert not list(here.iterdir())


# --- exit codes, with an experiment that does nothing but end


@pytest.fixture
def ending(monkeypatch) -> Callable[..., list[tuple[str, float, list[str]]]]:
    """Put something else in the experiment's place; returns what it was called with."""
    import imdb_rlhf.runs.experiment

    def put(*endings: BaseException | None) -> list[tuple[str, float, list[str]]]:
        calls: list[tuple[str, float, list[str]]] = []

        def run_experiment(run, config_yaml, overrides):
            calls.append((config_yaml, run.beta, overrides))
            error = endings[len(calls) - 1]
            if error is not None:
                raise error

        monkeypatch.setattr(imdb_rlhf.runs.experiment, "run_experiment", run_experiment)
        return calls

    return put


def test_done_is_0(train, here, ending):
    calls = ending(None)
    assert train("beta=0.5") == Answer(0, "", "")
    config_yaml, beta, overrides = calls[0]
    assert (beta, overrides) == (0.5, ["beta=0.5"])
    assert OmegaConf.create(config_yaml).beta == 0.5
    assert not list(here.iterdir())


def test_a_failure_is_1_and_one_line(train, ending):
    ending(RunError("data.path=x: no such folder;\n  give one"))
    assert one_line(train(), 1, "failed: ") == "failed: data.path=x: no such folder; give one\n"


def test_what_is_refused_late_is_2(train, ending):
    ending(ConfigError("trainer.processes=2, but 1 running"))
    one_line(train(), 2, "refused: trainer.processes=2")


def test_a_signal_is_75(train, ending):
    ending(Stopped("dpo at step 3 of 9; run the same command to go on"))
    assert one_line(train(), 75, "stopped: ") == "stopped: dpo at step 3 of 9; run the same command to go on\n"


def test_a_fault_of_ours_is_no_message(train, ending):
    ending(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        train()


# --- the words


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Missing mandatory value: reward.function", "reward.function has no value; set reward.function=..."),
        ("Something\n  else\n\nhappened", "Something else happened"),
    ],
)
def test_explain(message, said):
    assert cli.explain(ValueError(message)) == said
