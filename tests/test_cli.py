"""The command line: what is refused, how, and that nothing is written."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import imdb_rlhf
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.config.explain import explain
from imdb_rlhf.errors import ConfigError, RunError, Stopped
from tests.command import ROOT, Answer, run, run_of, train


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


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
    one_line(run(*arguments, cwd=here), 2, f"refused: {start}")
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
        (["target_kl=3"], "target_kl=3: no such key for algo=dpo; it belongs to algo=ppo"),
        (["algo=ppo", "beta=0.1"], "beta=0.1: no such key for algo=ppo; it belongs to algo=dpo"),
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
        (["model=gpt5"], "model=gpt5: no such choice; did you mean model=gpt2? there are"),
        (["algo=best-of-n"], "algo=best-of-n: no such choice; did you mean algo=best_of_n? there are"),
        (["bata=0.1"], "bata=0.1: no such key for algo=dpo; did you mean beta? keys there: "),
        (["seed=-1"], "seed=-1 is out of range; give a number of at least 0"),
        (["experiment=nowhere"], "experiment=nowhere: no such choice; there are"),
        (["colour=red"], "colour=red: no such key for algo=dpo"),
        (["reward=own"], "reward.function has no value; set reward.function="),
        (["model=null"], "Config group override must be a string"),
        (["~beta"], "beta has no value; set beta="),
        (["algo.foo=1"], "algo.foo=1: algo has no keys below it; an algorithm is"),
        (["experiment.foo=1"], "experiment.foo=1: no such key"),
        (["beta"], "beta is not of the form key=value"),
        (["beta = 0.1"], "beta = 0.1 is not of the form key=value"),
        (["data.path=a(b)"], "data.path=a(b) is not of the form key=value"),
        (["reward.function=a=b"], "reward.function=a=b is not of the form key=value"),
        (["data.path=~/reviews"], "data.path=~/reviews is not of the form key=value"),
        (["--colour=red"], "unrecognized arguments: --colour=red"),
        (["--cfg", "all the keys"], "argument --cfg/-c: invalid choice"),
        (["--config-dir", "nowhere"], "Additional config directory"),
    ],
)
def test_a_refusal(here, arguments, start, multirun):
    one_line(train(*multirun, *arguments, f"paths.outputs={here / 'out'}"), 2, f"refused: {start}")
    assert not list(here.iterdir())


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--info", "all"]])
def test_what_shows_one_configuration_is_no_sweep(here, option):
    one_line(train("-m", *option, "beta=0.1,1"), 2, "refused: --cfg and --info show the configuration of one run")
    assert not list(here.iterdir())


def test_a_value_with_a_comma_is_a_sweep(here):
    assert "--multirun" in one_line(train("beta=0.1,1"), 2, "refused: Ambiguous value for argument 'beta=0.1,1'")
    assert not list(here.iterdir())


def test_another_number_of_processes_than_wanted(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    one_line(train("trainer.processes=2"), 2, "refused: trainer.processes=2, but 1 running; set trainer.processes=1")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["hydra.run.dir=x"], "hydra.run.dir=x: a run's folder is <paths.outputs>/runs/"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: a run stays in the folder where it is started"),
        (["-m", "hydra.sweep.dir=x", "seed=0,1"], "hydra.sweep.dir=x: a sweep's folder is <paths.outputs>/sweeps/"),
        (["-m", "sweep=smoke", "hydra/sweeper=basic"], "sweep=smoke is a union of grids, which hydra/sweeper=basic"),
        (
            ["-m", "seed=0,1", "hydra/launcher=basic", "launcher=parallel"],
            "launcher.jobs=None is for jobs that",
        ),
        (["objective=[rewrad]"], "objective=rewrad is no number of a run; give reward, kl, score or reward@K"),
        (["objective=[]"], "objective=[] names nothing"),
        (["-m", "hydra/sweeper=nowhere", "seed=0,1"], "hydra/sweeper=nowhere"),
    ],
)
def test_what_hydra_would_do_and_a_run_does_not(here, arguments, start):
    one_line(train(*arguments), 2, f"refused: {start}")
    assert not [path for path in here.iterdir() if path.name != "x"]  # Hydra makes its run.dir before anything else


# --- completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dpo.loss=", {"dpo.loss=sigmoid", "dpo.loss=ipo"}),
        ("dpo.loss=si", {"dpo.loss=sigmoid"}),
        ("keep_model=b", {"keep_model=best"}),
        ("plan=", {"plan=true", "plan=false"}),
        ("algo=un", {"algo=unlikelihood"}),
        ("dpo.lo", {"dpo.loss="}),
    ],
)
def test_completion_offers_every_choice(here, monkeypatch, typed, offered):
    monkeypatch.setenv("COMP_LINE", f"python train.py {typed}")
    answer = train("-sc", "query=bash")
    assert answer.code == 0 and offered <= set(answer.out.split())
    if "=" in typed and not typed.endswith("="):
        assert set(answer.out.split()) == offered


@pytest.mark.parametrize("words", [["bash"], []])
def test_completion_without_what_to_do(here, words):
    one_line(train("-sc", *words), 2, "refused: -sc needs install= or uninstall=bash, zsh or fish")


def test_options_between_values(here):
    assert "before or after" in one_line(
        train("beta=1", "-m", "seed=0,1"), 2, "refused: unrecognized arguments: seed=0"
    )


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "multirun"])
def test_an_experiment_file_with_a_key_that_the_algorithm_does_not_use(here, tmp_path, multirun):
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nbeta: 0.3\n")
    (folder / "experiment" / "typo.yaml").write_text("# @package _global_\npolicy:\n  step: 3\n")
    (folder / "experiment" / "range.yaml").write_text("# @package _global_\nbeta: -0.3\n")
    options = ["--config-dir", str(folder), *multirun]
    start = "refused: experiment/mine.yaml: beta: no such key for algo=sft; it belongs to algo=dpo"
    message = one_line(train(*options, "experiment=mine", "algo=sft"), 2, start)
    assert "; keys of sft: algo, seed" in message
    assert message.endswith("what changes one algorithm alone belongs into experiment_algo/mine.yaml\n")
    one_line(train(*options, "experiment=typo"), 2, "refused: policy.step: no such key; did you mean policy.steps?")
    one_line(train(*options, "experiment=range"), 2, "refused: beta=-0.3 is out of range")
    one_line(train(*options, "experiment=mine,range"), 2, "refused: ")
    assert not list(here.iterdir())
    shown = train(*options[:2], "--cfg", "job", "experiment=mine")
    assert shown.code == 0 and OmegaConf.create(shown.out).beta == 0.3


def test_an_experiment_of_ones_own_has_sections_and_a_preset(here, tmp_path):
    folder = tmp_path / "own"
    for name in ("experiment", "experiment_algo"):
        (folder / name).mkdir(parents=True)
    (folder / "experiment" / "plain.yaml").write_text("# @package _global_\nseed: 3\n")
    experiment = "# @package _global_\ndefaults:\n  - override /ppo_preset: ziegler\nevaluation:\n  every: 9\n"
    (folder / "experiment" / "mine.yaml").write_text(experiment)
    sections = "dpo: &steps\n  policy: {steps: 7}\nunlikelihood: *steps\nppo:\n  evaluation: {every: 2}\n"
    (folder / "experiment_algo" / "mine.yaml").write_text(sections)

    def shown(*arguments: str) -> Any:
        answer = train("--config-dir", str(folder), "--cfg", "job", *arguments)
        assert (answer.code, answer.err) == (0, "")
        return OmegaConf.create(answer.out)

    assert (shown("experiment=plain").seed, shown("experiment=plain").policy.batch_size) == (3, 64)
    assert shown("experiment=plain", "algo=ppo").ppo.preset == "small"
    dpo, ppo = shown("experiment=mine"), shown("experiment=mine", "algo=ppo")
    assert (dpo.policy.steps, dpo.evaluation.every) == (7, 9)
    assert shown("experiment=mine", "algo=unlikelihood").policy.steps == 7
    assert shown("experiment=mine", "policy.steps=8").policy.steps == 8
    assert (ppo.ppo.preset, ppo.evaluation.every) == ("ziegler", 2)
    assert shown("experiment=mine", "algo=ppo", "ppo=paper").ppo.preset == "paper"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dop:\n  seed: 1\n", "algo=dop: no such choice; did you mean algo=dpo? there are sft, dpo"),
        ("dpo:\n", "the section dpo has no keys; give some, or leave it out"),
        ("- dpo\n", " needs a section per algorithm, such as `dpo:`"),
    ],
)
def test_sections_of_ones_own_that_are_none(here, tmp_path, text, message):
    file = tmp_path / "own" / "experiment_algo" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert message in one_line(train("--config-dir", str(tmp_path / "own")), 2, f"refused: {file}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# @package _global_\n# caf\u00e9\nseed: 1\n".encode("latin-1"), "mine.yaml is not UTF-8 text ("),
        (b"# @package _global_\ndefaults: foo\n", "Invalid defaults list in 'experiment/mine'"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_read(here, tmp_path, content, message):
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert message in one_line(train("--config-dir", str(tmp_path / "own"), "experiment=mine"), 2, "refused: ")


def test_the_environment_of_a_launcher_that_is_none(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "abc")
    for arguments in ([], ["-m", "beta=1,2"]):
        one_line(train(*arguments), 2, "refused: WORLD_SIZE=abc in the environment is not a number; unset it")


def test_no_output_folder(here):
    one_line(train("paths.outputs="), 2, "refused: paths.outputs= names no folder; give one")


# --- asked


def test_help_lists_every_group(here):
    answer = run("--help", cwd=here)
    assert (answer.code, answer.err) == (0, "")
    groups = ("algo", "data", "model", "reward", "experiment", "launcher", "logger", "optim", "ppo", "sweep", "trainer")
    for group in groups:
        assert f"\n{group}: " in answer.out, group
    algorithms = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))
    assert f"\nalgo: {', '.join(algorithms)}\n" in answer.out.replace("\n  ", " ")
    assert not list(here.iterdir())


def test_help_names_own_choices_and_how_it_was_called(here, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\n")
    answer = run("--help", "--config-dir", str(tmp_path / "own"), cwd=here)
    assert "\nexperiment: default, imdb_cpu, imdb_pretrained, mine, " in answer.out
    assert "  python train.py algo=dpo beta=0.1  " in answer.out and max(map(len, answer.out.splitlines())) <= 125
    called = subprocess.run([sys.executable, "-m", "imdb_rlhf", "--help"], capture_output=True, text=True)
    assert "  python -m imdb_rlhf algo=dpo beta=0.1  " in called.stdout


def test_the_version_is_this_packages(here):
    assert run("--version", cwd=here).out.startswith(f"imdb_rlhf {imdb_rlhf.__version__} (Hydra 1.3")


def test_a_plugin_that_is_not_there(here):
    one_line(train("-m", "hydra/launcher=ray", "beta=0.1,1"), 2, "refused: hydra/launcher=ray: its package is not")


def test_cfg_job_shows_the_composed_configuration(here):
    answer = train("--cfg", "job", "beta=0.5", "data=imdb")
    assert (answer.code, answer.err) == (0, "")
    shown = OmegaConf.create(answer.out)
    assert (shown.algo, shown.beta, shown.data.name, shown.policy.optim.name) == ("dpo", 0.5, "imdb", "rmsprop")
    assert "hydra" not in shown
    assert not list(here.iterdir())


def test_every_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of")
    run: Any = run_of(
        'paths.outputs="~/out"',
        "data=imdb",
        'data.path="~/imdb"',
        'data.preferences="~/pairs.parquet"',
        "reward=own",
        'reward.function="~/own.py:score"',
        'sft.path="~/model"',
    )
    paths = [run.paths.outputs, run.data.path, run.data.preferences, run.reward.function, run.sft.path]
    assert paths == [f"/home/of/{name}" for name in ("out", "imdb", "pairs.parquet", "own.py:score", "model")]


@pytest.mark.parametrize("arguments", [["ppo=trl_2023", "algo=ppo"], ["algo=ppo", "ppo=trl_2023"]])
def test_a_preset_may_stand_before_the_algorithm(here, arguments):
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
def test_a_plan_of_every_method(here, arguments, stages):
    answer = train("plan=true", "trainer.threads=1", *arguments)
    assert (answer.code, answer.err) == (0, "")
    method = arguments[0].removeprefix("algo=")
    assert [line.split()[0] for line in answer.out.splitlines()] == [*stages, method, "about"]
    assert f"outputs/runs/{method}-" in answer.out
    assert not list(here.iterdir())


def test_plan_names_the_stages_and_writes_nothing(here):
    answer = train("plan=true", "trainer.threads=1")
    assert (answer.code, answer.err) == (0, "")
    assert [line.split()[0] for line in answer.out.splitlines()] == [
        "data",
        "sft",
        "groups",
        "reference",
        "dpo",
        "about",
    ]
    assert "outputs/runs/dpo-beta0.1-s0-" in answer.out
    assert not list(here.iterdir())


def test_a_plan_of_a_sweep_writes_nothing(here):
    answer = train("-m", "plan=true", "beta=0.1,1", "trainer.threads=1")
    assert answer.code == 0
    assert len(re.findall(r"to be made +outputs/runs/dpo-beta.*\nabout \d+ MB of disk needed", answer.out)) == 2
    assert not list(here.iterdir())


# --- files of conf/ that were not written to the end

NEW = """# @package _global_
defaults:
  - /schema/preferred_ft@_global_
  - /stage/groups@groups
  - /stage/pairs@pairs
  - /stage/policy@policy
  - /optim@policy.optim: adamw
  - _self_
