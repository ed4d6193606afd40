"""Which of the user's own modules a file imports."""

import sys
from pathlib import Path

import pytest

from imdb_rlhf.rewards.local_code import local_modules


def write(folder: Path, **sources: str) -> Path:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder / "own.py"


def found(file: Path) -> dict[str, str]:
    return {name: path.relative_to(file.parent).as_posix() for name, path in local_modules(file).items()}


def test_modules_beside_it_and_what_those_import(tmp_path):
    file = write(tmp_path, own="import helper", helper="from words import GOOD", words="GOOD = 1", other="")
    assert found(file) == {"helper": "helper.py", "words": "words.py"}


@pytest.mark.parametrize(
    "line", ["import a.b.c", "from a.b import c", "from a.b.c import x", "import a.b.c as d", "from a import b, z"]
)
def test_packages(tmp_path, line):
    sources = {"a/__init__": "", "a/b/__init__": "from . import c", "a/b/c": "from ..d import y\nx = 1", "a/d": "y = 2"}
    file = write(tmp_path, own=line)
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(source)
    assert found(file) == {
        "a": "a/__init__.py",
        "a.b": "a/b/__init__.py",
        "a.b.c": "a/b/c.py",
        "a.d": "a/d.py",
    }


@pytest.mark.parametrize("line", ["from helpers.score import g", "import helpers.score", "from helpers import score"])
def test_a_package_without_an_init_file(tmp_path, line):
    (tmp_path / "helpers").mkdir()
    file = write(tmp_path, own=line, **{"helpers/score": "from . import words", "helpers/words": ""})
    assert found(file) == {"helpers.score": "helpers/score.py", "helpers.words": "helpers/words.py"}


def test_an_import_inside_a_function_counts(tmp_path):
    file = write(tmp_path, own="def score(texts):\n    import helper\n    return helper.of(texts)", helper="")
    assert found(file) == {"helper": "helper.py"}


def test_circles_end(tmp_path):
    assert set(found(write(tmp_path, own="import a", a="import b", b="import a"))) == {"a", "b"}


def test_libraries_and_the_package_itself_are_not_the_users_own(tmp_path):
    lines = "import numpy, json, torch.nn, transformers\nfrom imdb_rlhf.rewards import Scores\nimport no_such_module"
    assert local_modules(write(tmp_path, own=lines)) == {}


def test_a_module_elsewhere_on_the_path_is_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", far_helper="")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert found(write(tmp_path, own="import far_helper")) == {"far_helper": "elsewhere/far_helper.py"}


def test_the_module_beside_the_file_comes_first(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", helper="")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert found(write(tmp_path, own="import helper", helper="")) == {"helper": "helper.py"}


def test_a_file_that_is_no_python_imports_nothing(tmp_path):
    assert local_modules(write(tmp_path, own="def score(")) == {}
    assert "own" not in sys.modules
