"""The commands at their smallest sizes, their refusals, and that compared programs compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hours
from benchmarks.__main__ import main
from benchmarks.compare import agreement, cases
from benchmarks.programs.__main__ import run as program
from benchmarks.runs import runs_of
from benchmarks.workload import SHAPES, Data, make
from imdb_rlhf.config.families import PreferenceRun


@pytest.mark.slow
def test_programs_of_one_case_compute_the_same(tmp_path: Path) -> None:
    setup: dict[str, Any] = {"folder": str(make(SHAPES["toy"], Data(), tmp_path)), "device": "cpu"}
    setup |= {"precision": "float32", "threads": 1, "repetitions": 1}
    for case in cases(["dpo", "generate", "sft"], ["toy"]):
        records = {p.label: program(p.name, {**setup, **p.options}) for p in case}
        assert len({record.work for record in records.values()}) == 1
        for p in case:
            if p.against is not None and p.check is not None:
                agrees, note = agreement(p.check, records[p.label].facts, records[p.against].facts, "float32")
                assert agrees, note
    ppo = program("package.ppo", {**setup, "queries": 8, "minibatch": 4, "new": 6, "epochs": 3})
    assert (ppo.work, ppo.unit, len(ppo.seconds)) == (8.0, "episodes", 1)  # an iteration is all of its steps
    memory = {"task": "token_logprobs", "tokens": [1024, 8192], "vocabularies": [4096, 12_288]}
    above = [point["above"] for point in program("memory.grid", {**setup, **memory}).facts["points"]]
    assert max(above) < 0.1 * 4 * 8192 * 12_288  # nothing near whole logits


@pytest.mark.slow
def test_a_run_is_divided_into_stages_and_lends_its_rates_to_the_papers(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    words = ["experiment=smoke", "trainer.threads=1", "trainer.precision=float32", "--peak-sizes", "64"]
    assert main(["stages", *words, *out, "--name", "one"]) == 0
    (account,) = json.loads((tmp_path / "one" / "results.json").read_text())["accounts"]
    names = [row["stage"] for row in account["rows"]]
    assert names[:4] == ["start-up", "data", "sft", "groups"] and "dpo: evaluations" in names
    assert all(0 < row["of_peak"] < 1 for row in account["rows"] if row["operations"])
    assert sum(part["seconds"] for part in account["parts"]) == pytest.approx(account["wall"])
    assert main(["hours", str(tmp_path / "one"), *out, "--name", "two"]) == 1  # no PPO was measured
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    sft = rows["sft"]
    # 24,488 rows (512 are held out) in batches of 64 are 383 steps; one pass, 512 tokens per row
    assert sft["work"]["amount"] == 383 * 64 * 512
    assert sft["seconds"] == pytest.approx(sft["work"]["operations"] / sft["rate"]["operations"])
    assert results["hours"] == pytest.approx(sum(row["seconds"] or 0 for row in rows.values()) / 3600)
    # 22 runs, artifacts once; 6 pairs of 25,000 prompts in batches of 64
    times = [
        rows[f"{name}: training"]["times"] for name in ("dpo", "unlikelihood", "preferred_ft", "ppo (learned, paper)")
    ]
    assert times == [4, 4, 2, 4] and rows["groups"]["times"] == 1 and rows["groups"]["work"]["amount"] == 100_000
    assert rows["dpo: training"]["work"]["amount"] == 4 * 2344 and rows["true reward (siebert)"]["seconds"] is None
    assert rows["unlikelihood: training"]["rate"]["stage"] == "dpo: training"


def test_what_measures_the_rates_is_the_papers_configuration() -> None:
    for words in hours.MEASURING:
        (run,) = runs_of([*hours.COMMON.split(), *words.split()])
        (paper,) = runs_of(["experiment=paper", "model=gpt2-large-random", f"algo={run.algo}"])
        assert (run.model, run.trainer.micro_batch) == (paper.model, paper.trainer.micro_batch)
        if isinstance(run, PreferenceRun) and isinstance(paper, PreferenceRun):
            assert run.policy.precision == paper.policy.precision == "float32"


def test_a_failed_program_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.run_program", lambda job, machine: "killed")
    monkeypatch.setattr("benchmarks.compare.STORE", tmp_path)
    assert main(["peak", "sft", "--no-peers", "--shapes", "toy", "--out", str(tmp_path), "--name", "one"]) == 1
    assert "FAILED: killed" in (tmp_path / "one" / "table.md").read_text()
    assert main(["stages", "beta=-1", "--out", str(tmp_path), "--name", "two"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "no measurement 'speed'; there are peak, dpo"),
        (["--rounds", "0"], "argument --rounds: 0 is not above 0"),
        (["growth", "--repetitions", "0"], "argument --repetitions: 0 is not above 0"),
        (["growth", "--name", ".."], "exists already and is not overwritten; give another --name"),
        (["stages", "quick"], "'quick' is not of the form key=value"),
        (["hours"], "no result to read rates from: run `python -m benchmarks stages experiment=rehearsal"),
        (["hours", "/nowhere"], "/nowhere is no result of `python -m benchmarks stages` (FileNotFoundError"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as refused:
        main([*words, "--out", str(tmp_path / "out")])
    assert refused.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())
