"""Rows of a dataset in whatever it is stored: parquet, csv, json, jsonl, arrow, or a folder of `save_to_disk`.

The library `datasets` reads them. A number or a text is the same whatever the container, so `content_of` is too.
"""

import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.errors import RunError, first_line

# The suffix of a file, without compression, and the name of its reader in `datasets`.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# What `save_to_disk` leaves beside its rows.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
# How parts are numbered: train-00000-of-00004, with the hash that the Hub once added or without; or 0000 in a folder of
# the split's name.
PARTS = (re.compile(r"^(.*?)[-_.]?(\d+)[-_.]of[-_.](\d+)(?:-[0-9a-f]{8,})?$"), re.compile(r"^()(\d{4,5})$"))
# What splits are called.
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "unsupervised", "unsup"}
BATCH = 10_000  # rows of a parquet file that are read at once
EXPECTED = f"one of {', '.join(FORMATS)}"


@dataclass(frozen=True)
class Rows:
    """Columns of one file.

    Attributes:
        place: the file or the folder, which messages name.
        columns: name -> values, as Python has them; null is None.
    """

    place: Path
    columns: dict[str, list[Any]]


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


def read_splits(
    place: Path, splits: Iterable[str], wanted: Sequence[str], key: str, optional: Sequence[str] = ()
) -> dict[str, list[Rows]]:
    """Read several splits, none of which may change meanwhile; otherwise as `read_split`.

    Raises:
        RunError: as there, or something changed.
    """
    before = signature_of(place)
    read = {split: read_split(place, split, wanted, key, optional) for split in dict.fromkeys(splits)}
    if signature_of(place) != before:
        raise RunError(f"{key}={place} changed while it was read; run again")
    return read


def read_split(place: Path, split: str, wanted: Sequence[str], key: str, optional: Sequence[str] = ()) -> list[Rows]:
    """Read columns of a split.

    Args:
        place: a file, which is split train; a folder of files whose paths name their split; or a folder of
            `save_to_disk`.
        split: train, test, ...
        wanted: names of columns.
        key: config key that messages name.
        optional: names of columns that are read where they are.

    Returns:
        The rows of each file, in the order of their names.

    Raises:
        RunError: naming the file, the split, the column or the parts that are missing.
    """
    if place.is_dir() and (folder := maas_folder(place)) is not None:
        return read_texts(folder, split, wanted, key)
    if place.is_dir() and (place / SAVED_SPLITS).is_file():
        if not (place / split / SAVED).is_file():
            others = sorted(path.parent.name for path in place.glob(f"*/{SAVED}"))
            raise RunError(f"{key}={place} has no split {split}; there are {', '.join(others)}")
        return [read_saved(place / split, wanted, optional)]
    if place.is_dir() and (place / SAVED).is_file():
        if split != "train":
            raise RunError(f"{key}={place} is one table, which is split train; there is no split {split}")
        return [read_saved(place, wanted, optional)]
    return [read_file(file, wanted, optional) for file in files_of(place, split, key)]


def maas_folder(place: Path) -> Path | None:
    """The folder of train/pos, train/neg, ... as Maas et al. published it: `place`, or aclImdb in it."""
    return next((folder for folder in (place, place / "aclImdb") if (folder / "train" / "pos").is_dir()), None)


def read_texts(folder: Path, split: str, wanted: Sequence[str], key: str) -> list[Rows]:
    """Read reviews of a file each, sorted by label and number: pos and neg of train and test; unsup is unsupervised.

    Raises:
        RunError: no such split or column, or a file is no UTF-8 text.
    """
    parts = (
        [folder / "train" / "unsup"] if split == "unsupervised" else [folder / split / name for name in ("neg", "pos")]
    )
    for part in parts:
        if not part.is_dir():
            raise RunError(f"{key}={folder} has no folder {part.relative_to(folder)}, which is of split {split}")
    if sorted(wanted) != ["label", "text"]:
        raise RunError(f"{key}={folder} has the columns text and label alone, not {' and '.join(wanted)}")
    read = []
    for part in parts:
        files = sorted(part.glob("*.txt"), key=lambda file: (len(file.stem.split("_")[0]), file.stem))
        numbers = {int(file.stem.split("_")[0]) for file in files if file.stem.split("_")[0].isdigit()}
        missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
        if missing:
            raise RunError(
                f"{key}={part} holds {len(files)} of {max(numbers) + 1} reviews; number {missing[0]} is missing"
            )
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise RunError(f"{file} is not UTF-8 text: {first_line(error)}") from error
            read.append(Rows(file, {"text": [text], "label": [part.name]}))
    return read


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


