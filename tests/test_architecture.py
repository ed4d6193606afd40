"""Imports go downward only, heavy libraries stay in their rooms, the tree of docs/architecture.md is true."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a room may import its own modules and the rooms on lower floors.
FLOORS = [
    {"foundation"},
    {"data"},
    {"models"},
    {"rewards", "tracking"},
    {"training"},
    {"algos"},
    {"evaluation"},
    {"stages"},
    {"pipeline"},
    {"runs"},
    {"frontier"},
    {"publish", "experiment"},
    {"api", "sweep"},
    {"typed_run"},
    {"usage"},
    {"cli"},
    {"train", "hydra_plugins", "command"},
]
FOUNDATION = {"errors", "config", "seeds", "signals", "ranks", "losses", "artifacts", "arguments", "kinds"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Who alone may import a library: rooms, or single modules.
ALLOWED = {
    "hydra": {"cli", "usage", "typed_run", "train", "hydra_plugins"},
    "omegaconf": {"cli", "usage", "typed_run", "train", "hydra_plugins"},
    "wandb": {"imdb_rlhf.tracking.wandb", "imdb_rlhf.tracking.wandb_service"},
    "wandb_workspaces": {"imdb_rlhf.frontier.workspace"},
    "accelerate": {"training", "models", "imdb_rlhf.tracking.others"},
    "mlflow": {"imdb_rlhf.tracking.others"},
    "trackio": {"imdb_rlhf.tracking.others"},
    "trl": set(),
}
WITHOUT_TORCH = ("errors", "config", "artifacts", "arguments")


def module_files() -> dict[str, Path]:
    """Our modules and their files, by dotted name."""
    files = [*(ROOT / "imdb_rlhf").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py"), *ROOT.glob("train.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = module_files()


def room_of(module: str) -> str:
    """The room of a module; what `python -m` runs is a room of its own, above all others."""
    first, _, rest = module.partition(".")
    if first != "imdb_rlhf":
        return first
    if module.endswith(".__main__"):
        return "command"
    room = rest.partition(".")[0]
    return "foundation" if room in FOUNDATION or not room else room


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """What a module imports, wherever in it: our modules by their own name, others by the name that is written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


GRAPH = {
    module: set(imports_of(file.read_text(encoding="utf-8"), module, file.name == "__init__.py"))
    for module, file in MODULES.items()
}
EDGES = [(module, imported) for module, all_imported in GRAPH.items() for imported in sorted(all_imported)]


def climbs(importer: str, imported: str) -> bool:
    """Whether an import goes up, or across to another room on the same floor."""
    return room_of(importer) != room_of(imported) and FLOOR[room_of(imported)] >= FLOOR[room_of(importer)]


def test_imports_are_found_wherever_they_stand():
    source = """
import torch.nn as nn
from imdb_rlhf import errors, losses
from imdb_rlhf.errors import RunError
from . import artifacts
from .errors import ConfigError
def f():
    import wandb
    if True:
        from hydra.core import plugins
"""
    ours = {"imdb_rlhf.errors", "imdb_rlhf.artifacts"}
    losses = "imdb_rlhf.losses" if "imdb_rlhf.losses" in MODULES else "imdb_rlhf"
    imported = set(imports_of(source, "imdb_rlhf.x"))
    assert imported == {"torch.nn", "wandb", "hydra.core", losses} | ours


def test_nobody_imports_a_command():
    assert not [edge for edge in EDGES if edge[1].endswith(".__main__")]


def test_a_command_is_a_module_of_its_own():
    """`if __name__ == "__main__":` in a library module would let it import upward unseen."""
    guarded = {
        module
        for module, file in MODULES.items()
        if "__main__" in file.read_text(encoding="utf-8") and not module.endswith(".__main__") and module != "train"
    }
    assert not guarded


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("imdb_rlhf.algos.dpo", "imdb_rlhf.losses", False),
        ("imdb_rlhf.algos.dpo", "imdb_rlhf.algos.sft", False),
        ("imdb_rlhf.artifacts.store", "imdb_rlhf.errors", False),
        ("imdb_rlhf.losses", "imdb_rlhf.data.groups", True),
        ("imdb_rlhf.rewards.lexicon", "imdb_rlhf.tracking.jsonl", True),
        ("imdb_rlhf.training.loop", "imdb_rlhf.algos", True),
        ("hydra_plugins.union_sweeper", "imdb_rlhf.cli", False),
        ("imdb_rlhf.cli", "hydra_plugins.union_sweeper", True),
        ("imdb_rlhf.evaluation.__main__", "imdb_rlhf.cli", False),
        ("imdb_rlhf.evaluation.evaluate", "imdb_rlhf.cli", True),
        ("imdb_rlhf.runs.kinds", "imdb_rlhf.frontier.methods", True),
        ("imdb_rlhf.api.frontier", "imdb_rlhf.frontier.measure", False),
        ("imdb_rlhf.frontier.measure", "imdb_rlhf.api.frontier", True),
    ],
)
def test_what_climbing_is(importer, imported, expected):
    assert climbs(importer, imported) is expected


