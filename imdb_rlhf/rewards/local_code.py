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
    found: dict[str, Path] = {}
    waiting = [(file, "")]
    while waiting:
        source, package = waiting.pop()
        for name in _imported(source, package):
            for part in _parents(name):
                place = found.get(part) or _locate(part, file.parent, found)
                if place is None:
                    break
                if part not in found:
                    found[part] = place
                    waiting.append((place, part if place.name == "__init__.py" else part.rpartition(".")[0]))
    return found


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


def _locate(name: str, beside: Path, found: dict[str, Path]) -> Path | None:
    """The source file of a module whose package is found already; None where it is not the user's own."""
    package, _, last = name.rpartition(".")
    if package:
        folder = found[package].parent if found[package].name == "__init__.py" else None
        spec = None if folder is None else PathFinder.find_spec(last, [str(folder)])
    else:
        spec = PathFinder.find_spec(name, [str(beside)]) or _spec_of(name)
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    if origin is None or not origin.is_file() or origin.suffix != ".py":
        return None
    resolved = origin.resolve()
    own = not resolved.is_relative_to(PACKAGE) and not any(resolved.is_relative_to(path) for path in INSTALLED)
    # a virtual environment may lie in a folder that is the user's own
    return origin if own and "site-packages" not in resolved.parts else None


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module without a specification, such as the main one
        return None
