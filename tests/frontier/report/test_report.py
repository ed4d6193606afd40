"""The report: its data are what the runs hold, and in a browser it does what it says, alone and without network."""

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.frontier.report import parts, render, report

HOSTILE = (
    '</script><img src=x onerror="window.broken=1"><!-- & \x1b[31mred\x1b[0m \u202eright\u202c '
    "\u05e9\u05dc\u05d5\u05dd 👩\u200d🚀 {{x}} ${x}"
)
OWN = "own <b>model</b> & co"
PROMPTS = 30


# --- run folders and a frontier of given numbers


def make_run(root: Path, name: str, *, shift: float = 0.0, text: str = "fine", prompts: int = PROMPTS) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    ids = np.repeat(np.arange(prompts), 2)
    table = pd.DataFrame(
        {
            "prompt_id": ids,
            "sample_id": np.tile([0, 1], prompts),
            "prompt": [f"prompt {i}" for i in ids],
            "policy": [f" {name} after {i} {text}" for i in ids],
            "policy_reward": np.clip(0.5 + ids / (4 * prompts) + shift, 0, 1),
            "kl": 0.1 * ids,
            "log_ratio": 10.0 - ids,
            "reference": [f" before {i}" for i in ids],
            "reference_reward": np.full(2 * prompts, 0.5),
        }
    )
    table.to_parquet(folder / "samples.parquet", index=False)
    rows = [{"stage": "dpo", "step": step, "train/loss": 1 / step, "time/elapsed": 9.0} for step in range(1, 21)]
    rows += [{"stage": "dpo", "step": 20, "eval/reward": 0.7 + shift, "eval/kl": 1.5, "eval/length": 30.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"step": 20}))
    (folder / "config.yaml").write_text(f"algo: dpo\nseed: 0\nname: {name}\n")
    return folder


def run_of(folder: Path, method: str, knob: float | None, reward: float, kl: float, **more: Any) -> dict[str, Any]:
    return {
        "name": folder.name,
        "path": str(folder),
        "method": method,
        "knob": None if knob is None else "beta",
        "knob_value": knob,
        "seed": 0,
        "overrides": ["algo=dpo", f"beta={knob}"],
        "reward": reward,
        "kl": kl,
        "win_rate": 0.75,
        "distinct_2": 0.25,
        "length": 30.5,
        "seconds": 12.0,
        **more,
    }


def point_of(run: dict[str, Any], step: int, kl: float, reward: float) -> dict[str, Any]:
    return {
        **{key: run[key] for key in ("method", "knob", "knob_value", "seed")},
        "run": run["name"],
        "algo": "dpo",
        "step": step,
        "last": step == 20,
        "chosen": False,
        "kl": kl,
        "kl_ci": [kl - 0.05, kl + 0.05],
        "reward": reward,
        "reward_ci": [reward - 0.01, reward + 0.01],
        "validation_kl": kl,
        "validation_reward": reward,
        "efficiency": [0.41, 0.52],
        "above_optimum": False,
    }


def method_of(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "algo": "dpo",
        "knob": runs[0]["knob"],
        "seeds": [0],
        "covers": "prompts",
        "score": [0.61, 0.72],
        "score_ci": [0.58, 0.77],
        "score_raw": 0.2,
        "at_budget": [
            {"kl": kl, "reward": 0.6, "reward_ci": [0.55, 0.65], "reached": kl < 2, "mixed": kl < 0.5}
            for kl in (0.25, 0.5, 1, 2, 5, 10)
        ],
        "settings": [
            {
                "knob_value": run["knob_value"],
                "seeds": [0],
                "covers": "prompts",
                "references": 1,
                "spread": None,
                "kl": run["kl"],
                "kl_ci": [run["kl"] - 0.05, run["kl"] + 0.05],
                "reward": run["reward"],
                "reward_ci": [run["reward"] - 0.01, run["reward"] + 0.01],
                "efficiency": [0.41, 0.52],
                "runs": [run["name"]],
            }
            for run in runs
        ],
        "diverged": [],
    }


