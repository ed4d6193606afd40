"""The picture of where the nats go: every bar is as long as the KL, whatever is known of it."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from imdb_rlhf.frontier.figure import nats

NAMES = ("needed", "objective", "reward_model", "data", "optimisation")


def entry(method: str, value: float | None, kl: float, *parts: float | None) -> dict[str, Any]:
    listed = [{"name": name, "nats": part, "ci": None, "why": None} for name, part in zip(NAMES, parts, strict=True)]
    knob = None if value is None else "beta"
    return {"method": method, "knob": knob, "knob_value": value, "reward": 0.8, "kl": kl, "parts": listed}


def bars(figure: Figure, method: str) -> dict[str, Rectangle]:
    patches = {str(patch.get_gid()): patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)}
    return {gid.rpartition("-")[2]: patch for gid, patch in patches.items() if gid.startswith(f"bar-{method}-")}


@pytest.fixture
def figure() -> Figure:
    entries = [
        entry("DPO", 0.1, 5.0, 1.0, None, 0.0, 1.5, 2.5),
        entry("PPO", 0.2, 1.0, 0.5, -0.1, 0.2, None, 0.4),
        entry("Own", None, 3.0, *[None] * 5),
    ]
    return nats.compose({"nats": entries})


def test_parts_join_and_end_at_the_kl(figure: Figure) -> None:
    parts = bars(figure, "DPO")
    ends = {name: (bar.get_x(), bar.get_x() + bar.get_width()) for name, bar in parts.items()}
    assert ends["needed"] == pytest.approx((0, 1)) and ends["data"] == pytest.approx((1, 2.5))
    assert ends["optimisation"] == pytest.approx((2.5, 5))


def test_a_negative_part_is_left_of_zero(figure: Figure) -> None:
    bar = bars(figure, "PPO")["objective"]
    assert (bar.get_x(), bar.get_width()) == pytest.approx((0, -0.1))
    assert figure.axes[0].get_xlim()[0] < -0.09


def test_what_is_not_known_is_one_grey_bar(figure: Figure) -> None:
    (bar,) = bars(figure, "Own").values()
    assert bar.get_width() == 3.0
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["the optimum needs it", "objective", "reward model", "data", "optimisation", "not known"]


def test_labels_and_bytes(figure: Figure, tmp_path: Path) -> None:
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["DPO  β = 0.1", "PPO  β = 0.2", "Own"]
    frontier = {"nats": [entry("DPO", 0.1, 5.0, 1.0, None, 0.0, None, 4.0)]}
    for name in ("a.svg", "b.svg"):
        nats.draw(frontier, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "data and optimisation" in (tmp_path / "a.svg").read_text()
