"""Frontier: points of arrays, measurements and runs; its table, its picture, what a budget buys."""

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imdb_rlhf import ConfigError, Frontier
from tests.api.worlds import models, world


def axis() -> Any:
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.subplots()


def legend_of(ax: Any) -> list[Any]:
    return list(ax.get_legend().get_texts())


def example() -> Frontier:
    return Frontier(
        [1.0, 2.0, 4.0, 1.0],
        [0.6, 0.9, 0.8, 0.7],
        method=["A", "A", "A", "B"],
        knob="beta",
        knob_value=[3, 2, 1, 1],
        kl_ci=[[0.9, 1.1], [1.8, 2.2], [3.9, 4.1], [0.9, 1.1]],
        reward_ci=[[0.5, 0.7], [0.8, 1.0], [0.7, 0.9], [0.6, 0.8]],
        reference=0.5,
    )


def test_its_table() -> None:
    frame = example().to_frame()
    assert frame["kl"].tolist() == [1, 2, 4, 1] and frame["reward_high"].tolist() == [0.7, 1.0, 0.9, 0.8]
    frame["kl"] = 0.0
    assert example().to_frame()["kl"].max() == 4


def test_what_a_budget_buys() -> None:
    """By hand: A's hull is (0, 0.5), (2, 0.9): (1, 0.6) is below that line, and (4, 0.8) earns less; B's is flat."""
    table: Any = example().reward_at([0, 1, 2, 4])
    assert table.loc["A"].tolist() == pytest.approx([0.5, 0.7, 0.9, 0.9])
    assert table.loc["B"].tolist() == pytest.approx([0.5, 0.7, 0.7, 0.7])


@pytest.mark.parametrize("log", [False, True])
def test_its_picture(log: bool) -> None:
    ax = axis()
    assert example().plot(ax, log=log) is ax
    lines = {line.get_label(): line for line in ax.get_lines()}
    shown = [tuple(np.ravel(line.get_xdata())) for line in ax.get_lines() if line.get_linestyle() == "-"]
    assert (1.0, 2.0, 4.0) in shown
    names = {text.get_text() for text in legend_of(ax)}
    assert names == ({"A", "B"} if log else {"A", "B", "reference"})
    assert ("reference" in lines) is not log
    assert ax.get_xlabel() == "KL to the reference (nats)" and (ax.get_xscale() == "log") is log


def test_measurements_and_sums() -> None:
    lm, reference = models()
    one = world(reference)
    policy, same = one.measure(lm), one.measure(reference)
    made = Frontier.from_measurements({"policy": policy, "reference": same})
    frame = made.to_frame()
    assert frame["kl"].tolist() == [policy.kl, 0.0] and frame["kl_low"].tolist() == [policy.kl_ci[0], 0.0]
    both = made + example()
    assert len(both.to_frame()) == 6 and both.reference == made.reference
    assert both.plot(axis()).get_ylabel() == "reward"
    with pytest.raises(ConfigError, match="several references"):
        Frontier.from_measurements({"one": policy, "other": world(lm).measure(lm)})


def test_runs(write_run: Any) -> None:
    rewards = np.full((6, 4), 0.5)
    low, high = (np.full((6, 2), value) for value in (0.6, 0.9))
    reservoir = np.random.default_rng(0).random((6, 32))
    write_run("best_of_n", ("n", 4.0), {0: (rewards[:, :2], np.full((6, 2), 0.6))}, reservoir=reservoir)
    folder = write_run("dpo", ("beta", 0.1), {5: (low, low), 10: (high, 2 * high)})
    found = Frontier.from_runs(folder.parent)
    assert found.to_frame()[["method", "step", "last"]].values.tolist() == [["DPO", 5, False], ["DPO", 10, True]]
    assert found.content is not None and found.optimum is not None and found.best_of_n is not None
    at_budget = {row["kl"]: row["reward"] for row in found.content["methods"][0]["at_budget"]}
    bought: Any = found.reward_at([0.5, 2.0])
    assert bought.loc["DPO"].tolist() == pytest.approx([at_budget[0.5], at_budget[2.0]])
    names = {text.get_text() for text in legend_of(found.plot(axis()))}
    assert {"DPO", "best-of-N", "reference"} <= names and any(name.startswith("optimum") for name in names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Frontier([], []), r"kl has shape \(0,\)"),
        (lambda: Frontier([1.0], [1.0, 2.0]), "kl has 1 points and reward 2"),
        (lambda: Frontier([1.0], [np.nan]), r"reward\[0\] is nan"),
        (lambda: Frontier([1.0], [1.0], method=["a", "b"]), "method has 2 names for 1 points"),
        (lambda: Frontier([1.0], [1.0], kl_ci=[0.9, 1.1]), "kl_ci has shape"),
        (lambda: Frontier([1.0], [1.0], kl_ci=[[1.1, 0.9]]), "low and high, in that order"),
        (lambda: Frontier([1.0], [1.0]).reward_at([1.0]), "reward of the reference is not known"),
        (lambda: Frontier.from_runs(), "no folder is given"),
        (lambda: Frontier.from_runs("/nowhere"), "there is no folder"),
        (lambda: Frontier.from_measurements({}), "measurements is empty"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
