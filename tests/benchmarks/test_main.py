"""`python -m benchmarks`: small shapes to the end, and refusals."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command

SMALL = ["--shapes", "toy", "--rounds", "1", "--threads", "1", "--peers", "no", "--data", "generated"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "STORE", tmp_path / "store")


def run(tmp_path: Path, *words: str) -> dict[str, object]:
    assert command.main([*words, *SMALL, "--out", str(tmp_path / "out"), "--name", "one"]) == 0
    found = json.loads((tmp_path / "out" / "one" / "results.json").read_text())
    assert isinstance(found, dict)
    return found


def check(found: dict[str, object]) -> list[str]:
    """Labels of the rows, whose numbers follow from the single timings."""
    rows, programs = found["rows"], found["programs"]
    assert isinstance(rows, list) and isinstance(programs, list)
    for row, program in zip(rows, programs, strict=True):
        (record,) = program["rounds"]
        rates = sorted(record["work"] / seconds for seconds in record["seconds"])
        assert row["low"] == rates[0] and row["high"] == rates[-1] and row["repetitions"] == len(rates)
        assert record["peak_bytes"] > 1e8 and record["threads"] == 1
        if row["measurement"] != "peak":
            assert 0 < row["share"] < 1
    return [f"{row['measurement']} {row['program']}" for row in rows]


def test_a_small_run_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, "peak", "sft")
    assert check(found) == ["peak bf16", "peak float32", "sft ours"]
    assert found["threads"] == 1 and found["texts"] == "generated reviews"
    assert str(found["command"]).startswith("python -m benchmarks peak sft --shapes toy")
    table = (tmp_path / "out" / "one" / "table.md").read_text()
    assert "| sft | toy | ours |" in table and "tokens/s" in table
    assert "tokens/s" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        command.main(["peak", *SMALL, "--out", str(tmp_path / "out"), "--name", "one"])
    assert refused.value.code == 2 and "not overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_of_ours(tmp_path: Path) -> None:
    assert check(run(tmp_path)) == [
        "peak bf16",
        "peak float32",
        "dpo reference once",
        "dpo ours",
        "dpo ours, reference in the step",
        "dpo ours, RMSprop",
        "dpo reference once, shuffled",
        "dpo ours, shuffled pairs",
        "generate ours",
        "ppo ours",
        "sft ours",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "no measurement 'speed'; there are peak, dpo"),
        (["--rounds", "0"], "--rounds=0 measures nothing"),
        (["--data", "/nowhere"], "--data=/nowhere is no folder"),
        (["--shapes", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main([*words, "--out", str(tmp_path / "out")])
    assert refused.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_program_that_fails_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = command.main(["peak", *SMALL, "--timeout", "0.01", "--out", str(tmp_path / "out"), "--name", "one"])
    assert found == 1
    assert "FAILED: not done after 0.01 s" in (tmp_path / "out" / "one" / "table.md").read_text()
