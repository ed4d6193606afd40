"""The figure: everything is in it, where its numbers say, and no label stands on another."""

import io
import math
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from imdb_rlhf.frontier.figure import figure
from imdb_rlhf.frontier.figure.labels import Wish, place
from imdb_rlhf.frontier.figure.saving import LOOK

SVG = "{http://www.w3.org/2000/svg}"
FILES = ("f.svg", "f.pdf", "f.png")
REFERENCE = 0.5
# name, knob, (value, KL, reward) of each setting: six methods of 22 runs that crowd together.
SWEEP: list[tuple[str, str | None, list[tuple[float | None, float, float]]]] = [
    ("DPO", "beta", [(0.05, 10, 0.915), (0.1, 8.6, 0.913), (1, 5, 0.89), (5, 2, 0.82)]),
    ("PPO", "target_kl", [(0.25, 0.24, 0.59), (0.5, 0.5, 0.66), (3, 2.9, 0.86), (6, 6, 0.9)]),
    ("PPO-GT", "target_kl", [(3, 3.3, 0.889), (6, 6.1, 0.93), (9, 9.2, 0.94), (12, 12.1, 0.945)]),
    ("PPO-GT (TRL)", "target_kl", [(3, 2.08, 0.80), (6, 2.12, 0.803), (9, 2.15, 0.798), (12, 2.11, 0.806)]),
    ("Unlikelihood", "alpha", [(0.05, 0.8, 0.72), (0.1, 1, 0.75), (0.5, 1.6, 0.806), (1, 2.5, 0.8)]),
    ("Preferred-FT", None, [(None, 0.5, 0.675), (None, 0.51, 0.678)]),
]
LONG = ("my-organisation/a-model-with-a-name-that-never-ends-v2.1-final", None, [(None, 4.0, 0.7)])


def optimum() -> dict[str, Any]:
    kl = list(np.linspace(0, 16, 65))
    lower = [0.93 - 0.43 * math.exp(-2 * min(k, 2.1)) for k in kl]
    upper = [min(1.0, low + 0.01 + 0.05 * max(k - 2.1, 0)) for k, low in zip(kl, lower, strict=True)]
    around = {
        f"{name}_ci": [[value - 0.01 for value in curve], [value + 0.01 for value in curve]]
        for name, curve in (("lower", lower), ("upper", upper))
    }
    learned = {"kl": kl[:9], "reward": [value - 0.05 for value in lower[:9]], "reward_ci": [lower[:9], lower[:9]]}
    return {
        "samples": 64, "trusted_kl": 2.1, "cap": 1.0, "kl": kl, "lower": lower, "upper": upper, "learned": learned
    } | around  # fmt: skip


def best_of_n(gain: float) -> dict[str, Any]:
    n = list(range(1, 65))
    kl = [math.log(k) - (k - 1) / k for k in n]
    reward = [REFERENCE + gain * (1 - math.exp(-k)) for k in kl]
    return {"n": n, "kl": kl, "reward": reward, "reward_ci": [reward, reward]}


def frontier_of(methods: list[Any], checkpoints: int = 4, **changes: Any) -> dict[str, Any]:
    """A frontier whose runs go from the reference to their setting along a square root."""
    frontier: dict[str, Any] = {
        "world": {"reward": "lexicon"},
        "confidence": 0.95,
        "reference": {"reward": REFERENCE, "reward_ci": [0.48, 0.52]},
        "base": {"reward": 0.48, "reward_ci": [0.46, 0.5], "kl": 1.3, "kl_ci": [1.2, 1.4]},
        "budgets": [1, 5],
        "score_kl": 5.0,
        "methods": [],
        "points": [],
        "optimum": optimum(),
        "best_of_n": {"ground_truth": best_of_n(0.44), "learned": best_of_n(0.4)},
    }
    for name, knob, settings in methods:
        entries = []
        for at, (value, kl, reward) in enumerate(settings):
            run = f"{name}-{at}"
            for share in np.linspace(0, 1, checkpoints + 1)[1:]:
                point = {"run": run, "method": name, "last": share == 1, "kl": kl * share}
                frontier["points"].append(point | {"reward": REFERENCE + (reward - REFERENCE) * share**0.5})
            interval = {"kl_ci": [0.95 * kl, 1.05 * kl], "reward_ci": [reward - 0.01, reward + 0.01]}
            covered = {"seeds": [0, 1, 2], "covers": "prompts, seeds"}
            entries.append({"knob_value": value, "kl": kl, "reward": reward, "runs": [run]} | interval | covered)
        frontier["methods"].append({"name": name, "knob": knob, "settings": entries, "diverged": []})
    return frontier | changes


