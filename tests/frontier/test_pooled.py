"""Runs from several references: each has its own KL, reward and optimum, and the reference is resampled first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from imdb_rlhf.errors import ConfigError
from imdb_rlhf.frontier import comparable
from imdb_rlhf.frontier.draw import describe, draw
from imdb_rlhf.frontier.finished import read
from imdb_rlhf.frontier.measure import measure

Write = Callable[..., Path]
PROMPTS = 30
STARTS = (0.40, 0.50, 0.60)  # the references' rewards
GAINS = ((0.30, 0.32), (0.26, 0.30), (0.30, 0.34))  # of the two seeds of each


def level(mean: float) -> np.ndarray:
    return np.full((PROMPTS, 2), mean)


def reservoir(share: float) -> np.ndarray:
    """Of 100 samples of each prompt so many have reward 1, the others 0."""
    return np.tile((np.arange(100) < 100 * share).astype(float), (PROMPTS, 1))


@pytest.fixture
def runs(write_run: Write) -> list[Path]:
    """Two seeds of DPO from each of three references."""
    return [
        write_run(
            "dpo",
            ("beta", 0.1),
            {5: (level(start + gain), level(1.0 + place))},
            seed=seed,
            reference=level(start),
            reservoir=reservoir(start),
            more={"sft.seed": place},
            world=f"sft{place}",
        )
        for place, start in enumerate(STARTS)
        for seed, gain in enumerate(GAINS[place])
    ]


def frontier_of(paths: list[Path]) -> dict[str, Any]:
    found, skipped = read(paths)
    return measure(found, skipped)


def t_interval(means: list[float]) -> list[float]:
    return list(scipy.stats.t.interval(0.95, len(means) - 1, np.mean(means), scipy.stats.sem(means)))


def test_a_setting_is_the_mean_over_references_and_its_interval_covers_them(runs: list[Path]) -> None:
    frontier = frontier_of(runs)
    (method,) = frontier["methods"]
    (setting,) = method["settings"]
    means = [start + float(np.mean(gains)) for start, gains in zip(STARTS, GAINS, strict=True)]
    assert setting["reward"] == pytest.approx(np.mean(means))
    assert setting["reward_ci"] == pytest.approx(t_interval(means))  # no prompt differs
    assert setting["kl_ci"] == pytest.approx(t_interval([1.0, 2.0, 3.0]))
    assert setting["covers"] == method["covers"] == "prompts, seeds, references"
    assert (setting["references"], len(setting["runs"]), method["seeds"]) == (3, 6, [0, 1])
    assert frontier["reference"]["reward"] == pytest.approx(0.5)
    assert frontier["reference"]["reward_ci"] == pytest.approx(t_interval(list(STARTS)))
    assert [point["reference"] for point in frontier["points"]] == [0, 0, 1, 1, 2, 2]


def test_the_variance_is_split_by_hand(runs: list[Path]) -> None:
    spread = frontier_of(runs)["methods"][0]["settings"][0]["spread"]
    rewards = np.array([[start + gain for gain in gains] for start, gains in zip(STARTS, GAINS, strict=True)])
    within = rewards.var(axis=1, ddof=1).mean()
    assert spread["reward"]["seed"]["sd"] == pytest.approx(np.sqrt(within))
    assert spread["reward"]["reference"]["sd"] == pytest.approx(np.sqrt(rewards.mean(1).var(ddof=1) - within / 2))
    assert spread["reward"]["prompts"]["sd"] == pytest.approx(0, abs=1e-12)
    assert spread["kl"]["reference"]["sd"] == pytest.approx(1)


def test_each_reference_has_its_own_optimum(runs: list[Path]) -> None:
    pooled = frontier_of(runs)
    alone = [frontier_of([run for run in runs if run.name.endswith(f"sft{place}")]) for place in range(3)]
    at = pooled["optimum"]["kl"].index(0.25)
    assert pooled["optimum"]["upper"][at] == pytest.approx(
        np.mean([each["optimum"]["upper"][each["optimum"]["kl"].index(0.25)] for each in alone]), abs=1e-9
    )
    n = 3  # the best of four
    assert pooled["best_of_n"]["ground_truth"]["reward"][n] == pytest.approx(
        np.mean([each["best_of_n"]["ground_truth"]["reward"][n] for each in alone])
    )
    # the pool's score and efficiency are the means of the references'
    for number in ("low", "high"):
        i = number == "high"
        settings = [each["methods"][0]["settings"][0]["efficiency"][i] for each in alone]
        assert pooled["methods"][0]["settings"][0]["efficiency"][i] == pytest.approx(np.mean(settings), abs=1e-3)
        scores = [each["methods"][0]["score"][i] for each in alone]
        assert pooled["methods"][0]["score"][i] == pytest.approx(np.mean(scores), abs=1e-3)


def test_methods_are_paired_over_references(write_run: Write) -> None:
    # the references' rewards are far apart; from each of them the other method has 0.05, 0.06 and 0.07 less
    runs = []
    for place, start in enumerate(STARTS):
        more = {"reference": level(start), "more": {"sft.seed": place}, "world": f"sft{place}"}
        runs.append(write_run("dpo", ("beta", 0.1), {5: (level(start + 0.3), level(2.0))}, **more))
        less = start + 0.25 - 0.01 * place
        runs.append(write_run("unlikelihood", ("alpha", 1), {5: (level(less), level(2.0))}, **more))
    (test,) = frontier_of(runs)["tests"]
    assert (test["kl"], test["difference"]) == (2, pytest.approx(0.06))
    assert test["ci"] == pytest.approx(t_interval([0.05, 0.06, 0.07]))
    assert test["p"] == pytest.approx(scipy.stats.ttest_1samp([0.05, 0.06, 0.07], 0).pvalue)


def test_a_setting_that_a_reference_lacks_is_left_out(runs: list[Path], write_run: Write) -> None:
    more = {"reference": level(0.4), "more": {"sft.seed": 0}, "world": "sft0"}
    runs.append(write_run("dpo", ("beta", 1), {5: (level(0.6), level(0.5))}, **more))
    frontier = frontier_of(runs)
    assert [each["knob_value"] for each in frontier["methods"][0]["settings"]] == [0.1]
    assert any("not every one of the 3 references" in item["why"] for item in frontier["skipped"])


def test_worlds_that_are_references_of_one_kind_have_a_pool(runs: list[Path]) -> None:
    worlds = comparable.worlds(runs)
    assert list(worlds) == ["seed=0", "seed=1", "seed=2", ""]
    assert worlds[""] == runs
    assert worlds["seed=1"] == runs[2:4]


def test_references_with_another_reward_are_no_pool(runs: list[Path], write_run: Write) -> None:
    other = write_run("dpo", ("beta", 0.1), {5: (level(0.7), level(1.0))}, more={"sft.seed": 7}, world="sft7")
    inputs = other.parent.parent / "artifacts" / "reference" / "sft7" / "inputs.json"
    content = json.loads(inputs.read_text())
    content["inputs"]["data"] = "other prompts"
    inputs.write_text(json.dumps(content))
    manifest = inputs.parent / "DONE"
    from imdb_rlhf.artifacts.files import write_manifest

    manifest.unlink()
    write_manifest(inputs.parent)
    assert "" not in comparable.worlds([*runs, other])
    with pytest.raises(ConfigError, match=r"differ in sft.seed \(0 and 7\), and their prompts, reward or sampling"):
        frontier_of([*runs, other])


def test_two_references_say_nothing_of_others(runs: list[Path]) -> None:
    setting = frontier_of(runs[:4])["methods"][0]["settings"][0]
    assert setting["covers"] == "prompts"
    assert setting["reward_ci"] == pytest.approx([setting["reward"]] * 2)


def test_the_pool_is_drawn_and_told(runs: list[Path], tmp_path: Path) -> None:
    frontier = draw(runs, tmp_path / "frontier")
    assert (tmp_path / "frontier" / "frontier.png").stat().st_size > 1000
    text = describe(frontier)
    assert "3 references, pooled" in text
    assert "over prompts, seeds, references" in text
    assert "reward: reference" in text
