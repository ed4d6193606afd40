"""Sweeps: which jobs a command stands for, what is refused before anything is written, and how one ends.

The jobs of the whole sweeps here are `experiment=smoke` in processes of their own, which share one store.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from imdb_rlhf import cli
from imdb_rlhf.sweep import run as sweeps
from imdb_rlhf.sweep.jobs import Job

ROOT = Path(__file__).parents[1]


# --- which jobs: in this process, with nothing run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def handed(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What `train.py -m ARGUMENTS` hands over to be run: name, jobs and command; or code and err of a refusal."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; gone again after the test
    cli.register()

    def run(*arguments: str) -> Any:
        got = SimpleNamespace(name=None, jobs=[], command="", code=0)

        def take(name: str, jobs: Sequence[Job], command: str) -> int:
            got.name, got.jobs, got.command = name, list(jobs), command
            return 0

        monkeypatch.setattr(sweeps, "run_sweep", take)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            cli.main()
        except SystemExit as left:
            got.code = left.code
        got.out, got.err = capfd.readouterr()
        assert not list(here.iterdir())
        return got

    return run


def words(got: Any) -> list[str]:
    return [" ".join(job.overrides) for job in got.jobs]


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
    got = handed(*option, "-m", "sweep=two")
    assert words(got) == [
        "algo=dpo beta=1",
        "algo=dpo beta=2",
        "algo=unlikelihood alpha=0.5 seed=0",
        "algo=unlikelihood alpha=0.5 seed=1",
    ]
    assert got.name.startswith("two-")
    assert got.jobs[2].run.alpha == 0.5 and OmegaConf.create(got.jobs[3].config_yaml).seed == 1
    assert got.jobs[0].options == option and got.command.endswith("-m sweep=two")


def test_the_command_line_beats_the_file(handed, own):
    option = own(two=["algo=dpo beta=1,2", "algo=unlikelihood seed=7"])
    got = handed(*option, "-m", "sweep=two", "seed=3,4", "evaluation.every=9")
    assert words(got) == [
        "algo=dpo beta=1 seed=3 evaluation.every=9",
        "algo=dpo beta=1 seed=4 evaluation.every=9",
        "algo=dpo beta=2 seed=3 evaluation.every=9",
        "algo=dpo beta=2 seed=4 evaluation.every=9",
        "algo=unlikelihood seed=3 evaluation.every=9",
        "algo=unlikelihood seed=4 evaluation.every=9",
    ]


def test_what_an_experiment_adds(handed, own):
    added = {"default": "trainer.threads=1 seed=5", "smoke": "seed=6"}
    option = own(
        two=["algo=dpo beta=1", "algo=dpo beta=2 seed=7", "algo=dpo beta=3 experiment=smoke"], experiments=added
    )
    got = handed(*option, "-m", "sweep=two")
    assert words(got) == [
        "algo=dpo beta=1 trainer.threads=1 seed=5",
        "algo=dpo beta=2 seed=7 trainer.threads=1",
        "algo=dpo beta=3 experiment=smoke seed=6",
    ]
    got = handed(*option, "-m", "sweep=two", "seed=8", "experiment=smoke")
    assert words(got) == [f"algo=dpo beta={beta} seed=8 experiment=smoke" for beta in (1, 2, 3)]


def test_an_experiments_additions_are_lines(handed, own):
    option = own(two=["algo=dpo"], experiments={"default": ["seed=1"]})
    assert "`experiments:` is a line a name" in handed(*option, "-m", "sweep=two").err


def test_two_sweeps_and_what_they_share(handed, own):
    option = own(one=["algo=dpo beta=1,2"], two=["algo=dpo beta=2.0,3"])
    got = handed(*option, "-m", "sweep=one,two")
    assert words(got) == ["algo=dpo beta=1", "algo=dpo beta=2", "algo=dpo beta=3"]
    assert got.name.startswith("one-two-")
    assert got.out == "4 jobs, 3 of them different: each is run once\n"


def test_a_key_that_the_default_algorithm_has_not(handed, own):
    option = own(targets=["algo=ppo target_kl=1,2"])
    got = handed(*option, "-m", "sweep=targets", "ppo.episodes=512")
    assert [(job.run.target_kl, job.run.ppo.episodes) for job in got.jobs] == [(1.0, 512), (2.0, 512)]


def test_without_a_file_the_command_line_is_the_grid(handed):
    got = handed("-m", "beta=0.05,0.1", "seed=0,1")
    assert words(got) == ["beta=0.05 seed=0", "beta=0.05 seed=1", "beta=0.1 seed=0", "beta=0.1 seed=1"]
    assert got.name.startswith("beta-seed-")


def test_a_name_is_of_the_jobs_alone(handed):
    def name(*arguments: str) -> str:
        return str(handed("-m", *arguments).name)

    first = name("beta=1,2")
    more = ["launcher=parallel", "launcher.jobs=3", "logger=none", "paths.outputs=/elsewhere"]
    assert name("beta=2,1", *more) == name("beta=1.0,2", "algo=dpo") == first
    assert name("beta=1,3") != first


def test_the_group_of_a_sweeps_jobs(handed):
    got = handed("-m", "beta=1,2")
    assert {job.run.logger.group for job in got.jobs} == {got.name}
    assert OmegaConf.create(got.jobs[0].config_yaml).logger.group == got.name
    mine = handed("-m", "beta=1,2", "logger.group=mine")
    assert {job.run.logger.group for job in mine.jobs} == {"mine"} and mine.name == got.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "sweep=nowhere"], "sweep=nowhere: no such choice; there are beta, frontier, kl_target, labels, len"),
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
        (["-m", "beta=interval(0,1)"], "beta=interval(0,1): a grid needs single values, as beta=1,2,5"),
        (
            ["-m", "algo=ppo", "seed=0,1", "ppo.preset=paper"],
            "job algo=ppo seed=0 ppo.preset=paper: ppo.preset only names",
        ),
    ],
)
def test_a_refusal(handed, arguments, said):
    got = handed(*arguments)
    assert (got.code, got.out, got.jobs) == (2, "", [])
    assert got.err.startswith(f"refused: {said}") and got.err.count("\n") == 1


@pytest.mark.parametrize("key", ["beta=0.1", "seeed=1"])
def test_a_key_that_a_job_of_a_file_does_not_have(handed, own, key):
    option = own(mixed=["algo=dpo beta=1", "algo=ppo target_kl=1,2"])
    got = handed(*option, "-m", "sweep=mixed", key)
    job = f"algo=ppo target_kl=1 {key}" if key == "beta=0.1" else f"algo=dpo beta=1 {key}"
    assert (got.code, got.out, got.jobs) == (2, "", [])
    assert got.err.startswith(f"refused: job {job}: {key}: no such key") and got.err.count("\n") == 1


def test_a_sweep_file_without_grids(handed, own, tmp_path):
    option = own(bare=[])
    (tmp_path / "own" / "sweep" / "typo.yaml").write_text("grid:\n- beta=1,2\n")
    for name in ("bare", "typo"):
        got = handed(*option, "-m", f"sweep={name}")
        assert (got.code, got.jobs) == (2, [])
        assert got.err.startswith(f"refused: sweep={name}: its file needs `grids:`")


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_a_sweep_under_torchrun(handed, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    got = handed("-m", "beta=1,2")
    assert (got.code, got.jobs) == (2, []) and "run it without torchrun" in got.err


# --- whole sweeps, in processes of their own

SMOKE = ["-m", "experiment=smoke", "reward=lexicon", "trainer.threads=1"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps below write, so that what is upstream is made once."""
    return tmp_path_factory.mktemp("outputs")