def compose(frontier: dict[str, Any]) -> Figure:
    with matplotlib.style.context(["default", LOOK]):
        return figure.compose(frontier)


def one_point(kl: float = 3.0, reward: float = 0.8, **changes: Any) -> dict[str, Any]:
    return frontier_of([("DPO", "beta", [(0.1, kl, reward)])], 1, base=None, optimum=None, best_of_n={}, **changes)


@pytest.fixture(scope="module")
def crowd() -> Figure:
    return compose(frontier_of(SWEEP))


@pytest.fixture(scope="module")
def crowd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd")
    parsed(frontier_of(SWEEP), folder)
    return folder


def parsed(frontier: dict[str, Any], folder: Path) -> ElementTree.Element:
    figure.draw(frontier, *(folder / name for name in FILES))
    return read(folder)


def read(folder: Path) -> ElementTree.Element:
    """The SVG with its comments, which hold the words that are drawn as outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return ElementTree.parse(folder / "f.svg", parser).getroot()


def words_of(element: ElementTree.Element) -> list[str]:
    """What is written in a part of the SVG; a label of two lines is two of them."""
    return [comment.text.strip() for comment in element.iter(ElementTree.Comment) if comment.text]  # type: ignore[arg-type]


def group(root: ElementTree.Element, gid: str) -> ElementTree.Element:
    (match,) = [element for element in root.iter(f"{SVG}g") if element.get("id") == gid]
    return match


def uses(element: ElementTree.Element) -> list[tuple[float, float]]:
    """Where markers stand, in the SVG's own coordinates."""
    return [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for use in element.iter(f"{SVG}use")
        if "x" in use.attrib and "y" in use.attrib
    ]


def path_of(element: ElementTree.Element) -> list[str]:
    return [path.attrib["d"] for path in element.iter(f"{SVG}path")]


def ticks(axes: ElementTree.Element, axis: str) -> list[tuple[float, tuple[float, float]]]:
    """The number and the place of every tick that has a number beside it."""
    numbers = []
    for tick in axes.iter(f"{SVG}g"):
        if re.match(rf"{axis}tick_\d+$", tick.get("id", "")):
            (number,) = words_of(tick)
            numbers.append((float(number.replace("−", "-")), uses(tick)[0]))
    return numbers


def texts(shown: Figure, panel: str) -> list[Text]:
    return [text for text in shown.findobj(Text) if (text.get_gid() or "").startswith(panel)]


def test_what_is_in_the_svg(crowd_folder: Path) -> None:
    words = words_of(read(crowd_folder))
    for name, _, _ in SWEEP:
        assert words.count(name) == 2, name  # once in each panel
    for word in ("true reward (lexicon)", "KL to the reference (nats)", "KL to the reference (nats, log scale)"):
        assert words.count(word) == 1, word
    for word in ("optimum", "best-of-N", "best-of-N, learned reward", "reference", "before SFT"):
        assert word in words
    assert any("95% intervals" in word for word in words)
    for words_of_knob in ("β = 5 … 0.05", "target KL = 0.25 … 6", "α = 0.05 … 1", "4 targets: 3 … 12"):
        assert words.count(words_of_knob) == 2, words_of_knob


@pytest.mark.parametrize("panel, scale", [("linear", float), ("log", math.log)])
def test_a_point_lies_where_the_ticks_say(tmp_path: Path, panel: str, scale: Any) -> None:
    root = parsed(one_point(kl=1.5, reward=0.81), tmp_path)
    (at,) = uses(group(root, f"{panel}-setting-DPO-0"))
    (axes,) = [element for element in root.iter(f"{SVG}g") if element.get("id") == f"axes_{1 + (panel == 'log')}"]
    (left, (x0, _)), *_, (right, (x1, _)) = ticks(axes, "x")
    (axes,) = [element for element in root.iter(f"{SVG}g") if element.get("id") == "axes_1"]
    (low, (_, y0)), *_, (high, (_, y1)) = ticks(axes, "y")
    kl = scale(left) + (at[0] - x0) / (x1 - x0) * (scale(right) - scale(left))
    assert kl == pytest.approx(scale(1.5), abs=1e-4)
    assert low + (at[1] - y0) / (y1 - y0) * (high - low) == pytest.approx(0.81, abs=1e-4)


