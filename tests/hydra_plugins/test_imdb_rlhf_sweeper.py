"""The jobs that a command stands for, and those that are refused before anything is written; nothing is run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imdb_rlhf.config.algos import PPORun, UnlikelihoodRun
from imdb_rlhf.config.machine import WandbLogger
from imdb_rlhf.sweep import run as sweeps
from imdb_rlhf.sweep.jobs import Job
from tests.command import Answer, train

BASELINE = "algo=best_of_n best_of_n.selector=ground_truth keep_model=none"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@dataclass
class Handed:
    """What the sweeper hands over to be run, and the answer of the command."""

    answer: Answer = field(default_factory=lambda: Answer(0, "", ""))
    name: str = ""
    jobs: list[Job] = field(default_factory=list)
    command: str = ""

    @property
    def overrides(self) -> list[str]:
        """Those of each job, in one line."""
        return [" ".join(job.overrides) for job in self.jobs]


@pytest.fixture
def handed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handed]:
    """`train.py ARGUMENTS`, with the sweep handed over to this test instead of being run.

    Without the jobs that are added to it, unless `baselines` says so.
    """

    def run(*arguments: str, baselines: bool = False) -> Handed:
        sweep = Handed()

        def take(name: str, jobs: Sequence[Job], command: str, launch: object) -> int:
            sweep.name, sweep.command = name, command
            sweep.jobs = [job for job in jobs if baselines or not " ".join(job.overrides).endswith(BASELINE)]
            return 0

        monkeypatch.setattr(sweeps, "run_sweep", take)
        sweep.answer = train(*arguments)
        assert not list(here.iterdir())
        return sweep

    return run


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., list[str]]:
    """The option that brings sweeps of one's own, given by the lines of their grids."""

    def write(experiments: dict[str, str] | None = None, **sweeps: list[str]) -> list[str]:
        folder = tmp_path / "own" / "sweep"
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in sweeps.items():
            content = {"grids": lines} | ({} if experiments is None else {"experiments": experiments})
            (folder / f"{name}.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(content))
        return ["--config-dir", str(folder.parent)]

    return write


def test_a_union_of_grids(handed, own):
    option = own(two=["algo=dpo beta=1,2", "algo=unlikelihood alpha=0.5 seed=0,1"])
    sweep = handed(*option, "-m", "sweep=two")
    assert sweep.overrides == [
        "algo=dpo beta=1",
        "algo=dpo beta=2",
        "algo=unlikelihood alpha=0.5 seed=0",
        "algo=unlikelihood alpha=0.5 seed=1",
    ]
    assert sweep.name.startswith("two-")
    unlikelihood = sweep.jobs[2].run
    assert isinstance(unlikelihood, UnlikelihoodRun) and unlikelihood.alpha == 0.5
    assert OmegaConf.create(sweep.jobs[3].config_yaml).seed == 1
    assert sweep.jobs[0].options == option and sweep.command.endswith("-m sweep=two")


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["beta=1,2"], [""]),
        (["beta=1", "seed=0,1", "policy.steps=3", "optim@policy.optim=adamw", "pairs.min_margin=0"], [""]),
        (["algo=dpo,unlikelihood", "seed=4"], [""]),
        (["algo=dpo,ppo"], []),  # PPO's reservoir is the one
        (["beta=1,2", "baselines=false"], []),
        (["beta=1"], []),
        (["algo=sft,best_of_n"], []),
        (["beta=1,2", "sft.seed=0,1", "keep_model=best"], ["sft.seed=0 ", "sft.seed=1 "]),
        (
            ["beta=1,2", "data.seed=0,1", "experiment=smoke"],
            ["data.seed=0 experiment=smoke ", "data.seed=1 experiment=smoke "],
        ),
        (["beta=1,2", "optim@sft.optim=rmsprop"], ["optim@sft.optim=rmsprop "]),
    ],
)
def test_a_best_of_n_is_added_to_policies_without_a_reservoir(handed, arguments, added):
    """One per world of several policies; it has what they share and nothing that is theirs."""
    sweep = handed("-m", *arguments, baselines=True)
    assert sweep.answer.code == 0
    assert [job for job in sweep.overrides if job.endswith(BASELINE)] == [f"{words}{BASELINE}" for words in added]
    assert sweep.overrides[-1].endswith(BASELINE) == bool(added)
    if arguments == ["beta=1,2"]:
        assert sweep.name == handed("-m", *arguments, "baselines=false").name


