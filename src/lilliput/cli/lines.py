"""Texts of a file, one a line."""

import codecs
import os
import sys
from pathlib import Path

from lilliput.errors import DataError

STDIN = Path("-")


def read_lines(path: Path) -> list[str]:
    """The lines of a file, or of stdin where `path` is `-`, without their ends. An empty line is an empty text.

    Raises:
        DataError: there is no such file, it cannot be read, has no line, a zero byte (so it is no text), or a line that
            is not UTF-8.
    """
    name = "stdin" if path == STDIN else os.fspath(path)
    content = _read(path, name).removeprefix(codecs.BOM_UTF8)
    if not content:
        raise DataError(f"{name}: is empty; must have one text a line")
    lines = content.removesuffix(b"\n").split(b"\n")
    return [_text(f"{name}: line {number}", line.removesuffix(b"\r")) for number, line in enumerate(lines, 1)]


def _read(path: Path, name: str) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name}: cannot be read ({why}); give a file with one text a line") from None


def _text(where: str, line: bytes) -> str:
    if b"\0" in line:
        raise DataError(f"{where} has a zero byte, so this is no text; must be UTF-8, one text a line")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason} at its byte {error.start}); convert the file") from None