def test_every_checkpoint_is_a_point(crowd_folder: Path) -> None:
    root = read(crowd_folder)
    assert [len(uses(group(root, f"linear-points-{name}"))) for name in ("DPO", "Preferred-FT")] == [16, 8]
    assert len(uses(group(root, "log-best-of-n-marks-ground_truth"))) == 6  # N = 2, 4, ... 64


def test_a_method_has_one_label_in_a_panel(crowd: Figure) -> None:
    for panel in ("linear", "log"):
        for name, _, _ in SWEEP:
            assert len([text for text in texts(crowd, panel) if text.get_text().splitlines()[0] == name]) == 1


def test_settings_that_cover_one_another_say_how_many_they_are() -> None:
    part = [("PPO", "target_kl", [(1, 1.0, 0.7), (6, 4.0, 0.8), (9, 4.01, 0.8), (12, 4.0, 0.801)])]
    shown = compose(frontier_of(part, 1, optimum=None, best_of_n={}))
    for panel in ("linear", "log"):
        assert [text.get_text() for text in texts(shown, f"{panel}-label-PPO")] == ["PPO\ntarget KL = 1 … 12"]
        assert [text.get_text() for text in texts(shown, f"{panel}-count-PPO")] == ["3 targets"]
    apart = compose(frontier_of(SWEEP[:2], 1, optimum=None, best_of_n={}))
    assert not texts(apart, "linear-count") and not texts(apart, "log-count")


def test_a_setting_off_its_target_is_ringed() -> None:
    missed = [{"name": f"PPO-{at}", "missed_target": at == 2} for at in range(4)]
    drawn = compose(frontier_of(SWEEP, runs=missed))
    rings = {str(line.get_gid()) for line in drawn.axes[0].get_lines() if str(line.get_gid()).endswith("-off-target")}
    assert rings == {"linear-setting-PPO-2-off-target"}
    assert any("ringed: KL of training off its target" in text.get_text() for text in drawn.findobj(Text))
    assert not any("ringed" in text.get_text() for text in compose(frontier_of(SWEEP)).findobj(Text))


def test_the_optimum_is_seen_on_both_sides_of_best_of_n(crowd: Figure) -> None:
    def width(gid: str) -> float:
        (line,) = crowd.findobj(lambda artist: artist.get_gid() == gid)
        return float(line.get_linewidth())  # type: ignore[attr-defined]

    assert width("linear-optimum-lower-trusted") > 2 * width("linear-best-of-n-ground_truth")
    assert width("linear-optimum-upper-trusted") > 2 * width("linear-best-of-n-ground_truth")


def test_fonts_are_embedded_where_text_is_text(crowd_folder: Path) -> None:
    pdf = (crowd_folder / "f.pdf").read_bytes()
    fonts = set(re.findall(rb"/FontName /(\S+)", pdf))
    assert fonts and pdf.count(b"/FontFile2") == len(fonts) and b"/Type3" not in pdf
    assert all(b"+DejaVuSans" in font for font in fonts)  # no viewer's own font stands in for one
    svg = (crowd_folder / "f.svg").read_text()
    assert "<text" not in svg and "font-family" not in svg


def test_settings_are_joined_in_the_order_of_the_knob(crowd: Figure) -> None:
    (line,) = crowd.findobj(lambda artist: artist.get_gid() == "linear-line-DPO")
    assert list(line.get_xdata()) == [10, 8.6, 5, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "methods", [SWEEP, [*SWEEP, LONG], [*SWEEP, LONG, *[(f"Method {n}", *LONG[1:]) for n in range(9)]]]
)
def test_labels_stand_apart_and_inside(methods: list[Any]) -> None:
    shown = compose(frontier_of(methods))
    for panel, axes in zip(("linear", "log"), shown.axes, strict=True):
        written = texts(shown, panel)
        assert len(written) >= len(methods) + 3
        boxes = [text.get_window_extent() for text in written]
        outer = axes.get_window_extent()
        for at, box in enumerate(boxes):
            assert outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1
            for other in boxes[:at]:
                assert not box.overlaps(other), written[at].get_text()


