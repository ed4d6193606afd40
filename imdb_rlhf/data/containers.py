"""Rows of a dataset in whatever it is stored: parquet, csv, json, jsonl, arrow, or a folder of `save_to_disk`.

Only the wanted columns are read, each value as it is written: the library `datasets`, which reads what it saved itself,
guesses types anew for every 10 MB of a json file, and refuses a file for a column that nobody wants. A number or a text
is the same whatever the container, so `content_of` is too.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imdb_rlhf.data.split_files import files_of, format_of
from imdb_rlhf.data.text_tables import read_csv, read_json, read_text
from imdb_rlhf.errors import RunError, first_line

# What `save_to_disk` leaves beside its rows.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class Rows:
    """Columns of one file.

    Attributes:
        place: the file or the folder, which messages name.
        columns: name -> values, as Python has them; null is None.
    """

    place: Path
    columns: dict[str, list[Any]]


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
        RunError: no such split or column, a number is missing, or a file is no UTF-8 text.
    """
    parts = (
        [folder / "train" / "unsup"] if split == "unsupervised" else [folder / split / name for name in ("neg", "pos")]
    )
    for part in parts:
        if not part.is_dir():
            raise RunError(f"{key}={folder} has no folder {part.relative_to(folder)}, which is of split {split}")
    if not set(wanted) <= {"label", "text"}:
        raise RunError(f"{key}={folder} has the columns text and label alone, not {' and '.join(wanted)}")
    read = []
    for part in parts:
        numbered = {file: file.stem.partition("_")[0] for file in part.glob("*.txt")}
        numbers = {int(number) for number in numbered.values() if number.isdigit()}
        missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
        if missing:
            raise RunError(
                f"{key}={part} holds {len(numbered)} of {max(numbers) + 1} reviews; number {missing[0]} is missing"
            )
        for file in sorted(numbered, key=lambda file: (len(numbered[file]), file.stem)):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise RunError(f"{file} is not UTF-8 text: {first_line(error)}") from error
            read.append(Rows(file, {"text": [text], "label": [part.name]}))
    return read


def read_file(file: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Read columns of one file.

    Raises:
        RunError: it cannot be read, or lacks a column, or has one twice.
    """
    kind = str(format_of(file))
    try:
        if kind == "json":
            names, columns = read_json(read_text(file), [*wanted, *optional])
            if names:
                _check_columns(names, file, wanted)
            return Rows(file, columns or {column: [] for column in wanted})
        if kind == "csv":
            names, rows = read_csv(read_text(file), "\t" if ".tsv" in file.name.lower() else ",")
            found = _found(names, file, wanted, optional)
            return Rows(file, {name: [row[names.index(name)] for row in rows] for name in found})
        return _arrow_columns(_open_parquet if kind == "parquet" else _open_arrow, file, wanted, optional)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{file} is not a readable {kind} file: {first_line(error)}") from error


def _open_parquet(file: Path) -> tuple[pa.Schema, Callable[[list[str]], pa.Table]]:
    parquet = pq.ParquetFile(file)
    return parquet.schema_arrow, lambda names: parquet.read(columns=names)


def _open_arrow(file: Path) -> tuple[pa.Schema, Callable[[list[str]], pa.Table]]:
    try:
        reader = pa.ipc.open_stream(pa.OSFile(str(file)))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(pa.OSFile(str(file)))
    return reader.schema, lambda names: reader.read_all().select(names)


def _arrow_columns(
    opener: Callable[[Path], tuple[pa.Schema, Callable[[list[str]], pa.Table]]],
    file: Path,
    wanted: Sequence[str],
    optional: Sequence[str],
) -> Rows:
    """Columns of a file with types; classes by their names, as `datasets` notes them beside its types."""
    schema, read = opener(file)
    found = _found(schema.names, file, wanted, optional)
    table = read(found)
    table.validate(full=True)  # damaged offsets would be followed, beyond the memory that is ours
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info") or {}
    features = info.get("features") or {}
    return Rows(
        file, {name: _named(table[name].to_pylist(), (features.get(name) or {}).get("names")) for name in found}
    )


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
    found = _found(table.column_names, place, wanted, optional)
    table.data.table.validate(full=True)  # damaged offsets would be followed, beyond the memory that is ours
    return Rows(
        place, {name: _named(list(table[name]), getattr(table.features[name], "names", None)) for name in found}
    )


def _named(values: list[Any], names: Sequence[str] | None) -> list[Any]:
    """A column's values; classes by their names, as any order of names is possible, and -1 for none."""
    if not names:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]


def _found(names: Sequence[str], place: Path, wanted: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The columns that are read: all wanted, and optional ones that are there.

    Raises:
        RunError: a wanted one is missing, or one is there twice.
    """
    _check_columns(names, place, wanted)
    found = [*wanted, *(column for column in optional if column in names)]
    for column in found:
        if list(names).count(column) > 1:
            raise RunError(f"{place} has the column {column!r} twice; rename one")
    return found


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