def test_the_command_line_beats_the_file(handed, own):
    option = own(two=["algo=dpo beta=1,2", "algo=unlikelihood seed=7"])
    sweep = handed(*option, "-m", "sweep=two", "seed=3,4", "evaluation.every=9")
    assert sweep.overrides == [
        "algo=dpo beta=1 seed=3 evaluation.every=9",
        "algo=dpo beta=1 seed=4 evaluation.every=9",
        "algo=dpo beta=2 seed=3 evaluation.every=9",
        "algo=dpo beta=2 seed=4 evaluation.every=9",
        "algo=unlikelihood seed=3 evaluation.every=9",
        "algo=unlikelihood seed=4 evaluation.every=9",
    ]


@pytest.mark.parametrize(("first", "second"), [("beta=1,2", "beta=3"), ("beta=3", "beta=1,2"), ("seed=0,1", "seed=2")])
def test_values_of_a_key_in_two_places(handed, first, second):
    """Hydra's own sweeper drops the first list without a word."""
    sweep = handed("-m", first, second)
    key = first.partition("=")[0]
    assert sweep.answer.code == 2 and not sweep.jobs
    assert sweep.answer.err == f"refused: {first} and {second}: give all values of {key} in one list\n"


def test_of_two_single_values_the_last_one_counts(handed):
    assert handed("-m", "beta=1", "seed=0,1", "beta=2").overrides == ["beta=2 seed=0", "beta=2 seed=1"]


def test_what_an_experiment_adds(handed, own):
    added = {"default": "trainer.threads=1 seed=5", "smoke": "seed=6"}
    option = own(
        two=["algo=dpo beta=1", "algo=dpo beta=2 seed=7", "algo=dpo beta=3 experiment=smoke"], experiments=added
    )
    sweep = handed(*option, "-m", "sweep=two")
    assert sweep.overrides == [
        "algo=dpo beta=1 trainer.threads=1 seed=5",
        "algo=dpo beta=2 seed=7 trainer.threads=1",
        "algo=dpo beta=3 experiment=smoke seed=6",
    ]
    sweep = handed(*option, "-m", "sweep=two", "seed=8", "experiment=smoke")
    assert sweep.overrides == [f"algo=dpo beta={beta} seed=8 experiment=smoke" for beta in (1, 2, 3)]


def test_an_experiments_additions_are_lines(handed, own):
    option = own(two=["algo=dpo"], experiments={"default": ["seed=1"]})
    assert "`experiments:` is a line per name" in handed(*option, "-m", "sweep=two").answer.err


def test_two_sweeps_and_what_they_share(handed, own):
    option = own(one=["algo=dpo beta=1,2"], two=["algo=dpo beta=2.0,3"])
    sweep = handed(*option, "-m", "sweep=one,two")
    assert sweep.overrides == ["algo=dpo beta=1", "algo=dpo beta=2", "algo=dpo beta=3"]
    assert sweep.name.startswith("one-two-")
    assert sweep.answer.out == "4 jobs, 3 of them different: each is run once\n"


def test_a_key_that_the_default_algorithm_has_not(handed, own):
    option = own(targets=["algo=ppo target_kl=1,2"])
    sweep = handed(*option, "-m", "sweep=targets", "ppo.episodes=512")
    runs = [job.run for job in sweep.jobs if isinstance(job.run, PPORun)]
    assert [(run.target_kl, run.ppo.episodes) for run in runs] == [(1.0, 512), (2.0, 512)]


def test_without_a_file_the_command_line_is_the_grid(handed):
    sweep = handed("-m", "beta=0.05,0.1", "seed=0,1")
    assert sweep.overrides == ["beta=0.05 seed=0", "beta=0.05 seed=1", "beta=0.1 seed=0", "beta=0.1 seed=1"]
    assert sweep.name.startswith("beta-seed-")


