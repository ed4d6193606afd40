"""The class that a configuration's kind names, and one line for each way in which it can be unusable."""

import sys
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.preferences import PreferenceMethod
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.data.reviews import dataset_of
from imdb_rlhf.errors import RunError
from imdb_rlhf.kinds import load_kind
from imdb_rlhf.rewards import kind_of as reward_of
from imdb_rlhf.runs import kinds
from imdb_rlhf.runs.kinds import kind_of
from tests.command import run_of


class Shape(ABC):
    """What a kind of shape must have."""

    def __init__(self, config: object) -> None:
        self.config = config

    @abstractmethod
    def area(self) -> float: ...

    @abstractmethod
    def sides(self) -> int: ...


GOOD = """
from tests.test_kinds import Shape

class Kind(Shape):
    def area(self):
        return 3.0

    def sides(self):
        return 4
"""


def config(name: str | None) -> object:
    return type("SquareConfig", (), {} if name is None else {"kind": name})()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the module `shapes.square`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "__init__.py").write_text("")
    return lambda source: (tmp_path / "shapes" / "square.py").write_text(source)


def refusal(name: str | None) -> str:
    with pytest.raises(RunError) as caught:
        load_kind("shapes", config(name), Shape)
    return str(caught.value)


def test_the_kind_of_a_configuration(write) -> None:
    write(GOOD)
    square = config("square")
    kind = load_kind("shapes", square, Shape)
    assert isinstance(kind, Shape) and kind.config is square and (kind.area(), kind.sides()) == (3.0, 4)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (GOOD, None, "SquareConfig has no kind; give it the name of its module in shapes"),
        (
            GOOD,
            "circle",
            "SquareConfig is of kind 'circle', and there is no module shapes.circle; name one that exists",
        ),
        (
            GOOD,
            "square-one",
            "SquareConfig is of kind 'square-one', and there is no module shapes.square-one; name one",
        ),
        ("import nompy", "square", "shapes.square cannot be imported: ModuleNotFoundError: No module named 'nompy'"),
        ("x = (", "square", "shapes.square cannot be imported: SyntaxError: "),
        ("x = y", "square", "shapes.square cannot be imported: NameError: "),
        ("", "square", "shapes.square needs a class Kind, derived from tests.test_kinds.Shape"),
        ("class Kind: pass", "square", "shapes.square needs a class Kind, derived from tests.test_kinds.Shape"),
        ("Kind = 3", "square", "shapes.square needs a class Kind, derived from tests.test_kinds.Shape"),
        (
            GOOD.replace("def sides", "def edges"),
            "square",
            "shapes.square.Kind has no sides, which tests.test_kinds.Shape asks for",
        ),
        (
            GOOD.partition("    def area")[0] + "    pass",
            "square",
            "shapes.square.Kind has no area, sides, which tests.test_kinds.Shape asks for",
        ),
    ],
)
def test_a_kind_that_cannot_be_used(write, source: str, name: str | None, message: str) -> None:
    write(source)
    assert refusal(name).startswith(message)


def test_every_reward_and_dataset_loads() -> None:
    for choice in ("lexicon", "siebert", "distilbert", "two_label"):
        assert reward_of(run_of(f"reward={choice}").reward).config.name == choice
    for choice in ("embedded", "imdb"):
        assert dataset_of(run_of(f"data={choice}").data).config.name == choice


# --- algorithms


def test_every_algorithm_is_whole() -> None:
    for algo in ALGOS:
        assert kind_of(run_of(f"algo={algo}")).title == "policy"


def test_an_algorithm_without_a_line_in_algos(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: kind for name, kind in kinds.KINDS.items() if name != "dpo"}
    monkeypatch.setattr(kinds, "KINDS", others)
    with pytest.raises(RunError, match=r"^algo=dpo has no line in ALGOS \(imdb_rlhf/algos/__init__.py\); add it$"):
        kind_of(run_of())


@pytest.mark.parametrize("name", ["stage", "title", "summary_line", "from_inputs"])
def test_an_algorithm_that_lacks_something(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner = next(cls for cls in DPO.__mro__ if name in vars(cls))
    monkeypatch.delattr(owner, name)
    message = f"^imdb_rlhf.algos.dpo.DPO has no .*{name}.*, which imdb_rlhf.algos.method.PolicyMethod asks for$"
    with pytest.raises(RunError, match=message):
        kind_of(run_of())


def test_an_algorithm_without_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLoss(PreferenceMethod[DPORun]):
        stage = "dpo"
        title = "No Loss"

    monkeypatch.setitem(ALGOS, "dpo", NoLoss)
    with pytest.raises(RunError, match=r"^tests.test_kinds.NoLoss has no loss, which "):
        kind_of(run_of())
