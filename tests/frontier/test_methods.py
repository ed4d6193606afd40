"""Methods keep their colour from picture to picture, and no two look alike in one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.markers import MarkerStyle
from plotly.validator_cache import ValidatorCache

from imdb_rlhf.config.keys import _keys_below
from imdb_rlhf.config.run import NOT_IN_HASH
from imdb_rlhf.frontier.finished import FinishedRun, read
from imdb_rlhf.frontier.methods import MARKERS, NO_METHOD, PALETTE, method_names, style, styles
from imdb_rlhf.runs.kinds import palette_places
from tests.command import run_of

Write = Callable[..., Path]
FLAT = {5: (np.full((3, 2), 0.7), np.full((3, 2), 1.0))}
NAMES = ("DPO", "PPO", "Unlikelihood", "PPO-GT (TRL)", "PPO-GT", "Preferred-FT", "SFT", "DPO (ipo)")


def test_the_colours_are_okabe_and_itos() -> None:
    rgb = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66)]
    assert [tuple(bytes.fromhex(each[1:])) for each in PALETTE] == rgb


def test_the_methods_of_the_paper_differ() -> None:
    assert len({style(name).colour for name in NAMES[:6]}) == 6
    assert len({style(name) for name in NAMES}) == len(NAMES)
    assert style(NAMES[3]) == style(3)


def test_no_two_methods_with_a_place_look_alike() -> None:
    places = palette_places()
    assert {"KTO", "SimPO", "ORPO", "CPO", "EXO", "BoN-SFT", "BoN-SFT-GT", "DPO (forward_kl)"} <= places.keys()
    assert len({style(name) for name in places}) == len(places)


def test_markers_are_known_to_matplotlib_and_plotly() -> None:
    symbols = ValidatorCache.get_validator("scatter.marker", "symbol")
    for marker, symbol in MARKERS:
        assert MarkerStyle(marker).get_marker() == marker
        assert symbols.validate_coerce(symbol) == symbol


def test_a_known_method_keeps_its_style_whoever_stands_beside_it() -> None:
    assert styles(["mine", "PPO", "DPO"])["PPO"] == style("PPO")
    assert list(styles(["mine", "PPO", "DPO"])) == ["mine", "PPO", "DPO"]


def test_what_no_number_depends_on_makes_no_method() -> None:
    run = run_of("hub.push=me/x")
    keys = {key for key, _ in _keys_below(type(run), "") if key.partition(".")[0] in NOT_IN_HASH}
    keys -= {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}  # sections
    assert {"hub.push", "logger.project", "plan"} <= keys
    assert not {key for key in keys if not NO_METHOD.match(key)}


@pytest.mark.parametrize("count", [1, 5, 40])
def test_other_methods_get_styles_of_their_own(count: int) -> None:
    names = [*NAMES[:2], *(f"model {number}" for number in range(count))]
    chosen = styles(names)
    assert len(set(chosen.values())) == len(names)
    assert chosen == styles(names)
    if count == 5:
        assert len({each.colour for each in chosen.values()}) == 7


def test_more_methods_than_styles_are_drawn_all_the_same() -> None:
    names = [f"model {number}" for number in range(60)]
    assert len(set(styles(names).values())) == len(PALETTE) * len(MARKERS)


def test_the_first_of_two_kinds_of_a_method_has_its_style() -> None:
    chosen = styles(["DPO (labels=deterministic)", "DPO (labels=bradley_terry)", "PPO"])
    assert chosen["DPO (labels=deterministic)"] == style("DPO")
    assert len({each.colour for each in chosen.values()}) == 3
    assert styles(["DPO (x=1)", "DPO"])["DPO"] == style("DPO")


# --- names


def runs_of(paths: list[Path]) -> list[FinishedRun]:
    runs, skipped = read(paths)
    assert not skipped
    return runs


def names(runs: list[FinishedRun]) -> list[str]:
    return list(method_names(runs).values())


def test_names_of_methods(write_run: Write) -> None:
    preset = {"ppo.preset": "trl_2023", "ppo.reward": "ground_truth"}
    runs = runs_of(
        [
            write_run("dpo", ("beta", 0.1), FLAT),
            write_run("dpo", ("beta", 1), FLAT, seed=3),
            write_run("dpo", ("beta", 2), FLAT, summary={"variant": "ipo"}),
            write_run("unlikelihood", ("alpha", 1), FLAT),
            write_run("preferred_ft", None, FLAT),
            write_run("ppo", ("target_kl", 1), FLAT),
            write_run("ppo", ("target_kl", 2), FLAT, more={"ppo.reward": "ground_truth"}),
            write_run("ppo", ("target_kl", 3), FLAT, more=preset),
            write_run("own_model", None, FLAT, summary={"variant": "my-model"}),
        ]
    )
    assert names(runs) == [
        "DPO",
        "DPO",
        "DPO (ipo)",
        "Unlikelihood",
        "Preferred-FT",
        "PPO",
        "PPO-GT",
        "PPO-GT (TRL)",
        "my-model",
    ]


def test_a_key_that_differs_makes_two_methods(write_run: Write) -> None:
    labels = {"pairs.labels": "bradley_terry", "evaluation.every": 7, "trainer.threads": 1}
    runs = runs_of([write_run("dpo", ("beta", 0.1), FLAT), write_run("dpo", ("beta", 1), FLAT, more=labels)])
    assert names(runs) == ["DPO (labels=deterministic)", "DPO (labels=bradley_terry)"]


def test_a_key_that_ends_as_the_knob_does_makes_two_methods(write_run: Write) -> None:
    decays = [{"policy": {"optim": {"alpha": decay}}} for decay in (0.9, 0.99)]
    runs = runs_of([write_run("unlikelihood", ("alpha", 1), FLAT, more=m, seed=s) for s, m in enumerate(decays)])
    assert names(runs) == ["Unlikelihood (alpha=0.9)", "Unlikelihood (alpha=0.99)"]


def test_a_knob_in_the_section_of_its_algorithm_makes_none(write_run: Write) -> None:
    fixed = [{"ppo.kl_coefficient": value} for value in (0.1, 0.2)]
    runs = [
        write_run("ppo", None, FLAT, more=more, summary={"knob": {"name": "kl_coefficient", "value": 0.1}}, seed=seed)
        for seed, more in enumerate(fixed)
    ]
    assert names(runs_of(runs)) == ["PPO (fixed)", "PPO (fixed)"]


@pytest.mark.parametrize("key", ["sft.path", "data.path", "model.path", "reward.function"])
def test_a_place_makes_no_method(write_run: Write, key: str) -> None:
    runs = runs_of([write_run("dpo", ("beta", 1), FLAT, more={key: place}, seed=len(place)) for place in ("a", "bb")])
    assert names(runs) == ["DPO", "DPO"]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([("a.parquet", "1" * 64), ("b.parquet", "1" * 64)], ["DPO", "DPO"]),
        ([("a.parquet", "1" * 64), (None, None)], ["DPO (preferences=a.parquet)", "DPO (preferences=None)"]),
        (
            [("a.parquet", "1" * 64), ("b.parquet", "2" * 64), ("c.parquet", "1" * 64)],
            ["DPO (preferences=a.parquet)", "DPO (preferences=b.parquet)", "DPO (preferences=a.parquet)"],
        ),
        (
            [("a.parquet", "1" * 64), ("a.parquet", "2" * 64)],
            ["DPO (preferences=a.parquet@11111111)", "DPO (preferences=a.parquet@22222222)"],
        ),
    ],
)
def test_a_preference_file_is_what_it_holds(
    write_run: Write, files: list[tuple[str | None, str | None]], wanted: list[str]
) -> None:
    runs = [
        write_run("dpo", ("beta", 1), FLAT, more={"data.preferences": place}, seed=at, summary={"preferences": content})
        if content
        else write_run("dpo", ("beta", 1), FLAT, more={"data.preferences": None}, seed=at)
        for at, (place, content) in enumerate(files)
    ]
    assert names(runs_of(runs)) == wanted


def test_a_model_that_was_named_is_one_with_the_model_whose_folder_has_that_name(write_run: Write) -> None:
    more = [{"own_model": {"path": "a/mine", "name": None}}, {"own_model": {"path": "b", "name": "mine"}}]
    runs = [write_run("own_model", None, FLAT, more=m, seed=s, summary={"variant": "mine"}) for s, m in enumerate(more)]
    assert names(runs_of(runs)) == ["mine", "mine"]


def test_runs_from_before_the_content_was_recorded_are_told_apart_by_place(write_run: Write) -> None:
    old = [
        write_run("dpo", ("beta", 1), FLAT, more={"data.preferences": place}, seed=len(place)) for place in ("a", "bb")
    ]
    new = write_run("dpo", ("beta", 1), FLAT, more={"data.preferences": "a"}, seed=5, summary={"preferences": "1" * 64})
    assert names(runs_of([*old, new])) == ["DPO (preferences=a)", "DPO (preferences=bb)", "DPO (preferences=a)"]