def sweep(outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *SMOKE, f"paths.outputs={outputs}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(outputs)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def whole(outputs: Path, *arguments: str) -> tuple[int, str, str]:
    process = sweep(outputs, *arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def kept(outputs: Path, title: str) -> dict[str, Any]:
    """`sweep.json` of the only sweep of that title; empty before it is there."""
    found = list((outputs / "sweeps").glob(f"{title}-????????/sweep.json"))
    return dict(json.loads(found[0].read_text())) if found else {"jobs": []}


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if answer := condition():
            return answer
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the sweep ended: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("it took too long")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def running(outputs: Path, title: str) -> list[int]:
    return [job["pid"] for job in kept(outputs, title)["jobs"] if job["state"] == "running"]


def test_a_job_that_fails_and_one_that_is_killed(outputs):
    """The others are run all the same; the same command then runs only these two."""
    arguments = ["beta=0.1,0.2,0.3", "policy.optim.lr=1e-4,1e30"]
    title = "beta-policy.optim.lr"
    process = sweep(outputs, *arguments)
    pid = until(lambda: running(outputs, title), process)[0]
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    jobs = kept(outputs, title)["jobs"]
    assert process.returncode == 1, err
    assert [job["state"] for job in jobs] == ["failed", "failed", "done", "failed", "done", "failed"], out
    assert jobs[0]["exit_code"] == -signal.SIGKILL and jobs[0]["reason"].startswith("killed by SIGKILL")
    assert jobs[1]["exit_code"] == 1 and "lower the learning rate" in jobs[1]["reason"]
    ending = out[out.index("4 failed:") :]
    assert all(job["reason"] in ending and job["log"] in ending for job in jobs if job["state"] == "failed")
    assert jobs[2]["overrides"][-2:] == ["beta=0.2", "policy.optim.lr=0.0001"]

    done = Path(jobs[2]["run"], "summary.json").stat().st_mtime_ns
    code, out, _ = whole(outputs, *arguments)
    again = kept(outputs, title)["jobs"]
    assert code == 1 and "2 of 6 finished already, not run again" in out
    assert [job["state"] for job in again] == ["done", "failed", "done", "failed", "done", "failed"]
    assert Path(again[2]["run"], "summary.json").stat().st_mtime_ns == done


def test_a_run_that_was_changed_by_hand_and_a_frontier(outputs):
    arguments = ["seed=0,1", "policy.optim.lr=0.003", "policy.optim.warmup_steps=1"]  # for a KL worth drawing
    code, out, err = whole(outputs, *arguments)
    assert code == 0, out + err
    jobs = kept(outputs, "seed")["jobs"]
    folder = Path(jobs[0]["log"]).parents[1]
    drawn = json.loads((folder / "frontier.json").read_text())
    assert sorted(run["name"] for run in drawn["runs"]) == sorted(job["name"] for job in jobs)
    assert f"report  {folder}/report.html" in out
    with open(Path(jobs[1]["run"]) / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    code, out, _ = whole(outputs, *arguments)
    after = kept(outputs, "seed")["jobs"]
    assert code == 1 and "1 of 2 finished already, not run again" in out
    assert [job["state"] for job in after] == ["done", "failed"]
    assert "was changed after it was finished: metrics.jsonl has" in after[1]["reason"] and after[1]["reason"] in out


@pytest.mark.slow
def test_a_signal_and_the_death_of_a_sweep(outputs):
    """SIGTERM leaves a checkpoint, SIGKILL no orphan; what follows repeats nothing."""
    arguments = ["alpha=0.1,0.2", "algo=unlikelihood", "policy.steps=40", "evaluation.every=40", "launcher.jobs=2"]
    title = "alpha"
    process = sweep(outputs, *arguments)
    # a first row is written in the training loop, which answers a signal with a checkpoint
    until(lambda: len([p for p in outputs.glob("runs/unlikelihood-*/metrics.jsonl") if p.stat().st_size]) == 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 75, out + err
    assert "run the same command to go on" in out
    assert {job["state"] for job in kept(outputs, title)["jobs"]} == {"stopped"}
    assert len(list(outputs.glob("runs/unlikelihood-*/checkpoint/DONE"))) == 2

    process = sweep(outputs, *arguments)
    pids = until(lambda: len(found := running(outputs, title)) == 2 and found, process)
    process.kill()
    process.communicate()
    until(lambda: not any(map(alive, pids)))
    assert not any(path.exists() for path in outputs.glob("runs/unlikelihood-*/DONE"))

    code, out, err = whole(outputs, *arguments)
    jobs = kept(outputs, title)["jobs"]
    assert code == 0, out + err
    assert [job["state"] for job in jobs] == ["done", "done"]
    assert all("resumed at step" in Path(job["log"]).read_text() for job in jobs)
    folder = Path(jobs[0]["log"]).parents[1]
    with FileLock(f"{folder}.lock"):
        code, out, err = whole(outputs, *arguments)
    assert (code, out) == (1, "") and err.startswith(f"failed: {folder} is in use by another process")


def test_what_a_job_needs_is_not_there(outputs):
    code, out, err = whole(outputs, "beta=1,2", "data.preferences=/nowhere.parquet")
    assert code == 1 and out == ""
    assert err.startswith("failed: job experiment=smoke ") and "/nowhere.parquet" in err and err.count("\n") == 1
    assert not kept(outputs, "beta")["jobs"]
