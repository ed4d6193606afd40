"""The figure that W&B shows: colours, intervals and curves are those of `frontier.json`."""

from typing import Any

import pytest

from imdb_rlhf.frontier.methods import styles
from imdb_rlhf.frontier.plotly_figure import figure

SETTING: dict[str, Any] = {"knob_value": 0.5, "seeds": [0, 1, 2], "runs": ["a"], "efficiency": [0.5, 0.5]}
SETTING |= {"covers": "prompts, seeds", "references": 1}
SETTING |= {"kl": 2.0, "kl_ci": [1.5, 2.75], "reward": 0.75, "reward_ci": [0.625, 0.875]}
POINT: dict[str, Any] = {
    "run": "a<b>",
    "step": 4,
    "kl": 1.0,
    "kl_ci": [0.5, 1.5],
    "reward": 0.6,
    "reward_ci": [0.5, 0.7],
}
FRONTIER: dict[str, Any] = {
    "world": {"reward": "lexicon"},
    "reference": {"reward": 0.5},
    "score_kl": 5.0,
    "base": None,
    "methods": [
        {"name": "DPO", "knob": "beta", "settings": [SETTING], "diverged": []},
        {
            "name": "PPO",
            "knob": "target_kl",
            "settings": [SETTING | {"seeds": [3], "covers": "prompts"}],
            "diverged": ["wild"],
        },
    ],
    "points": [
        POINT | {"method": "DPO"},
        POINT | {"method": "PPO", "efficiency": [0.25, 0.5]},
        POINT | {"method": "PPO", "run": "wild", "kl": 400.0, "kl_ci": [390.0, 410.0]},
    ],
    "optimum": {
        "kl": [0.0, 1.0, 2.0],
        "trusted_kl": 1.5,
        "cap": 1.0,
        "lower": [0.5, 0.7, 0.8],
        "upper": [0.5, 0.75, 0.9],
        "lower_ci": [[0.4, 0.6, 0.7], [0.6, 0.8, 0.9]],
        "upper_ci": [[0.4, 0.65, 0.8], [0.6, 0.85, 1.0]],
        "learned": {"kl": [0.5, 1.0], "reward": [0.6, 0.65], "reward_ci": [[0.55, 0.6], [0.65, 0.7]]},
    },
    "best_of_n": {
        "ground_truth": {
            "n": [1, 2, 3, 4],
            "kl": [0.0, 0.19, 0.43, 0.64],
            "reward": [0.5, 0.6, 0.65, 0.7],
            "reward_ci": [[0.4, 0.5, 0.55, 0.6], [0.6, 0.7, 0.75, 0.8]],
        }
    },
}


def traces(frontier: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [trace for trace in figure(frontier)["data"] if trace.get("name") == name]


@pytest.mark.parametrize("name", ["DPO", "PPO"])
def test_a_method_is_drawn_in_its_colour_with_intervals(name: str) -> None:
    checkpoints, line, reported = traces(FRONTIER, name)
    style = styles(["DPO", "PPO"])[name]
    for trace in (checkpoints, reported):
        assert (trace["marker"]["color"], trace["marker"]["symbol"].removesuffix("-open")) == (
            style.colour,
            style.symbol,
        )
    assert (line["x"], line["line"]["color"], line["showlegend"]) == (reported["x"], style.colour, False)
    assert (reported["x"], reported["y"]) == ([2.0], [0.75])
    assert (reported["error_x"]["array"], reported["error_x"]["arrayminus"]) == ([0.75], [0.5])
    assert (reported["error_y"]["array"], reported["error_y"]["arrayminus"]) == ([0.125], [0.125])
    assert len(checkpoints["x"]) == (1 if name == "DPO" else 2)
    assert "a&lt;b&gt;, step 4" in checkpoints["text"][0]
    assert ("beta = 0.5, 3 seeds" if name == "DPO" else "target_kl = 0.5, seed 3") in reported["text"][0]


def test_one_seed_is_told_from_three() -> None:
    three, one = (traces(FRONTIER, name)[-1] for name in ("DPO", "PPO"))
    assert not three["marker"]["symbol"].endswith("-open") and one["marker"]["symbol"].endswith("-open")
    assert one["error_x"]["thickness"] < three["error_x"]["thickness"]
    assert "intervals over prompts, seeds<br>" in three["text"][0]
    assert "intervals over prompts only" in one["text"][0]
    assert "prompts only" in figure(FRONTIER)["layout"]["legend"]["title"]["text"]
    both = FRONTIER | {"methods": [FRONTIER["methods"][0] | {"settings": [SETTING, SETTING | {"covers": "prompts"}]}]}
    symbols = [trace["marker"]["symbol"] for trace in traces(both, "DPO")[2:]]
    assert symbols == [style := styles(["DPO"])["DPO"].symbol, f"{style}-open"]
    assert [trace["showlegend"] for trace in traces(both, "DPO")[2:]] == [True, False]


def test_two_methods_have_two_colours() -> None:
    assert len({traces(FRONTIER, name)[0]["marker"]["color"] for name in ("DPO", "PPO")}) == 2


def test_bounds_of_the_optimum_and_best_of_n() -> None:
    optimum = FRONTIER["optimum"]
    lower, upper = traces(FRONTIER, "optimum, lower to upper bound")
    assert (lower["y"], upper["y"]) == (optimum["lower"], optimum["upper"])
    assert [("too few samples" in text) for text in lower["text"]] == [False, False, True]
    (learned,) = traces(FRONTIER, "optimum of the learned reward, its true reward")
    assert learned["y"] == [0.6, 0.65]
    (best,) = traces(FRONTIER, "best-of-N by the true reward")
    assert (best["x"], best["y"]) == ([0.0, 0.19, 0.43, 0.64], [0.5, 0.6, 0.65, 0.7])
    assert best["marker"]["size"] == [5, 5, 0, 5]  # powers of 2
    bands = [(trace["y"]) for trace in figure(FRONTIER)["data"] if trace.get("fill") == "tonexty"]
    assert bands == [
        optimum["upper_ci"][1],
        optimum["upper"],
        [0.65, 0.7],
        [0.6, 0.7, 0.75, 0.8],
    ]


def test_a_diverged_run_does_not_squash_the_others() -> None:
    assert figure(FRONTIER)["layout"]["xaxis"]["range"][1] == pytest.approx(1.06 * 2 * 5.0)


def test_one_without_a_reservoir_has_methods_alone() -> None:
    bare = FRONTIER | {"optimum": None, "best_of_n": None, "base": POINT | {"kl": 0.25}}
    assert {trace["name"] for trace in figure(bare)["data"]} == {"DPO", "PPO", "before SFT"}


def test_plotly_takes_it() -> None:
    from plotly.graph_objects import Figure

    assert len(Figure(figure(FRONTIER)).data) == len(figure(FRONTIER)["data"])