algo: preferred_ft
"""


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "algo/new.yaml",
            NEW.replace("/schema/preferred_ft", "/schema/new"),
            "algo/new.yaml is of schema new, and no SCHEMAS in imdb_rlhf/config/ has a line for 'new'; add it there",
        ),
        (
            "reward/new.yaml",
            "defaults:\n  - /schema/reward/new@_here_\nname: new\n",
            "reward/new.yaml is of schema reward/new, and no SCHEMAS in imdb_rlhf/config/ has a line for 'reward/new'",
        ),
        (
            "reward/new.yaml",
            "defaults:\n  - /schema/reward/lexicon\nname: new\n",
            "the file that reward= chooses needs @_here_ after its /schema/... in `defaults:`",
        ),
        (
            "algo/new.yaml",
            NEW.replace("# @package _global_\n", ""),
            "the file that algo= chooses needs the first line `# @package _global_`",
        ),
        (
            "algo/new.yaml",
            NEW.replace("algo: preferred_ft\n", ""),
            "the file that algo= chooses needs a line with its name: `algo: dpo` in dpo.yaml",
        ),
        (
            "algo/new.yaml",
            NEW.replace("algo: preferred_ft", "algo: dpo"),
            "the file that algo= chooses says algo: dpo, and its schema is another algorithm's",
        ),
        (
            "algo/new.yaml",
            "# @package _global_\nalgo: preferred_ft\ngroups:\n  k: 4\n",
            "the file that algo= chooses needs /schema/...@_global_, of its algorithm, in `defaults:`",
        ),
        (
            "experiment/new.yaml",
            "seed: 1\n",
            "the file that experiment= chooses needs the first line `# @package _global",
        ),
        (
            "experiment/new.yaml",
            "# @package _global_\nseed: [1\n",
            "a file cannot be read as YAML: while parsing a flow",
        ),
        (
            "experiment/new.yaml",
            "# @package _global_\nseed: abc\n",
            "seed in experiment/new.yaml: Value 'abc' of type 'str' could not be converted to Integer; conf/ says",
        ),
        (
            "experiment/new.yaml",
            "# @package _global_\nkeep_model: first\n",
            "keep_model in experiment/new.yaml: Invalid value 'first', expected one of [last, best, none]; conf/ says",
        ),
        ("experiment_algo/new.yaml", "dpo: [1\n", "a file cannot be read as YAML: while parsing a flow sequence in "),
        (
            "experiment_algo/new.yaml",
            "dpo:\n  beta: heavy\n",
            "beta in experiment_algo/new.yaml: Value 'heavy' of type 'str' could not be converted to Float; conf/ says",
        ),
        (
            "experiment_algo/new.yaml",
            "preferred-ft:\n  seed: 1\n",
            "algo=preferred-ft: no such choice; did you mean algo=preferred_ft? there are ",
        ),
    ],
)
def test_a_file_of_conf_that_is_not_whole(here, tmp_path, file, text, message):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    group = file.partition("/")[0].removesuffix("_algo")
    if file.startswith("experiment_algo"):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "new.yaml").write_text("# @package _global_\nseed: 1\n")
    refused = one_line(train("--config-dir", str(tmp_path), f"{group}=new"), 2, "refused: ")
    assert message in refused
    assert not list(here.iterdir())


def test_a_module_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "imdb_rlhf.experiment", None)
    line = one_line(train("plan=true"), 1, "failed: ")
    assert re.match(r"failed: \S+/imdb_rlhf/cli.py:\d+ cannot be imported: ModuleNotFoundError: import of ", line)


def test_a_knob_that_is_misspelt(monkeypatch):
    monkeypatch.setattr(DPORun, "knob", property(lambda run: ("beta", run.betta)))
    message = "refused: algo=dpo: 'DPORun' object has no attribute 'betta'; mend DPORun.knob\n"
    assert one_line(train("plan=true"), 2, message) == message


def test_a_knob_that_is_no_key(monkeypatch):
    monkeypatch.setattr(DPORun, "knob", property(lambda run: ("gamma", 1.0)))
    one_line(
        train("plan=true"),
        2,
        "refused: algo=dpo: gamma=1.0 is no key of it, neither at the root nor in a section; mend DPORun.knob\n",
    )


# --- exit codes, with an experiment that does nothing but end


@pytest.fixture
def ending(monkeypatch) -> Callable[..., list[tuple[str, float, list[str]]]]:
    """Put something else in the experiment's place; returns what it was called with."""
    import imdb_rlhf.experiment

    def put(*endings: BaseException | None) -> list[tuple[str, float, list[str]]]:
        calls: list[tuple[str, float, list[str]]] = []

        def run_experiment(run, config_yaml, overrides):
            calls.append((config_yaml, run.beta, overrides))
            error = endings[len(calls) - 1]
            if error is not None:
                raise error

        monkeypatch.setattr(imdb_rlhf.experiment, "run_experiment", run_experiment)
        return calls

    return put