def test_no_label_covers_a_setting(crowd: Figure) -> None:
    for panel, axes in zip(("linear", "log"), crowd.axes, strict=True):
        pixels = axes.transData.transform([(kl, reward) for _, _, runs in SWEEP for _, kl, reward in runs])
        for text in texts(crowd, panel):
            assert not text.get_window_extent().count_contains(pixels), text.get_text()


def test_a_label_stands_at_its_anchor_unless_ink_is_there() -> None:
    ink = np.zeros((100, 200))
    wish = Wish("a", np.array([[50.0, 50.0]]), 20, 8, {}, "a", False)
    (beside,) = place([wish], ink, (200, 100))
    assert beside.distance <= 4
    ink[30:70, 20:80] = 1
    (away,) = place([wish], ink, (200, 100))
    right, top = away.left + 20, away.bottom + 8
    assert right < 20 or away.left > 79 or top < 30 or away.bottom > 69  # no cell of it on ink


def test_type_is_readable(crowd: Figure) -> None:
    sizes = {float(text.get_fontsize()) for text in crowd.findobj(Text) if text.get_text()}
    assert min(sizes) >= 7


def test_the_same_frontier_gives_the_same_bytes(crowd_folder: Path, tmp_path: Path) -> None:
    start = time.process_time()
    parsed(frontier_of(SWEEP), tmp_path)
    assert time.process_time() - start < 6  # about one second
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (crowd_folder / file).read_bytes()
    svg = (tmp_path / "f.svg").read_text()
    assert "<dc:date>" not in svg and matplotlib.__version__ not in svg
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)  # nothing half-written


def test_the_users_own_style_changes_nothing(tmp_path: Path) -> None:
    parsed(one_point(), tmp_path)
    before = (tmp_path / "f.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        parsed(one_point(), tmp_path)
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "f.svg").read_bytes() == before


def test_the_png_is_two_columns_wide_at_300_dpi(tmp_path: Path) -> None:
    parsed(one_point(), tmp_path)
    data = io.BytesIO((tmp_path / "f.png").read_bytes())
    assert data.read(8) == b"\x89PNG\r\n\x1a\n"
    data.seek(16)
    assert int.from_bytes(data.read(4), "big") == 7 * 300


def test_a_diverged_run_does_not_squash_the_rest(tmp_path: Path) -> None:
    frontier = frontier_of([*SWEEP, ("DPO (ipo)", "beta", [(0.1, 100, 0.1), (1, 3, 0.85)])])
    frontier["methods"][-1]["diverged"] = ["DPO (ipo)-0"]
    shown = compose(frontier)
    linear, log = shown.axes
    assert 12.1 < linear.get_xlim()[1] < 20 and 100 < log.get_xlim()[1] < 200
    assert linear.get_ylim()[0] > 0.3
    (label,) = texts(shown, "linear-label-outside")
    assert label.get_text() == "β = 0.1:\n0.10 at 100 nats"  # its method has a label already
    root = parsed(frontier, tmp_path)
    tip = [float(number) for number in re.findall(r"[\d.]+", path_of(group(root, "linear-outside-DPO_(ipo)-0"))[-1])]
    assert max(tip[::2]) > 250  # it points at the right border of the left panel


def test_a_diverged_seed_has_a_cross(tmp_path: Path) -> None:
    frontier = frontier_of(SWEEP)
    frontier["methods"][0]["diverged"] = ["DPO-2"]
    root = parsed(frontier, tmp_path)
    assert uses(group(root, "log-diverged-DPO")) == uses(group(root, "log-setting-DPO-2"))
    assert not uses(group(root, "log-diverged-PPO"))


def test_beyond_what_samples_tell_the_band_is_grey(crowd: Figure) -> None:
    (sure,) = crowd.findobj(lambda artist: artist.get_gid() == "linear-optimum-upper-trusted")
    (beyond,) = crowd.findobj(lambda artist: artist.get_gid() == "linear-optimum-upper-beyond")
    assert max(sure.get_xdata()) == min(beyond.get_xdata()) == 2.1  # type: ignore[attr-defined]
    assert beyond.get_linestyle() == "--"  # type: ignore[attr-defined]
    trusted = frontier_of([("DPO", "beta", [(1, 1.0, 0.8)])], best_of_n={})
    assert "grey" not in "".join(text.get_text() for text in compose(trusted).findobj(Text))


