"""Which files of a folder hold a split, told from their names: all of them, and no others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imdb_rlhf.errors import RunError

# The suffix of a file, without compression, and the name of its reader in `datasets`.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# How parts are numbered: train-00000-of-00004, with the hash that the Hub once added or without; or 0000 in a folder of
# the split's name.
PART_OF, NUMBER = re.compile(r"^(.*?)[-_.]?(\d+)[-_.]of[-_.](\d+)(?:-[0-9a-f]{8,})?$"), re.compile(r"^\d{4,5}$")
# What splits are called.
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "unsupervised", "unsup"}
EXPECTED = f"one of {', '.join(FORMATS)}"


def format_of(file: Path) -> str | None:
    """The reader of a file, by its name; None if there is none."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def stem_of(file: Path) -> str:
    """A file's name without suffixes of format and compression."""
    name = file.name
    for suffix in reversed(file.suffixes):
        if suffix.lower() not in (*COMPRESSIONS, *FORMATS):
            break
        name = name.removesuffix(suffix)
    return name


def files_of(place: Path, split: str, key: str) -> list[Path]:
    """The files of a split, all of whose parts are there.

    Raises:
        RunError: there is none, a part is missing, or there are several sets of files.
    """
    if place.is_file():
        if format_of(place) is None:
            raise RunError(f"{key}={place} is none of the files that are read ({EXPECTED})")
        if split != "train":
            raise RunError(f"{key}={place} is one file, which is split train; there is no split {split}")
        return [place]
    every = [path for path in sorted(place.rglob("*")) if path.is_file() and format_of(path) is not None]
    # the metadata of datasets is JSON too
    every = [path for path in every if not path.name.startswith(("dataset_info", "dataset_dict", "state."))]
    every = [path for path in every if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    if not every:
        raise RunError(f"{key}={place} holds no data ({EXPECTED}); for example {split}-00000-of-00001.parquet")
    words = {path: _words(path.relative_to(place).with_name(stem_of(path)).as_posix()) for path in every}
    files = [path for path in every if _holds(words[path], _words(split))]
    if not files and split == "train" and SPLITS.isdisjoint(word for path in every for word in words[path]):
        files = every
    if not files:
        raise RunError(f"{key}={place} holds no file of split {split}; there are {', '.join(names_of(every, place))}")
    kinds = {(path.parent, format_of(path)) for path in files}
    if len(kinds) > 1:
        both = names_of(
            [next(path for path in files if (path.parent, format_of(path)) == kind) for kind in kinds], place
        )
        raise RunError(f"{key}={place} holds split {split} more than once ({', '.join(sorted(both))}); leave one")
    files = _one_set(files, split, f"{key}={place}")
    _check_parts(files, split, f"{key}={place}")
    return files


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+|[0-9]+", name.lower())


def _holds(words: list[str], wanted: list[str]) -> bool:
    """Whether words hold others, one after the other."""
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


@dataclass(frozen=True)
class _Part:
    """What a file's name says: of which set it is, its number and how many there are, where it says so."""

    of: str
    number: int | None
    total: int | None


def _part(file: Path) -> _Part:
    stem = stem_of(file)
    if match := PART_OF.match(stem):
        return _Part(match[1], int(match[2]), int(match[3]))
    if NUMBER.match(stem):
        return _Part("", int(stem), None)
    return _Part(re.sub(r"[-_.]?\d+$", "", stem), None, None)


def _one_set(files: list[Path], split: str, where: str) -> list[Path]:
    """The files of the set that a split's name means: train-* and not train_old-*; train_prefs-* if it is alone."""
    wanted = _words(split)
    # a file that is not called so lies in a folder that is
    sets = {file: name if _holds(_words(name := _part(file).of), wanted) else "" for file in files}
    exact = [file for file in files if _words(sets[file]) == wanted]
    if exact or len(set(sets.values())) == 1:
        return exact or files
    raise RunError(
        f"{where} holds several sets of files of split {split} ({', '.join(sorted(set(sets.values())))}); leave one, "
        f"or put all into a folder called {split}"
    )


def names_of(files: Sequence[Path], folder: Path) -> list[str]:
    """The paths of files in their folder, at most eight of them."""
    names = [path.relative_to(folder).as_posix() for path in files]
    return names if len(names) <= 8 else [*names[:7], f"{len(names) - 7} more"]


def _check_parts(files: Sequence[Path], split: str, where: str) -> None:
    """Refuse a split of which a numbered part is missing: `-00000-of-00004`, or 0000, 0001, ..."""
    parts = [_part(file) for file in files]
    numbers = {part.number for part in parts if part.number is not None}
    if not numbers:
        return
    if len({(part.of, part.total) for part in parts}) > 1 or len(numbers) != len(files):
        raise RunError(f"{where} holds several sets of files of split {split}; leave one")
    count = parts[0].total if parts[0].total is not None else max(numbers) + 1
    first = int(0 not in numbers and count in numbers)  # some count from 1
    missing = sorted(set(range(first, count + first)) - numbers)
    if missing:
        raise RunError(
            f"{where} holds {len(numbers)} of the {count} files of split {split}; number {missing[0]} is missing"
        )
