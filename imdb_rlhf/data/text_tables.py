"""Tables in text files, read so that every value is as it is written: csv, tsv, json and jsonl.

No type is guessed: a text that looks like a date is a text, whatever the size of the file.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

QUOTE = '"'
LONGEST = 2**31 - 1  # characters of a field


def read_text(file: Path) -> str:
    """A file's text, decompressed by its name.

    Raises:
        OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, pyarrow.ArrowException: it cannot be read.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get(file.suffix.lower(), lambda path: pa.input_stream(str(path), compression="detect"))
    with opener(file) as stream:
        return str(bytes(stream.read()).decode("utf-8-sig"))


# --- json


def read_json(text: str, names: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """The names and some columns of a json file.

    It holds a record per line, a list of records, or an object of columns, as pandas writes it.

    Args:
        text: of the file.
        names: of the columns that are read. A record without one has None there.

    Returns:
        All names that any record has, and the columns that were asked for. Both are empty for a list without records.

    Raises:
        ValueError: naming the row.
    """
    hook = _without_repeats(frozenset(names) | {"role", "content"})
    columns: dict[str, list[Any]] = {name: [] for name in names}
    found: dict[str, None] = {}
    for row, record in enumerate(_records(text, hook)):
        if not isinstance(record, dict):
            raise ValueError(
                f"row {row} is no record with named values; give one record per line, or a list of records"
            )
        for name in names:
            value = record.get(name)
            if not _is_whole(value):
                raise ValueError(f"row {row}: {name} holds half of a character; mend it")
            columns[name].append(value)
        found.update(dict.fromkeys(record))
    return list(found), {name: values for name, values in columns.items() if name in found}


def _records(text: str, hook: Any) -> Iterator[Any]:
    """The rows of any of the forms."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    try:
        first = json.loads(lines[0], object_pairs_hook=hook)
    except json.JSONDecodeError:
        first = None  # a document of several lines
    if isinstance(first, dict) and (len(lines) > 1 or not _is_columns(first)):
        yield first
        for row, line in enumerate(lines[1:], 1):
            try:
                yield json.loads(line, object_pairs_hook=hook)
            except json.JSONDecodeError as error:
                raise ValueError(f"row {row} is not JSON: {error}") from error
        return
    whole = first if len(lines) == 1 and first is not None else json.loads(text, object_pairs_hook=hook)
    if isinstance(whole, dict) and _is_columns(whole):
        columns = {
            name: list(values.values() if isinstance(values, dict) else values) for name, values in whole.items()
        }
        if len({len(values) for values in columns.values()}) > 1:
            raise ValueError("its columns are of different lengths")
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    else:
        yield from whole if isinstance(whole, list) else [whole]


def _is_columns(record: dict[str, Any]) -> bool:
    """Whether an object is a table by columns: lists, or objects with the same row names (pandas' `to_json`)."""
    values = list(record.values())
    if values and all(isinstance(value, list) for value in values):
        # a conversation is a list too, of messages
        return not any(isinstance(part, dict) and "role" in part for value in values for part in value)
    return bool(values) and all(isinstance(value, dict) and list(value) == list(values[0]) for value in values)


def _without_repeats(names: frozenset[str]) -> Any:
    """A maker of JSON objects that refuses one that has a value of a name twice."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            given = [name for name, _ in pairs]
            repeated = sorted(name for name in names if given.count(name) > 1)
            if repeated:
                raise ValueError(f"a record has {repeated[0]!r} twice")
        return record

    return make


def _is_whole(value: Any) -> bool:
    """Whether text can be encoded: JSON can name halves of characters."""
    if value is None or isinstance(value, bool | int | float):
        return True
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- csv and tsv


def read_csv(text: str, separator: str) -> tuple[list[str], list[list[str]]]:
    """The names and the rows of a csv or tsv file; every value is a text.

    Quotes are read as RFC 4180 has them. A tsv file may be without quoting; then a quote is a character like others.

    Raises:
        ValueError: naming the row at which quoting is broken, or of which it cannot be told what its quotes mean.
    """
    lines = [line for line in io.StringIO(text, newline="") if line.strip("\r\n")]
    if QUOTE not in text:
        rows: Any = _checked([line.rstrip("\r\n").split(separator) for line in lines])
        return rows[0], rows[1:]
    plain = [line.rstrip("\r\n").split(separator) for line in lines]
    every_line_is_a_row = len({len(row) for row in plain}) == 1
    try:
        rows = _checked(_quoted(text, separator))
    except ValueError:
        if separator == "\t" and every_line_is_a_row:
            return plain[0], plain[1:]
        raise
    if every_line_is_a_row:
        doubled = separator == "," and any(QUOTE in value for row in rows for value in row)  # so that its writer quotes
        if len(rows) < len(plain) and not doubled:
            at = next(number for number, row in enumerate(rows) if any("\n" in value or "\r" in value for value in row))
            raise ValueError(
                f"{_row(at)}: a quote may be a character or the beginning of a text of several lines; use jsonl"
            )
        if len(rows) == len(plain) and separator == "\t" and not _is_quoted_by_rule(plain, rows):
            raise ValueError("its quotes may be part of the texts or around them; use jsonl")
    return rows[0], rows[1:]


def _quoted(text: str, separator: str) -> list[list[str]]:
    """Rows by RFC 4180."""
    csv.field_size_limit(LONGEST)
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows += (row for row in reader if row)
    except csv.Error as error:
        raise ValueError(f"{_row(len(rows))}: its quotes are broken ({error}); a quote in a text is two") from error
    return rows


def _row(number: int) -> str:
    """A row in a message, of rows that begin with the names."""
    return f"row {number - 1}" if number else "the row of names"


def _checked(rows: list[list[str]]) -> list[list[str]]:
    """Rows of as many values as there are names.

    Raises:
        ValueError: naming a row that has another count, or no names.
    """
    if not rows:
        raise ValueError("it holds no names of columns")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{_row(number)} has {len(row)} values for {len(rows[0])} columns; put a text with commas in quotes"
            )
    return rows


def _is_quoted_by_rule(plain: list[list[str]], rows: list[list[str]]) -> bool:
    """Whether quotes are around values as writers put them: where a value needs them, or in whole columns."""
    quoted = [
        [written != value for written, value in zip(line, row, strict=True)]
        for line, row in zip(plain, rows, strict=True)
    ]
    by_need = all(
        mark == (QUOTE in value)
        for marks, row in zip(quoted, rows, strict=True)
        for mark, value in zip(marks, row, strict=True)
    )
    return by_need or all(marks == quoted[1] for marks in quoted[2:])