def test_every_module_has_a_floor():
    assert not {module for module in MODULES if room_of(module) not in FLOOR}


def test_imports_go_downward():
    unknown = {
        f"{importer} -> {imported}"
        for importer, imported in EDGES
        if imported.partition(".")[0] in ("imdb_rlhf", "hydra_plugins", "train") and imported not in MODULES
    }
    assert not unknown, "imported, but not there"
    assert not [edge for edge in EDGES if edge[1] in MODULES and climbs(*edge)]


def test_no_module_imports_itself_in_a_circle():
    try:
        TopologicalSorter({module: imported & MODULES.keys() for module, imported in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_stays_in_its_rooms(library):
    users = {importer for importer, imported in EDGES if imported.partition(".")[0] == library}
    assert not {user for user in users if not {user, room_of(user)} & ALLOWED[library]}


def test_what_every_command_reads_first_has_no_torch():
    rooms = tuple(f"imdb_rlhf.{room}" for room in WITHOUT_TORCH)
    first = [module for module in MODULES if module in rooms or module.startswith(tuple(f"{room}." for room in rooms))]
    assert len(first) > len(rooms)  # packages among them
    assert not [edge for edge in EDGES if edge[0] in first and edge[1].partition(".")[0] == "torch"]


def test_a_run_and_its_report_need_no_plotting_library():
    reached, waiting = set[str](), ["imdb_rlhf.experiment"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            if module != "imdb_rlhf.tracking.wandb":  # it imports plotly where a frontier is shown on W&B
                waiting += GRAPH.get(module, ())
    assert "imdb_rlhf.frontier.report.run_report" in reached
    assert not {name for name in reached if name.partition(".")[0] in ("matplotlib", "plotly")}


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_asking_imports_no_torch_and_writes_nothing(arguments, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *arguments]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    imported = {
        line.rpartition("|")[2].strip() for line in asked.stderr.splitlines() if line.startswith("import time:")
    }
    assert asked.returncode == 0, asked.stderr.splitlines()[-3:]
    assert "imdb_rlhf.cli" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "transformers", "wandb")}
    assert not list(tmp_path.iterdir())


# --- the tree


def tree_paths(page: str) -> tuple[set[str], set[str]]:
    """What a page's tree names: the paths that have a line, and the `.py` files named on a folder's line.

    The tree is the fenced block with a line for train.py. A line is `path   comment`, indented under its folder, with
    or without box characters; a folder's line may name its files in the comment.
    """
    block = next(
        (block for block in re.findall(r"```\w*\n(.*?)```", page, re.S) if re.search(r"^train\.py", block, re.M)), ""
    )
    lines, mentions = set(), set()
    above: list[tuple[int, str]] = []  # the folders that a line may lie under, with their indentation
    for line in block.splitlines():
        drawn = re.match(r"[\s│├└─|`+-]*", line)
        indent = drawn.end() if drawn else 0
        first, _, comment = line[indent:].partition(" ")
        if not first:
            continue
        while above and above[-1][0] >= indent:
            above.pop()
        path = (above[-1][1] if above else "") + first
        lines.add(path.rstrip("/"))
        if first.endswith("/"):
            above.append((indent, path))
            mentions |= {path + name for name in re.findall(r"[\w/]+\.py\b", comment)}
    return lines, mentions


def test_a_tree_is_read():
    page = """
```
pip install .
```
```
train.py            Hydra in (see cli.py)
imdb_rlhf/
├── losses.py       every objective
├── data/           imdb.py · groups.py (the unit of data)
│   └── prompts.py  prefixes
tests/              mirrors
```
"""
    lines, mentions = tree_paths(page)
    assert lines == {
        "train.py",
        "imdb_rlhf",
        "imdb_rlhf/losses.py",
        "imdb_rlhf/data",
        "imdb_rlhf/data/prompts.py",
        "tests",
    }
    assert mentions == {"imdb_rlhf/data/imdb.py", "imdb_rlhf/data/groups.py"}


def test_the_tree_names_every_module_and_no_other():
    lines, mentions = tree_paths((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    ours = {file.relative_to(ROOT).as_posix() for file in MODULES.values() if file.name != "__init__.py"}
    assert not ours - lines - mentions, "not in the tree of docs/architecture.md"
    # outputs/ is there only after a run
    assert not {path for path in lines if not path.startswith("outputs") and not (ROOT / path).exists()}, "not there"


def test_nothing_is_left_to_do():
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK", "WI" + "P"]) + r")\b")
    folders = ["imdb_rlhf", "hydra_plugins", "conf", "sweeps", "tests", "docs", "benchmarks", "examples"]
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")
    ]
    left = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*files, *ROOT.glob("*.md"), *ROOT.glob("*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    }
    assert not left