def _one_set(files: list[Path], split: str, where: str) -> list[Path]:
    """The files of the set that a split's name means: train-* and not train_old-*; train_prefs-* if it is alone."""

    def set_of(file: Path) -> str:
        stem = stem_of(file)
        parts = next((match[1] for pattern in PARTS if (match := pattern.match(stem))), re.sub(r"[-_.]?\d+$", "", stem))
        return parts if _holds(_words(parts), _words(split)) else ""  # else its folder is called so

    sets = {file: set_of(file) for file in files}
    exact = [file for file in files if _words(sets[file]) == _words(split)]
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
    parts: dict[tuple[str, int | None], set[int]] = {}
    for file in files:
        match = next((match for pattern in PARTS if (match := pattern.match(stem_of(file)))), None)
        if match is not None:
            whole = int(match[3]) if match.lastindex == 3 else None
            parts.setdefault((match[1], whole), set()).add(int(match[2]))
    if not parts:
        return
    if len(parts) > 1 or sum(map(len, parts.values())) != len(files):
        raise RunError(f"{where} holds several sets of files of split {split}; leave one")
    ((_, total), found) = next(iter(parts.items()))
    count = max(found) + 1 if total is None else total
    first = int(0 not in found and count in found)  # some count from 1
    missing = sorted(set(range(first, count + first)) - found)
    if missing:
        raise RunError(
            f"{where} holds {len(found)} of the {count} files of split {split}; number {missing[0]} is missing"
        )


def read_file(file: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Read columns of one file.

    Raises:
        RunError: it cannot be read, or lacks a column.
    """
    kind, datasets = format_of(file), _library()
    with tempfile.TemporaryDirectory() as cache:
        try:
            options = _csv_options(file, datasets, wanted) if kind == "csv" else {}
            if kind == "parquet":
                options["batch_size"] = BATCH  # else it is that of the first group, and a file without rows has none
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # of values that pandas would leave out
                table = datasets.load_dataset(
                    kind,
                    data_files=str(file),
                    split="train",
                    cache_dir=cache,
                    keep_in_memory=True,
                    verification_mode="no_checks",
                    **options,
                )
            return _columns(table, file, wanted, optional)
        except RunError:
            raise
        except Exception as error:
            if "corresponds to no data" in str(error):  # a file without rows
                return Rows(file, {column: [] for column in wanted})
            reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise RunError(f"{file} is not a readable {kind} file: {reason}") from error


def _csv_options(file: Path, datasets: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """Read every value as a text: "NA" is one, and so is "12"."""
    separator = "\t" if ".tsv" in file.name.lower() else ","
    names = list(pd.read_csv(file, sep=separator, nrows=0, dtype=str, index_col=False).columns)
    _check_columns(names, file, wanted)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    # without index_col, a comma too many in every row makes the first value a row's name
    return {"sep": separator, "keep_default_na": False, "index_col": False, "features": features}


def read_saved(folder: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Read columns of a table that `save_to_disk` wrote.

    Raises:
        RunError: it cannot be read, or lacks a column.
    """
    try:
        return _columns(_library().load_from_disk(str(folder), keep_in_memory=True), folder, wanted, optional)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{folder} cannot be read as save_to_disk left it: {first_line(error)}") from error


def _library() -> Any:
    import datasets  # takes a second, and the generated world does without

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what cannot be read is told in one line of ours
    return datasets


def _columns(table: Any, place: Path, wanted: Sequence[str], optional: Sequence[str]) -> Rows:
    names = list(table.column_names)
    _check_columns(names, place, wanted)
    table.data.table.validate(full=True)  # damaged offsets would be followed, beyond the memory that is ours
    found = [*wanted, *(column for column in optional if column in names)]
    return Rows(place, {column: _values(table, column) for column in found})


def _values(table: Any, column: str) -> list[Any]:
    """A column's values; classes by their names, as any order of names is possible, and -1 for none."""
    values, names = list(table[column]), getattr(table.features[column], "names", None)
    if not names:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]


def _check_columns(names: Sequence[str], place: Path, wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in names:
            raise RunError(f"{place} has no column {column!r} (it has {', '.join(names)})")


def signature_of(place: Path) -> tuple[Any, ...]:
    """The state of a file, or of all files of a folder: another one wherever a byte was written."""
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in stats)


def content_once(place: Path, choice: Sequence[str], compute: Callable[[], str]) -> str:
    """The hash of what is chosen of a place, computed once in a process while nobody touches the place."""
    state = (signature_of(place), *choice)
    if state not in _CONTENTS:
        _CONTENTS[state] = compute()
    return _CONTENTS[state]


_CONTENTS: dict[tuple[Any, ...], str] = {}


def content_of(rows: Sequence[Sequence[Any]]) -> str:
    """A hash (64 hex digits) of rows of texts, whole numbers and nulls, whatever they were stored in."""
    digest = hashlib.sha256()
    for row in rows:
        for piece in _pieces(row):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(row: Sequence[Any]) -> Iterator[bytes]:
    for value in row:
        text = json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else str(value)
        data = text.encode("utf-8", "surrogatepass")
        yield f"{type(value).__name__} {len(data)} ".encode()
        yield data
