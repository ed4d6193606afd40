"""Methods keep their colour from picture to picture, and no two look alike in one."""

import pytest
from matplotlib.markers import MarkerStyle
from plotly.validator_cache import ValidatorCache

from imdb_rlhf.frontier.methods import MARKERS, METHODS, PALETTE, colour, style, styles


def test_the_colours_are_okabe_and_itos() -> None:
    rgb = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66)]
    assert [tuple(bytes.fromhex(each[1:])) for each in PALETTE] == rgb


def test_the_methods_of_the_paper_differ() -> None:
    assert len({colour(name) for name in METHODS[:6]}) == 6
    assert len({style(name) for name in METHODS}) == len(METHODS)
    assert style(METHODS[3]) == style(3)


def test_markers_are_known_to_matplotlib_and_plotly() -> None:
    symbols = ValidatorCache.get_validator("scatter.marker", "symbol")
    for marker, symbol in MARKERS:
        assert MarkerStyle(marker).get_marker() == marker
        assert symbols.validate_coerce(symbol) == symbol


def test_a_known_method_keeps_its_style_whoever_stands_beside_it() -> None:
    assert styles(["mine", "PPO", "DPO"])["PPO"] == style("PPO")
    assert list(styles(["mine", "PPO", "DPO"])) == ["mine", "PPO", "DPO"]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_other_methods_get_styles_of_their_own(count: int) -> None:
    names = [*METHODS[:2], *(f"model {number}" for number in range(count))]
    found = styles(names)
    assert len(set(found.values())) == len(names)
    assert found == styles(names)
    if count == 5:
        assert len({each.colour for each in found.values()}) == 7


def test_more_methods_than_styles_are_drawn_all_the_same() -> None:
    names = [f"model {number}" for number in range(60)]
    assert len(set(styles(names).values())) == len(PALETTE) * len(MARKERS)


def test_the_first_of_two_kinds_of_a_method_has_its_style() -> None:
    found = styles(["DPO (labels=deterministic)", "DPO (labels=bradley_terry)", "PPO"])
    assert found["DPO (labels=deterministic)"] == style("DPO")
    assert len({each.colour for each in found.values()}) == 3
    assert styles(["DPO (x=1)", "DPO"])["DPO"] == style("DPO")