def optimum() -> dict[str, Any]:
    kl = [0.0, 0.01, *np.linspace(0.5, 6, 12).tolist()]
    curve = [0.5 + 0.45 * (1 - math.exp(-each)) for each in kl]
    lower, upper = [each - 0.02 for each in curve], [each + 0.02 for each in curve]
    interval = [[each - 0.01 for each in curve], [each + 0.01 for each in curve]]
    return {
        "samples": 64,
        "trusted_kl": 2.2,
        "cap": 1.0,
        "kl": kl,
        **{"lower": lower, "lower_ci": interval, "upper": upper, "upper_ci": interval},
        "learned": {"kl": kl, "reward": lower, "reward_ci": interval},
    }


@pytest.fixture(scope="module")
def frontier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs")
    runs = [
        run_of(make_run(root, "dpo-a"), "DPO", 0.1, 0.8, 2.0),
        run_of(make_run(root, "dpo-b", shift=0.1), "DPO", 1.0, 0.7, 1.2),
        run_of(make_run(root, "own-c", text=HOSTILE), OWN, None, 0.6, 0.4),
        run_of(root / "gone", "PPO", 3.0, 0.9, 3.0, overrides=["algo=ppo", "data.path=my films"]),
    ]
    points = [point_of(run, 20, run["kl"], run["reward"]) for run in runs]
    points += [point_of(runs[0], 10, 1.6, 0.66), point_of(runs[0], 0, 0.0, 0.5)]
    n = [1, 2, 3, 4]
    return {
        "world": {
            **{"data": "embedded", "reward": "lexicon", "model": "tiny", "max_new_tokens": 48, "temperature": 1.0},
            **{"test_prompts": PROMPTS, "samples_per_prompt": 2},
        },
        "confidence": 0.95,
        "reference": {"reward": 0.5, "reward_ci": [0.48, 0.52]},
        "base": {"reward": 0.47, "reward_ci": [0.46, 0.48], "kl": 2.5, "kl_ci": [2.4, 2.6]},
        "budgets": [0.25, 0.5, 1, 2, 5, 10],
        "score_kl": 5.0,
        "methods": [
            method_of("DPO", sorted(runs[:2], key=lambda run: run["knob_value"])),
            method_of("PPO", runs[3:]),
            method_of(OWN, runs[2:3]),
        ],
        "points": points,
        "optimum": optimum(),
        "best_of_n": {
            "ground_truth": {
                "n": n,
                "kl": [math.log(each) - (each - 1) / each for each in n],
                "reward": [0.5, 0.6, 0.64, 0.67],
                "reward_ci": [[0.49, 0.59, 0.63, 0.66], [0.51, 0.61, 0.65, 0.68]],
            }
        },
        "tests": [
            {
                "first": "DPO",
                "second": "PPO",
                "kl": 1,
                "difference": -0.05,
                "ci": [-0.09, -0.01],
                "p": 0.01,
                "p_adjusted": 0.02,
            }
        ],
        "runs": runs,
        "sources": [run["path"] for run in runs],
        "skipped": [{"path": "/x/half", "why": "not finished"}],
        "warnings": ["diverged: none, this is a test"],
    }


def data_in(page: Path) -> Any:
    """The data as a browser would find them: the text of the script element with id `data`."""

    class Finder(HTMLParser):
        inside, text = False, ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("id", "data") in attrs

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

        def handle_data(self, data: str) -> None:
            self.text += data if self.inside else ""

    finder = Finder(convert_charrefs=False)
    finder.feed(page.read_text(encoding="utf-8"))
    return json.loads(finder.text)


# --- without a browser