def test_done_is_0(here, ending):
    calls = ending(None)
    assert train("beta=0.5") == Answer(0, "", "")
    config_yaml, beta, overrides = calls[0]
    assert (beta, overrides) == (0.5, ["beta=0.5"])
    assert OmegaConf.create(config_yaml).beta == 0.5
    assert not list(here.iterdir())


def test_a_failure_is_1_and_one_line(ending):
    ending(RunError("data.path=x: no such folder;\n  give one"))
    assert one_line(train(), 1, "failed: ") == "failed: data.path=x: no such folder; give one\n"


def test_what_is_refused_late_is_2(ending):
    ending(ConfigError("trainer.processes=2, but 1 running"))
    one_line(train(), 2, "refused: trainer.processes=2")


def test_a_signal_is_75(ending):
    ending(Stopped("dpo at step 3 of 9; run the same command to go on"))
    assert one_line(train(), 75, "stopped: ") == "stopped: dpo at step 3 of 9; run the same command to go on\n"


def test_a_programming_error_is_no_message(ending):
    ending(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        train()


# --- messages


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Missing mandatory value: reward.function", "reward.function has no value; set reward.function=..."),
        ("Something\n  else\n\nhappened", "Something else happened"),
    ],
)
def test_explain(message, line):
    assert explain(ValueError(message)) == line
