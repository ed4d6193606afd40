"""Which modules of the user's own a file imports, told from their source without running it."""

import ast
import site
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

# Where modules are that belong to Python, or were installed: their versions are not the user's own code.
INSTALLED = tuple(
    Path(path).resolve()
    for path in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)
PACKAGE = Path(__file__).resolve().parents[1]


def local_modules(file: Path) -> dict[str, Path]:
    """Name -> file of every module of the user's own that a file imports, directly or through another one.

    Imports inside functions count; those by a computed name (`importlib.import_module(name)`) cannot be told.

    Args:
        file: Python source; modules beside it are found first, as when it is run as a script.
    """
    places: dict[str, Path] = {}  # a folder for a package without __init__.py
    waiting = [(file, "")]
    while waiting:
        source, package = waiting.pop()
        for name in _imported(source, package):
            for part in _parents(name):
                place = places.get(part) or _locate(part, file.parent, places)
                if place is None:
                    break
                if part not in places:
                    places[part] = place
                    if place.suffix == ".py":
                        waiting.append((place, part if place.name == "__init__.py" else part.rpartition(".")[0]))
    return {name: place for name, place in places.items() if place.is_file()}


def _imported(file: Path, package: str) -> Iterator[str]:
    """The names of modules that a file imports, and of what it takes from them, which may be modules too."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _parents(name: str) -> Iterator[str]:
    """a, a.b and a.b.c of a.b.c."""
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _locate(name: str, beside: Path, places: dict[str, Path]) -> Path | None:
    """The file of a module whose package is found already, or the folder of a package without one.

    None where it is not the user's own.
    """
    package, _, last = name.rpartition(".")
    if package:
        place = places[package]
        folder = place if place.is_dir() else place.parent if place.name == "__init__.py" else None
        spec = None if folder is None else PathFinder.find_spec(last, [str(folder)])
    else:
        spec = PathFinder.find_spec(name, [str(beside)]) or _spec_of(name)
    if spec is None:
        return None
    inside = list(spec.submodule_search_locations or [])
    origin = Path(spec.origin or (inside[0] if inside else ""))
    if not (origin.is_file() or (spec.origin is None and inside)):
        return None
    return origin if is_own(origin) else None


def is_own(file: Path) -> bool:
    """Whether a file is the user's own: no part of this package, of Python or of what was installed."""
    resolved = file.resolve()
    own = not resolved.is_relative_to(PACKAGE) and not any(resolved.is_relative_to(path) for path in INSTALLED)
    # a virtual environment may lie in a folder that is the user's own
    return own and resolved.exists() and "site-packages" not in resolved.parts


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module without a specification, such as the main one
        return None
