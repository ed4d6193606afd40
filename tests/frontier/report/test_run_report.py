"""A run's own report: every kind of run has one, with what its folder and its artifacts hold."""

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imdb_rlhf.artifacts.files import write_manifest
from imdb_rlhf.frontier.report import run_report

Write = Callable[..., Path]
Open = Callable[..., Any]
PROMPTS = 12
REFERENCE = np.full((PROMPTS, 2), 0.5)
RESERVOIR = np.random.default_rng(0).uniform(0, 1, (PROMPTS, 32))


def points(*of: tuple[float, float]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {5 * (i + 1): (np.full((PROMPTS, 2), r), np.full((PROMPTS, 2), kl)) for i, (kl, r) in enumerate(of)}


def trained(write_run: Write, **more: Any) -> Path:
    folder = write_run("dpo", ("beta", 0.1), points((0.5, 0.6), (1.0, 0.7), (2.0, 0.8)), reference=REFERENCE, **more)
    rows = [{"stage": "dpo", "step": step, "train/loss": 1 / step} for step in range(1, 16)]
    rows += [{"stage": "dpo", "step": s, "eval/reward": r, "eval/kl": k} for s, k, r in ((5, 0.5, 0.6), (15, 2.0, 0.8))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder)
    return folder


def data_in(page: Path) -> Any:
    class Finder(HTMLParser):
        inside, text = False, ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("id", "data") in attrs

        def handle_data(self, data: str) -> None:
            self.text += data if self.inside else ""

    finder = Finder(convert_charrefs=False)
    finder.feed(page.read_text(encoding="utf-8"))
    return json.loads(finder.text)


def reward_model(folder: Path) -> Path:
    """A finished run of `algo=reward_model`: no evaluations, no samples."""
    for name in ("evaluations.parquet", "samples.parquet"):
        (folder / name).unlink()
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("reward", "kl"):
        del summary[key]
    bins = [
        {"lower": p, "upper": p + 0.5, "count": n, "predicted": p + 0.2, "observed": p} for p, n in ((0, 3), (0.5, 0))
    ]
    summary |= {"algo": "reward_model", "knob": None, "accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "reliability": bins}
    (folder / "summary.json").write_text(json.dumps(summary))
    scores = pd.DataFrame({"reward_logit": np.linspace(-3, 3, 1500), "score": np.linspace(-1, 1, 1500)})
    scores.to_parquet(folder / "scores.parquet", index=False)
    write_manifest(folder)
    return folder


# --- without a browser


def test_it_is_in_the_runs_folder_and_the_same_each_time(write_run: Write) -> None:
    folder = trained(write_run)
    path = run_report.write(folder)
    assert path == folder / "report.html"
    first = path.read_bytes()
    assert run_report.write(folder).read_bytes() == first and len(first) < 300_000


def test_it_holds_the_run_as_the_console_tells_it(write_run: Write) -> None:
    data = data_in(run_report.write(trained(write_run)))
    assert data["facts"] == [["reward", "0.800"], ["KL (nats)", "2.000"], ["time", "1.0 s"]]
    assert [point["kl"] for point in data["frontier"]["points"]] == [0.5, 1.0, 2.0]
    assert data["frontier"]["optimum"] is None and data["frontier"]["warnings"] == []
    assert data["links"] == ["summary.json", "metrics.jsonl", "evaluations.parquet", "samples.parquet", "config.yaml"]
    assert data["runs"][0]["command"] == "python train.py algo=dpo" and not data["runs"][0]["missing"]


def test_best_of_n_and_optimum_are_those_of_its_reservoir(write_run: Write) -> None:
    frontier = data_in(run_report.write(trained(write_run, reservoir=RESERVOIR)))["frontier"]
    assert frontier["optimum"]["samples"] == 32
    curve = frontier["best_of_n"]["ground_truth"]
    best = float(RESERVOIR.max(1).mean())  # of all 32: no estimate, but the largest
    assert curve["n"][-1] == 32 and curve["reward"][-1] == pytest.approx(best)


def test_best_of_n_is_where_its_summary_says(write_run: Write) -> None:
    n = {
        "variant": "ground_truth",
        "kl": math.log(8) - 7 / 8,
        "reward": 0.85,
        "kl_ci": [1.2, 1.2],
        "reward_ci": [0.8, 0.9],
    }
    draws = {0: (np.full((PROMPTS, 2), 0.85), np.full((PROMPTS, 2), n["kl"]))}
    folder = write_run("best_of_n", ("n", 8), draws, reference=REFERENCE, reservoir=RESERVOIR, summary=n)
    (point,) = data_in(run_report.write(folder))["frontier"]["points"]
    assert (point["kl"], point["reward"], point["last"]) == (n["kl"], 0.85, True)


def test_a_reward_model_has_its_account_and_no_plane(write_run: Write) -> None:
    data = data_in(run_report.write(reward_model(trained(write_run))))
    assert data["frontier"]["points"] == [] and not data["runs"][0]["missing"]
    assert data["facts"][0] == ["accuracy", "0.800 [0.700, 0.900] of pairs"] or data["facts"][0][1].startswith("0.800")
    assert [row["count"] for row in data["account"]["reliability"]] == [3, 0]
    assert len(data["account"]["scores"][0]) == len(data["account"]["scores"][1]) == 500  # every third


def test_what_cannot_be_measured_is_said(write_run: Write) -> None:
    folder = trained(write_run, reservoir=RESERVOIR)
    (table,) = (folder.parents[1] / "artifacts" / "reservoir").glob("*/reservoir.parquet")
    table.write_bytes(b"something else")
    data = data_in(run_report.write(folder))
    assert data["frontier"]["points"] == []
    (why,) = data["frontier"]["warnings"]
    assert why.startswith("reward over KL is not shown: ") and "changed after it was made" in why


# --- in a browser


@pytest.fixture
def seen(open_page: Open) -> Any:
    """Opens a page; by the end of the test there is no complaint and no request."""
    pages = []

    def see(path: Path) -> Any:
        pages.append(open_page(path))
        return pages[-1]

    yield see
    for page in pages:
        page.context.close()
        assert page.messages == []


def test_a_trained_run_shows_plane_training_samples_and_settings(write_run: Write, seen: Open) -> None:
    folder = trained(write_run, reservoir=RESERVOIR)
    page = seen(run_report.write(folder))
    assert page.locator("h1").inner_text().strip() == page.title() == "DPO, β = 0.1, seed 0"
    assert page.locator("#results").inner_text().split("\n")[:2] == ["reward", "0.800"]
    for chart in ("frontier", "curve-0", "curve-1", "curve-2", "histogram"):
        assert page.locator(f"#{chart} svg.chart").count() == 1, chart
    assert page.locator("#frontier .mark[data-run]").count() == 3 + 1  # each checkpoint, and the setting
    assert page.locator("#frontier .line[data-key='best_of_n ground_truth']").count() == 1
    assert "the optimum needs" in page.locator("#frontier-note").inner_text()
    assert page.locator("#samples tbody tr").count() == 8
    assert page.locator("#command").inner_text() == "python train.py algo=dpo"
    page.locator("summary").click()
    assert "beta: 0.1" in page.locator("#config").inner_text()
    assert page.locator("#files a").first.get_attribute("href") == "summary.json"
    assert not page.locator("#account").is_visible()


def test_a_reward_model_shows_predicted_and_true(write_run: Write, seen: Open) -> None:
    page = seen(run_report.write(reward_model(trained(write_run))))
    assert not page.locator("#plane").is_visible() and not page.locator("#texts").is_visible()
    assert page.locator("#reliability .mark").count() == 1  # the other has no pairs
    assert page.locator("#scores .mark").count() == 500


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_window(write_run: Write, seen: Open, width: int) -> None:
    page = seen(run_report.write(trained(write_run, reservoir=RESERVOIR)))
    page.set_viewport_size({"width": width, "height": 844})
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