def test_a_pattern_stands_for_the_choices_that_it_fits(handed):
    sweep = handed("-m", "algo=glob([d*,sft],exclude=distill)", "seed=3")
    assert sweep.overrides == ["algo=dpo seed=3", "algo=sft seed=3"]


def test_a_name_is_of_the_jobs_alone(handed):
    def name(*arguments: str) -> str:
        return str(handed("-m", *arguments).name)

    first = name("beta=1,2")
    more = ["launcher=parallel", "launcher.jobs=3", "logger=none", "paths.outputs=/elsewhere"]
    assert name("beta=2,1", *more) == name("beta=1.0,2", "algo=dpo") == first
    assert name("beta=1,3") != first


def group_of(job: Job) -> str | None:
    """The W&B group of a job."""
    assert isinstance(job.run.logger, WandbLogger)
    return job.run.logger.group


def test_the_group_of_a_sweeps_jobs(handed):
    sweep = handed("-m", "beta=1,2")
    assert {group_of(job) for job in sweep.jobs} == {sweep.name}
    assert OmegaConf.create(sweep.jobs[0].config_yaml).logger.group == sweep.name
    named = handed("-m", "beta=1,2", "logger.group=mine")
    assert {group_of(job) for job in named.jobs} == {"mine"} and named.name == sweep.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "sweep=nowhere"], "sweep=nowhere: no such choice; there are beta, demo, frontier, kl_target, lab"),
        (
            ["-m", "sweep=kl-target"],
            "sweep=kl-target: no such choice; did you mean sweep=kl_target? there are beta, demo",
        ),
        (["sweep=beta"], "sweep=beta is many runs; python train.py -m sweep=beta runs them"),
        (
            ["-m", "beta=1,2", "plan=true,false"],
            "plan is one for all jobs of a sweep, and they differ; give one plan=... on the command line",
        ),
        (
            ["-m", "beta=1,2", "launcher=local,parallel"],
            "launcher is one for all jobs of a sweep, and they differ; give one launcher=... on the command line",
        ),
        (["-m", "beta=1,2", "launcher.jobs=0"], "job beta=1 launcher.jobs=0: launcher.jobs=0 is out of range"),
        (["-m", "algo=glob(zz*)"], "algo=glob(zz*): no choice of algo is called so"),
        (["-m", "beta=interval(0,1)"], "beta=interval(0,1): a grid needs single values, such as beta=1,2,5"),
        (
            ["-m", "algo=ppo", "seed=0,1", "ppo.preset=paper"],
            "job algo=ppo seed=0 ppo.preset=paper: ppo.preset only names",
        ),
    ],
)
def test_a_refusal(handed, arguments, message):
    sweep = handed(*arguments)
    assert (sweep.answer.code, sweep.answer.out, sweep.jobs) == (2, "", [])
    assert sweep.answer.err.startswith(f"refused: {message}") and sweep.answer.err.count("\n") == 1


@pytest.mark.parametrize("key", ["beta=0.1", "seeed=1"])
def test_a_key_that_a_job_of_a_file_does_not_have(handed, own, key):
    option = own(mixed=["algo=dpo beta=1", "algo=ppo target_kl=1,2"])
    sweep = handed(*option, "-m", "sweep=mixed", key)
    job = f"algo=ppo target_kl=1 {key}" if key == "beta=0.1" else f"algo=dpo beta=1 {key}"
    assert (sweep.answer.code, sweep.answer.out, sweep.jobs) == (2, "", [])
    assert sweep.answer.err.startswith(f"refused: job {job}: {key}: no such key") and sweep.answer.err.count("\n") == 1


def test_a_sweep_file_without_grids(handed, own, tmp_path):
    option = own(bare=[])
    (tmp_path / "own" / "sweep" / "typo.yaml").write_text("grid:\n- beta=1,2\n")
    for name in ("bare", "typo"):
        sweep = handed(*option, "-m", f"sweep={name}")
        assert (sweep.answer.code, sweep.jobs) == (2, [])
        assert sweep.answer.err.startswith(f"refused: sweep={name}: its file needs `grids:`")


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_a_sweep_under_torchrun(handed, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sweep = handed("-m", "beta=1,2")
    assert (sweep.answer.code, sweep.jobs) == (2, []) and "run it without torchrun" in sweep.answer.err