def test_hostile_text_comes_back_as_it_was() -> None:
    value = {"texts": [HOSTILE, "\ud800 half a pair", "\u2028", ""], "deep": [[{HOSTILE: None}]]}
    text = render.embed(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set(text) & set("<>&")


def test_numbers_that_json_has_not_are_null() -> None:
    value = {"a": math.nan, "b": [math.inf, np.float32(0.5), np.int64(3)], "c": np.array([1.0, -np.inf]), "d": True}
    assert json.loads(render.embed(value)) == {"a": None, "b": [None, 0.5, 3], "c": [1.0, None], "d": True}


def test_the_page_holds_the_frontier_and_its_runs(frontier: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    report.write(frontier, page)
    data = data_in(page)
    assert data["frontier"] == json.loads(json.dumps(frontier))
    run = data["runs"][0]
    assert shlex.split(run["command"]) == ["python", "train.py", "algo=dpo", "beta=0.1"]
    assert [data["texts"][place] for place in run["config"]] == ["algo: dpo", "seed: 0", "name: dpo-a"]
    place, values = run["curves"]["eval/kl"]
    assert (data["steps"][place], values) == ([20], [1.5])
    assert run["step"] == 20
    assert not run["missing"]
    assert data["styles"]["DPO"] == ["#0072B2", "circle"]
    redraw = shlex.split(data["redraw"])
    assert redraw[:3] == ["python", "-m", "imdb_rlhf.frontier"]
    assert redraw[3:] == frontier["sources"]
    texts = [[data["texts"][place] for place in row[:3]] for row in data["runs"][2]["samples"]]
    assert texts[4] == ["prompt 4", " before 4", f" own-c after 4 {HOSTILE}"]


def test_metrics_share_their_steps() -> None:
    pool = parts.Pool()
    shared = pool.share({"a": [[1.0, 2.0], [5.0, 6.0]], "b": [[1.0, 2.0], [7.0, 8.0]], "c": [[2.0], [9.0]]})
    assert shared == {"a": [0, [5.0, 6.0]], "b": [0, [7.0, 8.0]], "c": [1, [9.0]]}
    assert pool.steps == [[1.0, 2.0], [2.0]]


def test_however_long_the_texts_the_page_is_below_2_mb(frontier: dict[str, Any], tmp_path: Path) -> None:
    """22 runs of 100 prompts each, of which a page could hold a few MB."""
    runs = []
    for number in range(22):
        folder = make_run(tmp_path, f"run-{number}", text=f"{number} and on " * 120, prompts=100)
        rows = [{"step": step, **{f"ppo/{key}": step / 7 for key in range(20)}} for step in range(1, 401)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run_of(folder, "DPO", 0.1 * number, 0.8, 2.0))
    path = tmp_path / "report.html"
    report.write({**frontier, "runs": runs}, path)
    assert 100_000 < path.stat().st_size < 2_000_000
    data = data_in(path)
    shown = [len(run["samples"]) for run in data["runs"]]
    assert len(set(shown)) == 1 and 5 <= shown[0] < 100  # of every run as many
    assert all(data["texts"][row[2]].endswith("and on ") for run in data["runs"] for row in run["samples"])


def test_equal_input_gives_equal_bytes_and_leaves_nothing_else(frontier: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "report.html", tmp_path / "b" / "report.html"
    report.write(frontier, first)
    report.write(json.loads(json.dumps(frontier)), second)
    report.write(frontier, second)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in second.parent.iterdir()] == ["report.html"]


def test_a_command_is_quoted_for_the_shell(frontier: dict[str, Any]) -> None:
    command = report.page_data(frontier)["runs"][3]["command"]
    assert command == "python train.py algo=ppo 'data.path=my films'"


def test_what_a_run_lacks_is_said(frontier: dict[str, Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path, "torn")
    (folder / "samples.parquet").write_bytes(b"PAR1 torn")
    (folder / "metrics.jsonl").write_text('{"step": 1,\n{"step": 2}\n')
    (folder / "config.yaml").unlink()
    run = run_of(folder, "DPO", 0.1, 0.8, 2.0)
    data = report.page_data({**frontier, "runs": [run]})["runs"][0]
    assert [data[key] for key in ("samples", "histogram", "curves", "config")] == [None] * 4
    assert [line.split()[0] for line in data["missing"]] == ["samples.parquet", "metrics.jsonl", "config.yaml"]
    assert "cannot be read" in data["missing"][0]
    assert "line 1" in data["missing"][1]
    assert data["missing"][2] == "config.yaml is not in the run's folder"
    gone = report.page_data(frontier)["runs"][3]
    assert len(gone["missing"]) == 4


def test_a_column_that_is_not_there_is_said(frontier: dict[str, Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path, "other")
    pd.DataFrame({"sample_id": [0], "prompt_id": [0]}).to_parquet(folder / "samples.parquet")
    data = report.page_data({**frontier, "runs": [run_of(folder, "DPO", 0.1, 0.8, 2.0)]})["runs"][0]
    assert any("reference_reward" in line for line in data["missing"])
    assert data["samples"] is None
    assert data["curves"] is not None


def test_long_curves_keep_their_ends_and_even_steps() -> None:
    rows = [{"stage": "ppo", "step": step, "train/loss": 2.0 * step, "eval/kl": None} for step in range(1, 2992)]
    rows[10] |= {"eval/reward": 0.123456789, "flag": True}
    steps, values = parts.curves(rows)["train/loss"]
    assert len(steps) == 300
    assert (steps[0], steps[-1]) == (1, 2991)
    assert set(np.diff(steps)) == {10.0}
    assert values == [2 * step for step in steps]
    assert parts.curves(rows)["eval/reward"] == [[11], [0.123457]]
    assert set(parts.curves(rows)) == {"train/loss", "eval/reward"}


def test_of_a_step_that_was_logged_twice_the_last_row_counts() -> None:
    rows = [{"step": 2, "a": 1.0, "time/elapsed": 3.0}, {"step": 1, "a": 5.0}, {"step": 2, "a": 7.0, "b": math.nan}]
    assert parts.curves(rows) == {"a": [[1.0, 2.0], [5.0, 7.0]]}


def test_rewards_are_counted_in_bins() -> None:
    table = pd.DataFrame({"reference_reward": [0.0, 0.1, 0.6, 1.0], "policy_reward": [0.9, 0.76, 1.0, 0.3]})
    counts = parts.histogram(table, bins=4)
    assert counts["edges"] == [0, 0.25, 0.5, 0.75, 1]
    assert counts["before"] == [2, 0, 1, 1]
    assert counts["after"] == [0, 1, 0, 3]
    assert (counts["mean_before"], counts["mean_after"]) == (0.425, 0.74)
    wide = parts.histogram(table * 10 - 5, bins=5)
    assert wide["edges"] == [-5, -3, -1, 1, 3, 5]
    assert wide["before"] == [2, 0, 0, 1, 1]


def test_samples_are_the_first_of_evenly_spaced_prompts(tmp_path: Path) -> None:
    table = pd.read_parquet(make_run(tmp_path, "many", prompts=298) / "samples.parquet")
    pool = parts.Pool()
    rows = parts.samples(table.sample(frac=1, random_state=0), pool)
    assert [pool.texts[row[0]] for row in rows] == [f"prompt {i}" for i in range(0, 298, 3)]
    assert rows[1][3:] == [0.5, round(0.5 + 3 / (4 * 298), 6), 7.0, 0.3]
    assert len(pool.texts) == len(set(pool.texts)) == 300


# --- in a browser

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def whole(frontier: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write(frontier, path)
    return path


@pytest.fixture(scope="module")
def shared(open_page: Open, whole: Path) -> Any:
    """One window for all tests whose traces `page` wipes away."""
    return open_page(whole)


@pytest.fixture
def page(shared: Any) -> Iterator[Any]:
    """The report with its first run chosen; by the end of the test there is no complaint and no request."""
    shared.emulate_media(color_scheme="light")
    shared.set_viewport_size({"width": 1400, "height": 900})
    shared.select_option("#run-choice", "dpo-a")
    shared.select_option("#curves-runs", "method")
    shared.evaluate("window.scrollTo(0, 0)")
    yield shared
    assert shared.messages == []


@pytest.fixture
def fresh(open_page: Open, whole: Path) -> Iterator[Any]:
    """The report in a window of its own."""
    page = open_page(whole)
    yield page
    page.context.close()
    assert page.messages == []


# Where a run's large mark is on the screen, or the small one of a step; [x, y].
PLACE = """([name, step]) => {
    const marks = [...document.querySelectorAll("#frontier .mark")].filter((mark) => mark.dataset.run === name);
    const mark = marks.find((each) => (step ? each.dataset.step === String(step) : !each.dataset.step));
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
}"""


def place(page: Any, name: str, step: int | None = None) -> tuple[float, float]:
    page.locator("#frontier").scroll_into_view_if_needed()
    x, y = page.evaluate(PLACE, [name, step])
    return x, y


def until(page: Any, expression: str) -> None:
    """Wait for an expression to be true; playwright's own way evaluates strings, which the page forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{expression} did not come true")


def hovered(page: Any, name: str, step: int | None = None) -> str:
    page.mouse.move(1, 1)
    page.mouse.move(*place(page, name, step))
    tip = page.locator("#frontier .tip")
    tip.wait_for()
    return tip.inner_text()


def column(page: Any, table: str, number: int) -> list[str]:
    return page.locator(f"#{table} tbody tr td:nth-child({number})").all_inner_texts()


def test_it_shows_world_methods_runs_and_commands(page: Any) -> None:
    header = page.locator("header").inner_text()
    for text in ("embedded", "lexicon", "30 test prompts × 2 samples", "0.500 [0.480, 0.520]", "0.470 [0.460, 0.480]"):
        assert text in header
    assert "diverged: none, this is a test" in header
    assert "left out /x/half: not finished" in header
    methods = page.locator("#methods tbody tr").all_inner_texts()
    assert len(methods) == 4  # and the optimum
    assert "0.61 to 0.72" in methods[0] and "[0.58, 0.77]" in methods[0]
    assert "0.600*" in methods[0] and "0.41 to 0.52" in methods[0]
    page.locator("#tests-box summary").click()
    assert page.locator("#tests tbody tr td").all_inner_texts() == [
        *["DPO", "PPO", "1", "−0.050", "[−0.090, −0.010]", "0.010", "0.020"]
    ]
    assert column(page, "runs", 10) == ["dpo-a", "dpo-b", "own-c", "gone"]
    page.get_by_text("'data.path=my films'").click()
    page.get_by_text("beta=1.0").click()
    assert "name: dpo-b" in page.locator("#commands pre").inner_text()
    assert page.locator("#commands pre .own").all_inner_texts() == ["name: dpo-b\n"]
    for plot in ("frontier", "histogram", "curve-0", "curve-1", "curve-2", "curve-3"):
        assert page.locator(f"#{plot} svg.chart").count() == 1, plot


def test_hover_says_what_a_point_is(page: Any) -> None:
    setting = hovered(page, "dpo-b")
    for text in ("DPO, β = 1", "seed 0", "dpo-b, step 20", "reward 0.700 [0.690, 0.710]", "KL 1.20 [1.15, 1.25]"):
        assert text in setting
    assert "efficiency 0.41 to 0.52" in setting
    page.mouse.move(1, 1)
    assert not page.locator("#frontier .tip").is_visible()
    checkpoint = hovered(page, "dpo-a", 10)
    for text in ("DPO, β = 0.1, seed 0", "dpo-a, step 10", "reward 0.660", "KL 1.60"):
        assert text in checkpoint


def test_click_shows_the_samples_of_its_run(page: Any) -> None:
    assert column(page, "samples", 3)[0] == "dpo-a after 0 fine"
    hovered(page, "dpo-b")  # a click is of the point that is hovered
    page.mouse.click(*place(page, "dpo-b"))
    until(page, "document.getElementById('run').getBoundingClientRect().top < 100")
    assert column(page, "samples", 3) == [f"dpo-b after {i} fine" for i in range(8)]
    assert column(page, "samples", 2)[3] == "before 3"
    assert [line.split()[0] for line in column(page, "samples", 5)][0] == "0.600"
    assert page.locator("#runs tr[aria-current=true]").get_attribute("data-run") == "dpo-b"
    assert "dpo-b" in page.locator("#run-facts").inner_text()


def ticks(page: Any, plot: str, axis: str) -> list[tuple[float, float]]:
    """The number and the place on the screen of every number at an axis."""
    script = """([plot, axis]) => [...document.querySelectorAll(`#${plot} .${axis}-tick`)].map((tick) => {
        const box = tick.getBoundingClientRect();
        return [tick.textContent, axis === "x" ? box.left + box.width / 2 : box.top + box.height / 2];
    })"""
    return [(float(text.replace("−", "-")), at) for text, at in page.evaluate(script, [plot, axis])]


@pytest.mark.parametrize("scale, measure", [("linear", float), ("log", math.log)])
def test_a_mark_is_where_the_axes_say(page: Any, scale: str, measure: Callable[[float], float]) -> None:
    page.click(f"[data-scale={scale}]")
    (left, x0), *_, (right, x1) = ticks(page, "frontier", "x")
    (low, y0), *_, (high, y1) = ticks(page, "frontier", "y")
    for name, kl, reward in (("dpo-b", 1.2, 0.7), ("dpo-a", 2.0, 0.8)):
        x, y = page.evaluate(PLACE, [name, None])
        share = (measure(kl) - measure(left)) / (measure(right) - measure(left))
        assert x == pytest.approx(x0 + share * (x1 - x0), abs=1)
        assert y == pytest.approx(y0 + (reward - low) / (high - low) * (y1 - y0), abs=1.5)
    page.click("[data-scale=linear]")


def test_dragging_zooms_and_two_clicks_show_all(page: Any) -> None:
    all_of_it = ticks(page, "frontier", "x")
    x, y = place(page, "dpo-b")
    page.mouse.move(x - 60, y - 50)
    page.mouse.down()
    page.mouse.move(x, y, steps=3)
    page.mouse.move(x + 60, y + 50, steps=3)
    page.mouse.up()
    zoomed = ticks(page, "frontier", "x")
    assert zoomed[0][0] > 0 and zoomed[-1][0] < 2 and zoomed != all_of_it
    assert place(page, "dpo-b")[0] != pytest.approx(x, abs=5)  # it is in the middle now
    page.locator("#frontier .tools button", has_text="show all").click()
    assert ticks(page, "frontier", "x") == all_of_it


def test_the_keyboard_goes_from_mark_to_mark(page: Any) -> None:
    page.locator("#frontier svg.chart").focus()
    texts = []
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        texts.append(page.locator("#frontier .tip").inner_text())
    assert any("every policy starts here" in text for text in texts) and len(set(texts)) > 1
    page.keyboard.press("Escape")
    assert not page.locator("#frontier .tip").is_visible()


def test_a_picture_can_be_saved(page: Any) -> None:
    with page.expect_download() as waiting:
        page.locator("#frontier .tools button", has_text="save").click()
    download = waiting.value
    assert download.suggested_filename == "frontier.svg"
    root = ElementTree.parse(download.path()).getroot()
    assert root.tag.endswith("svg") and len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20


def test_the_legend_switches_methods_off_and_on(page: Any) -> None:
    for key in ("DPO", "optimum", "grey", "best_of_n ground_truth", "learned"):
        button, drawn = page.locator(f'#legend [data-key="{key}"]'), page.locator(f'#frontier svg [data-key="{key}"]')
        before = drawn.count()
        assert before > 1
        button.click()
        assert drawn.count() == 0
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        assert drawn.count() == before


def test_the_optimum_is_seen_on_both_sides_of_best_of_n(page: Any) -> None:
    wide = """(key) => Math.max(...[...document.querySelectorAll(`#frontier .line[data-key='${key}']`)].map(
        (line) => +line.getAttribute("stroke-width")
    ))"""
    assert page.evaluate(wide, "optimum") > 2 * page.evaluate(wide, "best_of_n ground_truth")


def test_grey_is_explained_without_a_manual(page: Any) -> None:
    assert "the optimum is somewhere in the grey" in page.locator("#frontier svg.chart").text_content()
    note = page.locator("#grey-note").inner_text()
    assert "64 samples per prompt" in note and "2.2 nats" in note and "somewhere between the edges" in note


def test_settings_that_cover_one_another_are_counted(frontier: dict[str, Any], open_page: Open, tmp_path: Path) -> None:
    runs = [
        run_of(make_run(tmp_path, f"ppo-{target}"), "PPO", None, 0.8, 2.0) | dict(knob="target_kl", knob_value=target)
        for target in (3, 6, 9, 12)
    ]
    for number, run in enumerate(runs):
        run["kl"] += 0.004 * number
    points = [point_of(run, 20, run["kl"], run["reward"]) for run in runs]
    method = method_of("PPO", runs) | {"knob": "target_kl"}
    path = tmp_path / "report.html"
    report.write({**frontier, "methods": [method], "runs": runs, "points": points}, path)
    page = open_page(path)
    assert page.locator("#frontier .count").all_text_contents() == ["4 targets"]
    shown = hovered(page, "ppo-3")
    for text in ("PPO, target KL = 3", "PPO, target KL = 6", "PPO, target KL = 9", "PPO, target KL = 12"):
        assert text in shown
    page.context.close()
    assert page.messages == []


def test_runs_sort_by_their_headings(fresh: Any) -> None:
    page = fresh
    page.locator("#runs th button", has_text="reward").click()
    assert column(page, "runs", 4) == ["0.900", "0.800", "0.700", "0.600"]
    page.locator("#runs th button", has_text="reward").click()
    assert column(page, "runs", 10) == ["own-c", "dpo-b", "dpo-a", "gone"]
    page.locator("#runs th button", has_text="folder").click()
    assert column(page, "runs", 10) == ["dpo-a", "dpo-b", "gone", "own-c"]
    page.locator("#runs th button", has_text="setting").click()
    assert column(page, "runs", 10) == ["gone", "dpo-b", "dpo-a", "own-c"]  # without a knob: last
    page.locator("#runs tbody tr").nth(1).click()
    assert column(page, "samples", 3)[0] == "dpo-b after 0 fine"


def test_samples_turn_filter_and_sort(fresh: Any) -> None:
    page = fresh
    assert page.locator("#samples-page").inner_text() == "page 1 of 4"
    page.click("#samples-next")
    assert column(page, "samples", 1) == [f"prompt {i}" for i in range(8, 16)]
    page.click("#samples-next")
    page.click("#samples-next")
    assert column(page, "samples", 1) == [f"prompt {i}" for i in range(24, 30)]
    assert page.locator("#samples-next").is_disabled()
    page.locator("#samples th button", has_text="log-ratio").click()
    assert column(page, "samples", 6)[:2] == ["10.00", "9.00"]
    page.locator("#samples th button", has_text="log-ratio").click()
    assert column(page, "samples", 6)[:2] == ["−19.00", "−18.00"]
    page.locator("#samples th button", has_text="reward after").click()
    assert column(page, "samples", 1)[0] == "prompt 29"
    page.fill("#samples-filter", "AFTER 2")
    assert page.locator("#samples-count").inner_text() == "11 of 30 test prompts, one sample each"
    assert column(page, "samples", 1)[0] == "prompt 29"
    page.fill("#samples-filter", "nowhere")
    assert page.locator("#samples tbody").inner_text() == "no sample has this text"


def test_hostile_text_is_text(page: Any) -> None:
    page.select_option("#run-choice", "own-c")
    shown = column(page, "samples", 3)[0]
    assert shown.startswith('own-c after 0 </script><img src=x onerror="window.broken=1"><!-- & ␛[31mred␛[0m')
    assert "⟨U+202E⟩right⟨U+202C⟩ שלום 👩\u200d🚀 {{x}} ${x}" in shown
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert page.locator(f'#legend [data-key="{OWN}"]').inner_text() == OWN
    assert OWN in hovered(page, "own-c")
    assert page.locator("#methods b, #frontier b").count() == 0 and "<b>model</b>" in hovered(page, "own-c")


def test_missing_files_are_said_on_the_page(page: Any) -> None:
    page.select_option("#run-choice", "gone")
    missing = page.locator("#run-missing").inner_text()
    for name in ("samples.parquet", "metrics.jsonl", "config.yaml"):
        assert f"{name} is not in the run's folder" in missing
    assert page.locator("#samples tbody").inner_text() == "this run has no samples to show"
    assert "no rewards" in page.locator("#histogram").inner_text()
    assert "no train/loss" in page.locator("#curve-2").inner_text()
    page.click("#run-next")  # round to the first
    assert column(page, "samples", 3)[0] == "dpo-a after 0 fine"
    assert page.locator("#histogram svg.chart").count() == 1


def test_curves_show_the_runs_that_are_asked_for(page: Any) -> None:
    lines = page.locator("#curve-0 .line")
    assert lines.count() == 2  # both of DPO
    page.select_option("#curves-runs", "all")
    assert lines.count() == 3
    page.select_option("#curves-runs", "run")
    assert lines.count() == 1
    start, end = re.findall(r"[ML]([\d.]+) ([\d.]+)", lines.get_attribute("d"))  # from the reference on
    (low, y0), *_, (high, y1) = ticks(page, "curve-0", "y")
    per_pixel = (high - low) / (y0 - y1)
    assert (float(start[1]) - float(end[1])) * per_pixel == pytest.approx(0.7 - 0.5, abs=0.003)
    assert page.locator("#curve-name").inner_text() == "eval/length"


@pytest.mark.parametrize("width", [1400, 900, 390])
def test_it_fits_the_window(page: Any, width: int) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.set_viewport_size({"width": width, "height": 800})
    drawn = "+document.querySelector('#frontier svg.chart').getAttribute('width')"
    until(page, f"{drawn} <= {width} && {drawn} > 0.8 * {width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false; })")


def test_on_a_phone_a_tables_first_column_stays(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for table in ("methods", "runs"):
        first = page.locator(f"#{table} tbody tr:first-child > :first-child")
        before = first.bounding_box()
        scroll = "(id) => { const box = byId(id).parentElement; box.scrollLeft = 1000; return box.scrollLeft; }"
        moved = page.evaluate(scroll, table)
        assert moved > 100  # there is more than the window shows
        assert first.bounding_box() == before and before["width"] < 0.5 * 390
        assert first.evaluate("(cell) => getComputedStyle(cell).backgroundColor") != "rgba(0, 0, 0, 0)"  # it covers


def test_it_follows_light_and_dark(page: Any) -> None:
    ink = "document.querySelector('#frontier .x-tick').getAttribute('fill')"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    until(page, f"{ink} !== {light!r}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


@pytest.mark.parametrize("count", [0, 1])
def test_little_is_enough(frontier: dict[str, Any], open_page: Open, tmp_path: Path, count: int) -> None:
    """No optimum, no best-of-N, one point or none."""
    method = {**method_of("DPO", frontier["runs"][:1]), "score": None, "score_ci": None}
    method["settings"][0] |= {"efficiency": None}
    little = {
        **frontier,
        **{"optimum": None, "best_of_n": {}, "base": None, "tests": [], "skipped": [], "warnings": []},
        **{"methods": [method][:count], "runs": frontier["runs"][:count], "points": frontier["points"][:count]},
    }
    path = tmp_path / "report.html"
    report.write(little, path)
    page = open_page(path)
    assert page.locator("#methods tbody tr").count() == count
    assert page.locator("#run").is_visible() is bool(count)
    assert not page.locator("#tests-box").is_visible()
    page.context.close()
    assert page.messages == []


def test_a_run_that_diverged_does_not_stretch_the_axis(
    frontier: dict[str, Any], open_page: Open, tmp_path: Path
) -> None:
    far = {**frontier, "methods": json.loads(json.dumps(frontier["methods"]))}
    far["methods"][1]["diverged"] = ["gone"]
    far["points"] = [*frontier["points"], point_of(frontier["runs"][3], 15, 400.0, 0.3)]
    path = tmp_path / "report.html"
    report.write(far, path)
    page = open_page(path)
    assert 4 < ticks(page, "frontier", "x")[-1][0] < 12
    assert "1 checkpoint of diverged runs" in page.locator("#frontier-note").inner_text()
    assert column(page, "methods", 12)[1] == "1"
    assert "diverged" in column(page, "runs", 1)[3]
    page.context.close()
    assert page.messages == []


def test_one_seed_is_told_from_several_and_what_moves_a_run_is_shown(
    frontier: dict[str, Any], open_page: Open, tmp_path: Path
) -> None:
    part = {"sd": 0.5, "ci": [0.3, 1.2]}
    spread = {axis: {"prompts": part, "seed": part | {"sd": 3.25}, "reference": None} for axis in ("kl", "reward")}
    dpo = frontier["methods"][0]
    first, second = dpo["settings"]
    several = {"seeds": [0, 1, 2], "covers": "prompts, seeds", "spread": {"seeds": 3, "references": 1, **spread}}
    methods = [dpo | {"settings": [first | several, second], "covers": "prompts, seeds"}, *frontier["methods"][1:]]
    report.write(frontier | {"methods": methods}, tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    marks = page.locator("#frontier path.mark[stroke-width='1.8']")
    assert marks.count() == sum(len(method["settings"]) for method in methods) - 1
    assert {marks.nth(i).get_attribute("fill") for i in range(marks.count())} == {"#ffffff"}
    assert page.locator("#frontier path[stroke-dasharray='1.5 2']").count() == 2 * marks.count()
    assert "Hollow, with dotted bars: one or two seeds" in page.locator("#frontier-note").text_content()
    rows = page.locator("#spread tbody tr")
    assert rows.count() == 1
    assert "3.25" in rows.first.text_content() and "[0.30, 1.20]" in rows.first.text_content()
    assert page.locator("#settings tbody tr").first.text_content().count("prompts only") == 0
    assert "prompts only" in page.locator("#settings tbody tr").nth(1).text_content()
    assert page.messages == []
    if folder := os.environ.get("LOOK"):
        page.locator("#settings-box summary").click()
        page.locator("#spread-box summary").click()
        page.screenshot(path=f"{folder}/report.png", full_page=True)