@pytest.mark.parametrize("broken", [None, float("nan"), float("inf")])
def test_what_has_no_number_is_left_out(tmp_path: Path, broken: Any) -> None:
    frontier = frontier_of(SWEEP[:1])
    frontier["points"][-1]["reward"] = broken
    frontier["methods"][0]["settings"][0] |= {"kl": broken, "kl_ci": None}
    assert len(uses(group(parsed(frontier, tmp_path), "linear-points-DPO"))) == 4 * 4 - 1


SMALL = {
    "one point": one_point(),
    "one point below the reference": one_point(reward=0.2),
    "at the reference": one_point(kl=0.0, reward=REFERENCE),
    "two runs": frontier_of([("DPO", "beta", [(0.1, 3, 0.8)]), ("PPO", "target_kl", [(3, 0.01, 0.6)])], optimum=None),
    "no methods": frontier_of([]),
    "a reward without an upper limit": frontier_of(
        [("DPO", "beta", [(0.1, 3, 0.8)])], optimum=optimum() | {"cap": None}
    ),
    "rewards of an own function": one_point(
        reward=-12345.0, reference={"reward": -20000, "reward_ci": [-2.1e4, -1.9e4]}
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_little_to_draw_is_drawn(tmp_path: Path, name: str) -> None:
    root = parsed(SMALL[name], tmp_path)
    assert "reference" in words_of(root)
    shown = compose(SMALL[name])
    beside = shown.axes[0].yaxis.get_tightbbox()
    assert beside is not None and beside.x0 >= 0  # long numbers do not push the axis's name out of the picture
    for gid in ("linear-reference", *(["linear-setting-DPO-0"] if SMALL[name]["methods"] else [])):
        ((x, y),) = uses(group(root, gid))
        assert 0 < x < 504 and 0 < y < 238


def test_bars_are_whole_and_checkpoints_outside_are_counted() -> None:
    """A wide interval, as of few prompts, is not cut; an earlier checkpoint with more KL than any setting is told."""
    frontier = frontier_of([("DPO", "beta", [(0.1, 2.0, 0.6), (1, 1.0, 0.55)])], optimum=None, best_of_n={}, base=None)
    frontier["methods"][0]["settings"][0]["reward_ci"] = [0.47, 0.7]
    frontier["points"].append({"run": "DPO-0", "method": "DPO", "last": False, "kl": 20.0, "reward": 0.65})
    with matplotlib.style.context(["default", LOOK]):
        drawn = figure.compose(frontier)
    low, high = drawn.axes[0].get_ylim()
    assert low < 0.47 and high > 0.7
    assert any("faint: earlier checkpoints, 1 of them outside" in text.get_text() for text in drawn.texts)


def footnote(shown: Figure) -> str:
    (text,) = [text for text in shown.findobj(Text) if text.get_gid() == "footnote"]
    return str(text.get_text())


def test_one_seed_is_told_from_three() -> None:
    frontier = frontier_of([("DPO", "beta", [(0.1, 8.0, 0.9), (1, 2.0, 0.8)])])
    assert "bars: 95% intervals over prompts and seeds" in footnote(compose(frontier))
    assert "hollow" not in footnote(compose(frontier))
    frontier["methods"][0]["settings"][0] |= {"seeds": [0], "covers": "prompts"}
    shown = compose(frontier)
    assert "hollow: 1 seed, bars over prompts only" in footnote(shown)
    lines = {line.get_gid(): line for line in shown.axes[0].get_lines()}
    one, three = (lines[f"linear-setting-DPO-{number}"] for number in (0, 1))
    assert one.get_markerfacecolor() == "white" != three.get_markerfacecolor()
    bars = [lines[f"linear-setting-DPO-{number}-kl-ci"].is_dashed() for number in (0, 1)]
    assert bars == [True, False]
    frontier["methods"][0]["settings"][1] |= {"seeds": [0, 1], "covers": "prompts"}
    assert "hollow: at most 2 seeds, bars: 95% intervals over prompts only" in footnote(compose(frontier))
    assert max(map(len, footnote(compose(frontier_of(SWEEP))).splitlines())) <= figure.LONGEST_NOTE
