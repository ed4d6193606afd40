import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.frontier.__main__ import main
from imdb_rlhf.frontier.draw import describe, draw

Write = Callable[..., Path]
FILES = ["frontier.csv", "frontier.json", "frontier.pdf", "frontier.png", "frontier.svg", "report.html"]


def steps(*points: tuple[float, float]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {5 * (i + 1): (np.full((6, 2), reward), np.full((6, 2), kl)) for i, (kl, reward) in enumerate(points)}


def test_draws_a_sweep_into_its_own_folder(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run("dpo", ("beta", beta), steps((1.0, 0.7), (2.0, 0.7 + 0.1 / beta))) for beta in (1, 2)]
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"jobs": [{"run": str(run)} for run in runs]}))
    assert main([str(sweep)]) == 0
    assert sorted(path.name for path in sweep.iterdir()) == sorted([*FILES, "sweep.json"])
    output = capsys.readouterr().out
    assert "DPO" in output
    assert str(sweep / "report.html") in output


def test_other_places_are_drawn_beside_the_runs(write_run: Write, tmp_path: Path) -> None:
    write_run("dpo", ("beta", 1), steps((1.0, 0.7)))
    assert main([str(tmp_path / "outputs")]) == 0
    (folder,) = (tmp_path / "outputs" / "frontiers").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert main([str(tmp_path / "outputs"), "--to", str(tmp_path / "here")]) == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == FILES


def test_the_same_runs_give_the_same_bytes(write_run: Write, tmp_path: Path) -> None:
    run = write_run("dpo", ("beta", 1), steps((1.0, 0.7), (2.0, 0.8)))
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        draw([run], folder)
    for name in FILES:
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first.replace(b"/a", b"/b") == second.replace(b"/a", b"/b"), name


def test_a_name_is_no_formula(write_run: Write, tmp_path: Path) -> None:
    run = write_run("own_model", None, steps((1.0, 0.7)), summary={"variant": r"$\foo$ <b>"})
    draw([run], tmp_path / "out")
    assert r"$\foo$ &lt;b&gt;" in (tmp_path / "out" / "frontier.svg").read_text()


def test_csv_has_a_row_a_checkpoint(write_run: Write, tmp_path: Path) -> None:
    draw([write_run("dpo", ("beta", 1), steps((1.0, 0.7), (2.0, 0.8)))], tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "frontier.csv")
    assert list(rows["step"]) == [5, 10]
    assert list(rows["kl"]) == [1.0, 2.0]
    row = rows.to_dict("records")[1]
    names = ["algo", "knob", "knob_value", "seed", "reward", "reward_low", "reward_high", "kl_high"]
    assert [row[name] for name in names] == ["dpo", "beta", 1.0, 0, *[pytest.approx(0.8)] * 3, 2.0]
    assert not {"kl_ci", "reward_ci", "efficiency"} & set(rows.columns)


def test_the_table_says_what_a_budget_buys(write_run: Write, tmp_path: Path) -> None:
    frontier = draw([write_run("dpo", ("beta", 1), steps((1.0, 0.7), (2.0, 0.8)))], tmp_path / "out")
    header, row = describe(frontier).splitlines()[:2]
    assert header.split()[:1] == ["method"]
    assert row.split()[2:8] == ["0.550~", "0.600~", "0.700", "0.800", "0.800*", "0.800*"]
    assert row.endswith("1 seed: prompts only")


def test_without_a_largest_reward_the_optimum_has_no_upper_end(write_run: Write, tmp_path: Path) -> None:
    """The upper curve follows its last tangent: far beyond the samples it is a number without a meaning."""
    reservoir = np.random.default_rng(0).normal(size=(6, 64))
    more = {"reward.name": "own"}
    run = write_run("dpo", ("beta", 1), steps((1.0, 0.7)), reservoir=reservoir, more=more)
    frontier = draw([run], tmp_path / "out")
    (optimum,) = [line for line in describe(frontier).splitlines() if line.startswith("optimum")]
    known = [budget <= frontier["optimum"]["trusted_kl"] for budget in frontier["budgets"]]
    cells = optimum.split()[1:]
    assert True in known and False in known and len(cells) == len(known)
    assert [not cell.startswith(">=") for cell in cells] == known
    assert all(f">={float(cell[2:]):.2f}" == cell for cell in cells if cell.startswith(">="))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "refused: "),
        (["{tmp}/missing"], 2, "refused: there is no folder"),
        (["{tmp}"], 2, "refused: there is no run in"),
        (["{tmp}", "--form"], 2, "refused: "),
    ],
)
def test_bad_places(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{tmp}", str(tmp_path)) for word in arguments]) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_half_written_runs_alone_are_a_failure(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run("dpo", ("beta", 1), steps((1.0, 0.7)))
    (run / "DONE").unlink()
    assert main([str(run), "--to", str(tmp_path / "out")]) == 1
    assert "none of 1 runs is finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_worlds_are_refused(write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run("dpo", ("beta", 1), steps((1.0, 0.7)))
    second = write_run("dpo", ("beta", 1), steps((1.0, 0.7)), more={"generation.temperature": 0.7}, world="cold")
    assert main([str(first), str(second), "--to", str(tmp_path / "out")]) == 2
    assert "they differ in generation.temperature (1.0 and 0.7)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
