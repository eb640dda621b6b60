"""Files of texts: columns of a .csv or .jsonl, and what is no text. Needs no torch."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lilliput.errors import DataError

OTHER_FILES = (".arrow", ".json", ".ndjson", ".parquet", ".tsv", ".xlsx", ".xml")  # whose lines are not texts
NAMED = 8  # fields of a line that an error names

Row = Sequence[str]


def is_table(path: Path) -> bool:
    """Whether a file has columns, as its name says; the others have one text a line.

    Raises:
        DataError: its name is that of a table that is not read.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_FILES:
        raise DataError(f"data {path}: {suffix} is not read; give a .csv, a .jsonl, or plain text with one text a line")
    return suffix in (".csv", ".jsonl")


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Columns of a .csv or .jsonl, in the order of `names`, with an entry for each of its rows.

    Raises:
        DataError: there is no such file, it is not UTF-8 or not text, a line of it is not what its name says, it has no
            such column, or no row.
    """
    rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows}[path.suffix.lower()](path, read_utf8(path), names)
    columns = [list(column) for column in zip(*rows, strict=True)]
    if not columns:
        raise DataError(f"data {path}: has no row")
    return columns


def read_utf8(path: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DataError: it cannot be read, or is not UTF-8, or has a zero byte.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror}); give a file with one text a line") from None
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(f"data {path}: line {line} has a zero byte, so it is no text file; give UTF-8, one text a line")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"data {path}: line {line} is not UTF-8 ({error.reason}); convert the file first") from None


def _csv_rows(path: Path, text: str, names: Sequence[str]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        for name in names:
            if name not in columns:
                raise DataError(f"data {path}: has no column '{name}'; its columns are {', '.join(columns) or 'none'}")
        for row in reader:
            for name in names:
                if row[name] is None:
                    raise DataError(f"data {path}: line {reader.line_num} ends before the column '{name}'")
            yield [row[name] for name in names]
    except csv.Error as error:
        raise DataError(f"data {path}: line {reader.line_num + 1} is not CSV ({error})") from None


def _jsonl_rows(path: Path, text: str, names: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"data {path}: line {number} is not JSON ({error})") from None
        for name in names:
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                lacks = isinstance(row, dict) and name not in row
                has = f"; it has {', '.join(list(row)[:NAMED])[:200] or 'no field'}" if lacks else ""
                raise DataError(f"data {path}: line {number} must be an object whose '{name}' is a string{has}")
            if any("\ud800" <= character <= "\udfff" for character in row[name]):
                raise DataError(
                    f"data {path}: line {number} has half of a surrogate pair in '{name}'; write whole ones"
                )
        yield [row[name] for name in names]
