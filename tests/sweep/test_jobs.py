"""Jobs before they start: which are the same, their names, how many run at once, and on which GPU."""

from typing import Any

import pytest

from imdb_rlhf.config.machine import LauncherConfig, WandbLogger
from imdb_rlhf.config.run import NOT_IN_HASH, Run
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.sweep.jobs import Machine, devices, distinct, folder_name, group_words, in_group, labels, slots
from tests.command import run_of


def test_repetitions_may_differ_in_keys_that_change_no_number():
    runs = [run_of("beta=1"), run_of("beta=2"), run_of("beta=1.0"), run_of("beta=1", "logger=none")]
    assert distinct(runs) == [0, 1]


@pytest.mark.parametrize("key", ["launcher.jobs=2", "paths.outputs=elsewhere", "plan=true"])
def test_a_sweep_has_one_launcher_one_place_and_one_plan(key):
    with pytest.raises(ConfigError, match=f"^{key.partition('=')[0].partition('.')[0]} is one for all jobs"):
        distinct([run_of("beta=1"), run_of("beta=2", key)])


def test_a_folders_name_holds_words_only():
    run = run_of()
    assert folder_name("optim@policy.optim-a/b", [run]).startswith("optim-policy.optim-a-b-")
    assert folder_name("x", [run, run_of("beta=1")]) == folder_name("x", [run_of("beta=1"), run])


def test_the_runs_of_a_sweep_have_names_of_their_own(monkeypatch):
    def told(*words):
        logger = in_group(run_of(*words), "mine").logger
        assert isinstance(logger, WandbLogger)
        return logger.group, logger.run_name

    assert told() == ("mine", "{run}")
    assert told("logger.run_name=try", "logger.group=x") == ("x", "try {run}")
    assert told("logger.run_name='{run} again'") == ("mine", "{run} again")
    monkeypatch.setenv("WANDB_NAME", "second")
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert told() == ("theirs", "second {run}")


def test_a_job_of_several_processes_is_told_group_and_name():
    grouped = in_group(run_of('logger.run_name="say \\"b\\" {run}"'), "mine, too")
    again = run_of(*group_words(grouped)).logger
    assert again == grouped.logger
    assert group_words(run_of("logger=none")) == []


def test_only_wandb_has_groups():
    plain = run_of("logger=none")
    assert in_group(plain, "mine") is plain
    grouped = in_group(run_of(), "mine").logger
    assert isinstance(grouped, WandbLogger) and grouped.group == "mine"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([["beta=1", "seed=0"], ["beta=2", "seed=0"]], ["beta=1", "beta=2"]),
        ([["beta=1", "seed=0"]], ["beta=1 seed=0"]),
        (
            [["x=1", "algo=dpo", "beta=1", "lr=2"], ["x=1", "algo=dpo", "beta=2", "lr=2"], ["x=1", "algo=sft", "lr=3"]],
            ["algo=dpo beta=1", "algo=dpo beta=2", "algo=sft"],
        ),
    ],
)
def test_names_that_set_jobs_apart(overrides, names):
    assert labels(overrides) == names


@pytest.mark.parametrize(
    ("jobs", "gpus", "cores", "threads", "processes", "expected"),
    [
        (1, 8, 64, 1, 1, 1),
        (3, 0, 2, 2, 1, 3),  # as asked
        (None, 0, 2, 2, 1, 1),
        (None, 0, 2, 1, 1, 2),
        (None, 0, 2, 8, 1, 1),
        (None, 0, 16, 3, 1, 5),
        (None, 4, 2, 2, 1, 4),
        (None, 4, 2, 2, 2, 2),
        (None, 1, 64, 2, 2, 1),
    ],
)
def test_jobs_at_once(jobs, gpus, cores, threads, processes, expected):
    assert slots(LauncherConfig("parallel", jobs), Machine(gpus, cores, threads), processes) == expected


@pytest.mark.parametrize(
    ("slot", "gpus", "processes", "visible", "expected"),
    [
        (0, 0, 1, None, None),
        (0, 1, 1, None, None),
        (0, 4, 1, None, "0"),
        (3, 4, 1, None, "3"),
        (5, 4, 1, None, "1"),
        (1, 4, 2, None, "2,3"),
        (1, 2, 1, "4,6", "6"),
        (0, 2, 4, None, "0,1"),
    ],
)
def test_a_gpu_of_ones_own(slot, gpus, processes, visible, expected):
    assert devices(slot, gpus, processes, visible).get("CUDA_VISIBLE_DEVICES") == expected


def test_the_launcher_is_no_part_of_a_run():
    def hashed(run: Run) -> dict[str, Any]:
        return {key: value for key, value in vars(run).items() if key not in NOT_IN_HASH}

    assert hashed(run_of("launcher=parallel", "launcher.jobs=7")) == hashed(run_of())
    assert run_of("launcher=parallel").launcher != run_of().launcher
