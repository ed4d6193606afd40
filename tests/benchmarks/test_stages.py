"""Where the time went, from outputs made by hand; what was computed, against counts written out; a real smoke run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import __main__ as command
from benchmarks import stages, stages_account, stages_work
from benchmarks.stages_account import Account, Row, account, evaluation_seconds
from benchmarks.stages_work import Made, Sizes

MODEL = {"layers": 1, "width": 4, "vocabulary": 10}
SIZES = Sizes(**MODEL)
LAYER, LOGITS = 2 * 12 * 4**2, 2 * 4 * 10  # operations a token: the layer without attention, the output layer


def attention(tokens: int) -> int:
    """Operations of a row's two products, every token with every token."""
    return 4 * 4 * tokens**2


def read(tokens: int, logits: int) -> int:
    """Operations of a row."""
    return tokens * LAYER + attention(tokens) + logits * LOGITS


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def table(rows: list[tuple[int, int]]) -> pd.DataFrame:
    """Prompts and completions of these lengths."""
    return pd.DataFrame(
        {
            "split": "test",
            "prompt_id": range(len(rows)),
            "prompt_ids": [[1] * p for p, _ in rows],
            "completion_ids": [[1] * c for _, c in rows],
        }
    )


# --- model operations -------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Artifacts of one key each."""
    folders = {name: tmp_path / name / "k" for name in ("data", "sft", "groups", "reference", "reservoir")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    lengths = np.array([3] * 10 + [7] * 10)
    np.savez(folders["data"] / "sft.npz", ids=np.zeros(int(lengths.sum()), dtype=np.int32), lengths=lengths)
    write(folders["sft"] / "report.json", {"steps": 5, "tokens": 200})
    table([(2, 3), (4, 1)]).to_parquet(folders["reference"] / "evaluation.parquet")
    table([(2, 3)] * 6).to_parquet(folders["reservoir"] / "reservoir.parquet")
    groups = pd.DataFrame(
        {
            "prompt_id": [0, 0, 0, 1, 1],
            "sample_id": [0, 1, 2, 0, 1],
            "prompt_ids": [[1, 1]] * 3 + [[2, 2, 2]] * 2,
            "completion_ids": [[5], [5, 6], [5, 6, 7], [8], [9]],
            "ref_logprob": 0.0,
            "reward_logit": [0.0, 1.0, 2.0, 0.0, 1.0],
        }
    )
    groups.to_parquet(folders["groups"] / "groups.parquet")
    config = {
        "algo": "dpo",
        "seed": 0,
        "model": MODEL,
        "data": {},
        "sft": {"batch_size": 4},
        "policy": {"batch_size": 4},
        "pairs": {
            **{"labels": "deterministic", "tau": None, "noise": None},
            **{"min_margin": 0.0, "ties": "drop", "order": "prefix"},
        },
    }
    return Made(config, folders)


def test_sft_is_its_examples_trained_and_the_rest_scored(made: Made) -> None:
    # two rows are kept back; of the others 8 have 3 tokens and 10 have 7; 20 examples
    mean = (8 * read(3, 2) + 10 * read(7, 6)) / 18
    assert stages_work.of_artifact("sft", made) == pytest.approx(3 * 20 * mean + 2 * read(3, 2))


def test_samples_are_read_once_and_scored_once_or_twice(made: Made) -> None:
    assert stages_work.of_artifact("reservoir", made) == 6 * (read(4, 3) + read(5, 3))
    expected = read(4, 3) + read(4, 1) + 2 * (read(5, 3) + read(5, 1))
    assert stages_work.of_artifact("reference", made) == expected
    points = pd.DataFrame({"split": "test", "prompt_id": [1, 1], "length": [2, 3]})  # its prompt has 4 tokens
    assert stages_work.of_evaluations(made, points) == read(5, 2) + read(6, 3) + 2 * (read(6, 2) + read(7, 3))
    assert stages_work.of_artifact("data", made) is None


def test_distinct_completions_of_each_batch_are_trained_once(made: Made) -> None:
    # 3 pairs of the first prompt and 1 of the second: a batch of 4 has all 5 completions
    every = read(3, 1) + read(4, 2) + read(5, 3) + 2 * read(4, 1)
    assert stages_work.of_training(made, [], 3) == 3 * 3 * every
    # the winners are the longest of the first prompt, twice, its second, and the second's second
    winners = Made({**made.config, "algo": "preferred_ft"}, made.folders)
    assert stages_work.of_training(winners, [], 1) == 3 * (read(4, 2) + read(5, 3) + read(4, 1))
    assert stages_work.of_training(Made({**made.config, "algo": "best_of_n"}, made.folders), [], 1) is None


def test_a_ppo_episode_is_sampled_scored_valued_and_trained_on(made: Made) -> None:
    rows = pd.DataFrame({"split": "train", "prompt_id": [0, 1], "ids": [[1, 1], [1, 1, 1, 1]]})  # 3 tokens on average
    rows.to_parquet(made.folders["data"] / "prompts.parquet")
    ppo = {"value": "own", "reward": "ground_truth", "minibatch_size": 2, "epochs": 4}
    run = Made({**made.config, "algo": "ppo", "ppo": ppo}, made.folders)
    metrics = [{"ppo/length": 4.0}, {"ppo/length": 6.0}]
    trained = 3 * (read(8, 5) + read(8, 0))
    once = read(7, 5) + 2 * read(8, 5) + read(8, 0)
    # 8 steps of 2 episodes are 16 passes over 4 episodes
    assert stages_work.of_training(run, metrics, 8) == pytest.approx(16 * trained + 4 * once)
    shared = Made({**run.config, "ppo": {**ppo, "value": "shared", "reward": "learned"}}, made.folders)
    once = read(7, 5) + 2 * read(8, 5) + read(8, 0)  # the learned reward instead of the values
    assert stages_work.of_training(shared, metrics, 8) == pytest.approx(16 * 3 * read(8, 5) + 4 * once)


def test_sizes_are_the_references_own(made: Made) -> None:
    assert made.sizes == SIZES
    write(made.folders["sft"] / "model" / "config.json", {"n_layer": 2, "n_embd": 8, "vocab_size": 11})
    assert made.sizes == Sizes(2, 8, 11)
    write(made.folders["sft"] / "model" / "config.json", {"hidden_size": 8})
    assert made.sizes is None and stages_work.of_artifact("reservoir", made) is None


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_is_what_its_stretch_took_beyond_the_steps() -> None:
    rows: list[dict[str, float]] = [
        {"step": 10, "time/elapsed": 20.0},
        {"step": 20, "time/elapsed": 40.0},
        {"step": 25, "time/elapsed": 57.0, "eval/reward": 0.5},  # 10 of steps, 7 of the evaluation
        {"step": 35, "time/elapsed": 77.0},
        {"step": 36, "time/elapsed": 84.0, "eval/reward": 0.5},  # 2 and 5
    ]
    assert evaluation_seconds(rows) == pytest.approx(12.0)
    assert evaluation_seconds(rows[:2]) == 0.0
    assert evaluation_seconds([{"step": 1, "time/elapsed": 3.0, "eval/reward": 0.5}]) is None


@pytest.fixture
def outputs(tmp_path: Path) -> Callable[..., Path]:
    """An outputs folder of runs that share `data` and `reference`."""

    def make(*names: str, console: dict[str, Any] | None = None, jobs: list[dict[str, Any]] | None = None) -> Path:
        machine = {"machine": {"precision": "bf16", "threads": 1}}
        for stage, seconds in (("data", 2.0), ("reference", 8.0)):
            folder = tmp_path / "artifacts" / stage / "k"
            write(folder / "inputs.json", {"seconds": seconds, "inputs": machine if stage == "reference" else {}})
        table([(2, 3), (4, 1)]).to_parquet(tmp_path / "artifacts" / "reference" / "k" / "evaluation.parquet")
        for name in names:
            run = tmp_path / "runs" / name
            write(run / "config.yaml", yaml.safe_dump({"algo": "dpo", "model": MODEL, "data": {}}))
            write(run / "artifacts.json", {"data": "k", "reference": "k"})
            write(run / "summary.json", {"seconds": 30.0, "stage_seconds": {"data": 2.5, "reference": 8.5}})
            rows: list[dict[str, Any]] = [
                {"stage": "dpo", "step": 10, "train/loss": 0.7, "time/elapsed": 20.0},
                {"stage": "dpo", "step": 11, "train/loss": 0.7, "time/elapsed": 26.0, "eval/reward": 0.5},
            ]
            write(run / "metrics.jsonl", "\n".join(map(json.dumps, rows)))
            frame = pd.DataFrame({"split": "test", "prompt_id": [0, 1], "length": [1, 2]})
            frame.to_parquet(run / "evaluations.parquet")
            write(run / "DONE", "{}")
        if console:
            write(tmp_path / stages_account.CONSOLE, console)
        if jobs:
            write(tmp_path / "sweeps" / "s" / "sweep.json", {"jobs": jobs})
        return tmp_path

    return make


def seconds(found: Account) -> dict[str, Any]:
    return {row.stage: pytest.approx(row.seconds) for row in found.rows}


def test_a_run_is_divided_without_rest(outputs: Callable[..., Path]) -> None:
    lines = [[7.0, "data         made in 2.0 s   x"], [15.5, "reference    made in 8.0 s"], [46.0, "  folder"]]
    found = account(outputs("one", console={"wall": 48.0, "code": 0, "lines": lines}))
    assert seconds(found) == {
        "start-up": 5.0,
        "data": 2.0,
        "reference": 8.0,
        "dpo: training": 22.0,
        "dpo: evaluations": 4.0,
        "dpo: loading and results": 4.0,
        "end of the process": 2.0,
        "between the stages": 1.0,
    }
    assert sum(row.seconds for row in found.rows) == pytest.approx(48.0)
    reference = next(row for row in found.rows if row.stage == "reference")
    assert (reference.amount, reference.unit, reference.precision, reference.threads) == (2, "samples", "bf16", 1)
    assert reference.operations == read(4, 3) + read(4, 1) + 2 * (read(5, 3) + read(5, 1))


def test_a_sweep_is_divided_without_rest(outputs: Callable[..., Path]) -> None:
    jobs = [{"name": "one", "seconds": 43.0}, {"name": "two", "seconds": 44.0}]
    lines = [
        [6.0, "   1/2  running a=1"],
        [6.5, "   2/2  running a=2"],
        [49.0, "   1/2  done    a=1   reward 0.9"],
        [50.5, "   2/2  done    a=2   reward 0.9"],
    ]
    found = account(outputs("one", "two", jobs=jobs, console={"wall": 53.5, "code": 0, "lines": lines}))
    assert (found.slots, found.runs) == (2, 2)
    assert seconds(found) == {
        "start-up": 6.0,
        "data": 2.0,
        "reference": 8.0,
        "dpo: training": 44.0,
        "dpo: evaluations": 8.0,
        "dpo: loading and results": 8.0,
        "waiting for another job's artifact": 12.0,  # both had the artifacts after 11 s, made in 10
        "start and end of jobs": 5.0,  # 87 less 22 and 60
        "frontier, drawn last": 3.0,
        "slots without a job": 2 * 53.5 - 96.0,
    }
    training = next(row for row in found.rows if row.stage == "dpo: training")
    assert (training.count, training.amount) == (2, 22)


def test_without_a_console_the_whole_is_what_is_known(outputs: Callable[..., Path]) -> None:
    found = account(outputs("one"))
    assert found.wall is None and "start-up" not in seconds(found)
    lines = stages.rows(found, {})
    assert sum(line["share"] for line in lines) == pytest.approx(1.0)
    assert "the command was not timed" in stages.markdown("x", found, lines)


# --- the table --------------------------------------------------------------------------------------------------------


def test_left_to_win_is_the_time_above_the_peak() -> None:
    row = Row("sft", 1, 10.0, 500.0, "tokens", 4e12, "bf16", 2)
    found = Account(20.0, 1, 1, [row, Row("start-up", 1, 9.99), Row("between the stages", 1, 0.01)])
    lines = stages.rows(found, {("bf16", 2): 2e12, ("float32", 2): 1e11})
    assert [line["stage"] for line in lines] == ["sft", "start-up"]  # the last is a two-thousandth
    assert (lines[0]["share"], lines[0]["rate"], lines[0]["of_peak"], lines[0]["left"]) == (0.5, 50.0, 0.2, 8.0)
    assert (lines[1]["of_peak"], lines[1]["left"]) == (None, 9.99)
    text = stages.markdown("python train.py", found, lines)
    assert "| sft | 1 | 10 s | 50.0 % | 50 tokens/s | 4 T (bf16) | 20.0 % | 8 s |" in text
    assert "Most is left to win in: start-up 9.99 s, sft 8 s." in text


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_smoke_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    words = ["stages", "experiment=smoke", "trainer.threads=1", "--peak-sizes", "64", "--out", str(tmp_path)]
    assert command.main([*words, "--name", "one"]) == 0
    found = json.loads((tmp_path / "one" / "stages.json").read_text())
    (run,) = found["accounts"]
    assert run["command"] == "python train.py experiment=smoke trainer.threads=1"
    names = [line["stage"] for line in run["rows"]]
    assert names[:4] == ["start-up", "data", "sft", "groups"] and "dpo: training" in names
    assert all(0 < line["of_peak"] < 1 for line in run["rows"] if line["operations"])
    assert sum(line["seconds"] for line in run["rows"]) == pytest.approx(run["wall"], rel=0.01)
    assert (found["peaks"][0]["precision"], found["peaks"][0]["threads"]) == ("float32", 1)
    # the same again from what is there
    assert command.main(["stages", "--outputs", str(tmp_path / "one" / "run"), *words[3:], "--name", "two"]) == 0
    again = json.loads((tmp_path / "two" / "stages.json").read_text())["accounts"][0]
    assert [line["seconds"] for line in again["rows"]] == [line["seconds"] for line in run["rows"]]


@pytest.mark.slow
def test_a_sweep_from_its_start_to_its_end(tmp_path: Path) -> None:
    words = ["stages", "experiment=smoke", "trainer.threads=1", "--sweep", "smoke", "--peak-sizes", "64"]
    assert command.main([*words, "--out", str(tmp_path), "--name", "one"]) == 0
    run, sweep = json.loads((tmp_path / "one" / "stages.json").read_text())["accounts"]
    assert (run["runs"], sweep["runs"]) == (1, 6)
    assert {"start and end of jobs", "frontier, drawn last", "reservoir"} <= {line["stage"] for line in sweep["rows"]}
    total = sum(line["seconds"] for line in sweep["rows"])
    assert total == pytest.approx(sweep["slots"] * sweep["wall"], rel=0.02)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quick"], "'quick' is not of the form key=value"),
        (["--outputs", "/nowhere"], "--outputs=/nowhere holds no finished run"),
        (["--outputs", "/nowhere", "beta=1"], "leave --sweep and key=value out"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["stages", *words, "--out", str(tmp_path / "out")])
    assert refused.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_refused_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["stages", "beta=-1", "--out", str(tmp_path), "--name", "one"]) == 1
    assert "train.py ended with exit code 2" in capsys.readouterr().err
    kept = json.loads((tmp_path / "one" / "run" / stages_account.CONSOLE).read_text())
    assert kept["code"] == 2 and "beta" in kept["lines"][-1][1]
