"""The names of `imdb_rlhf`: all there, light to import, and told to type checkers as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import imdb_rlhf

ROOT = Path(__file__).parents[2]


def test_every_name_is_there() -> None:
    for name in imdb_rlhf.__all__:
        assert getattr(imdb_rlhf, name) is not None
    assert {"measure", "Frontier", "best_of_n", "FrontierCallback"} <= set(dir(imdb_rlhf))
    with pytest.raises(AttributeError, match="nothing"):
        _ = imdb_rlhf.nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, imdb_rlhf; print({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_arrays_and_frontiers_need_no_trainer() -> None:
    code = "import sys, imdb_rlhf; imdb_rlhf.FrontierCallback; print({'trl', 'hydra', 'omegaconf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_stub_names_what_is_exported() -> None:
    stub = (ROOT / "imdb_rlhf" / "__init__.pyi").read_text(encoding="utf-8")
    told = {name: module for module, name in re.findall(r"from (\S+) import (\w+) as", stub)}
    assert told == imdb_rlhf._API  # type: ignore[attr-defined]


def test_the_documentation_names_every_function() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert not {name for name in imdb_rlhf.__all__ if not re.search(rf"\b{name}\b", page)} - {"__version__"}
