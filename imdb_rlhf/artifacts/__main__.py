"""`python -m imdb_rlhf.artifacts list|prune`: the artifacts in the store, their inputs, and the runs that use them."""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imdb_rlhf.arguments import OneLineParser, place
from imdb_rlhf.artifacts.files import RUN_ARTIFACTS, check_manifest, try_lock
from imdb_rlhf.artifacts.store import INPUTS
from imdb_rlhf.errors import ConfigError, RunError


@dataclass(frozen=True)
class Entry:
    """A folder of the store, as `list` shows it.

    Attributes:
        stage: the stage that made it.
        key: hash of the stage and its inputs.
        path: the folder.
        state: "whole", "damaged", "unfinished" or "being made".
        size: bytes.
        age: seconds since the folder last changed.
        made_from: the inputs in a few words.
        used_by: names of the runs that use it.
    """

    stage: str
    key: str
    path: Path
    state: str
    size: int
    age: float
    made_from: str
    used_by: tuple[str, ...]


def contents(outputs: Path) -> list[Entry]:
    """List `outputs/artifacts` by stage, oldest first; reads every byte, writes nothing.

    Raises:
        RunError: a run's artifacts.json cannot be read.
    """
    users = _users(outputs)
    entries = []
    for path in sorted((outputs / "artifacts").glob("*/*")):
        if not path.is_dir():
            continue
        stage, (key, _, suffix) = path.parent.name, path.name.partition(".")
        state = {"work": "unfinished", "removing": "unfinished"}.get(suffix, "damaged")
        if not suffix and check_manifest(path) is None:
            state = "whole"
        lock = path.with_name(f"{key}.lock")
        if suffix == "work" and lock.exists():
            with try_lock(lock) as free:
                state = state if free else "being made"
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        age = max(0.0, time.time() - path.stat().st_mtime)
        entries.append(Entry(stage, key, path, state, size, age, _made_from(path), users.get((stage, key), ())))
    return sorted(entries, key=lambda entry: (entry.stage, -entry.age))


def prune(outputs: Path, *, damaged: bool = False, remove: bool = False) -> list[Entry]:
    """Return the artifacts that no run uses and no process is making, removed if `remove`.

    With `damaged`, damaged ones are included even if a run names their key, since no run reads a damaged folder.

    Raises:
        RunError: a run's artifacts.json cannot be read.
    """
    unused = [
        entry
        for entry in contents(outputs)
        if (entry.state in ("whole", "unfinished") and not entry.used_by) or (damaged and entry.state == "damaged")
    ]
    return [entry for entry in unused if not remove or _remove(entry)]


def _remove(entry: Entry) -> bool:
    with try_lock(entry.path.with_name(f"{entry.key}.lock")) as free:
        if not free or not entry.path.exists():  # a process is making it, or has just finished it
            return False
        away = entry.path.with_name(f"{entry.key}.removing")
        if away != entry.path:
            shutil.rmtree(away, ignore_errors=True)
            entry.path.rename(away)  # in one step, so that a reader finds all of it or nothing
        shutil.rmtree(away)
        return True


def _users(outputs: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The names of the runs that list an artifact in their artifacts.json, by (stage, key)."""
    users: dict[tuple[str, str], tuple[str, ...]] = {}
    for path in sorted((outputs / "runs").glob(f"*/{RUN_ARTIFACTS}")):
        try:
            artifacts = [(str(stage), str(key)) for stage, key in json.loads(path.read_text()).items()]
        except (ValueError, AttributeError) as error:
            # Skipping it would let `prune` remove that run's artifacts.
            raise RunError(f"{path} is not a JSON object of stages and keys: mend it or remove that run") from error
        for artifact in artifacts:
            users[artifact] = (*users.get(artifact, ()), path.parent.name)
    return users


def _made_from(path: Path, width: int = 60) -> str:
    """An artifact's inputs in a few words, without hashes, which tell a reader nothing."""
    try:
        inputs = json.loads((path / INPUTS).read_text())["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return "?"
    words = " ".join(f"{name}={value}" for name, value in _leaves(inputs))
    return words if len(words) <= width else words[: width - 1] + "…"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _leaves(item, f"{name}.{inner}" if name else inner)
    elif not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,64}", value)):
        yield name, value


def _table(entries: Sequence[Entry]) -> str:
    rows = [("stage", "key", "state", "size", "age", "made from", "used by")]
    for entry in entries:
        users = ", ".join(entry.used_by[:2]) + (f" and {len(entry.used_by) - 2} more" if entry.used_by[2:] else "")
        size, age = _human_size(entry.size), _human_age(entry.age)
        rows.append((entry.stage, entry.path.name, entry.state, size, age, entry.made_from, users or "no run"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (3, 4)  # size and age are numbers
    lines = (
        [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _human_size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _human_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for a failure, 2 for arguments that are refused."""
    shared = OneLineParser(add_help=False)
    shared.add_argument("--outputs", type=place, default=Path("outputs"), help="the folder that runs write to")
    parser = OneLineParser(prog="python -m imdb_rlhf.artifacts", description="List or remove the results of stages.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    commands.add_parser("list", parents=[shared], help="show all artifacts and check every byte of them")
    pruning = commands.add_parser("prune", parents=[shared], help="remove artifacts that no run uses")
    pruning.add_argument("--yes", action="store_true", help="remove them; without it, only show them")
    pruning.add_argument("--damaged", action="store_true", help="include damaged artifacts")
    try:
        options = parser.parse_args(arguments)
        if not options.outputs.is_dir():
            raise ConfigError(f"there is no folder {options.outputs}: name the one that runs write to with --outputs")
        if options.command == "list":
            entries, verb = contents(options.outputs), "in all"
        else:
            entries = prune(options.outputs, damaged=options.damaged, remove=options.yes)
            verb = "removed" if options.yes else "would be removed; add --yes to remove them"
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if entries:
        print(_table(entries))
    noun = "artifact" if len(entries) == 1 else "artifacts"
    print(f"{len(entries)} {noun}, {_human_size(sum(entry.size for entry in entries))} {verb}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
