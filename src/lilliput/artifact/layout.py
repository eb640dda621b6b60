"""The fixed records of `model.lil`, byte for byte as docs/format.md, section 2, gives them."""

from typing import NamedTuple

import numpy as np

from lilliput.program.formats import round_up
from lilliput.program.plan import ALIGNMENT

MAGIC = b"\x89LIL\r\n\x1a\n"
# By version, the kinds of sections from 1 on: version 1 holds image programs, 2 sequence programs.
_VERSION_1 = ("buffers", "tensors", "ops", "constants", "metadata", "golden")
SECTIONS: dict[int, tuple[str, ...]] = {1: _VERSION_1, 2: (*_VERSION_1, "vocabulary")}
VERSION = max(SECTIONS)

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("crc", "<u4"),
        ("file_bytes", "<u8"),
        ("arena_bytes", "<u8"),
        ("input", "<u4"),
        ("output", "<u4"),
        ("sections", "<u4"),
        ("max_tokens", "<u4"),
    ]
)
SECTION = np.dtype([("kind", "<u4"), ("count", "<u4"), ("offset", "<u8"), ("bytes", "<u8")])
BUFFER = np.dtype([("dtype", "<u4"), ("rows", "<u4"), ("cols", "<u4"), ("zero", "<u4"), ("offset", "<u8")])
TENSOR = np.dtype(
    [("format", "<u2"), ("layout", "<u2"), ("rows", "<u4"), ("cols", "<u4"), ("zero", "<u4"), ("offset", "<u8")]
)
OP = np.dtype([("kind", "<u2"), ("in", "<u2", 3), ("out", "<u2", 2), ("tensor", "<u2", 4), ("a", "<u4", 5)])
CRC_START = 16
FIRST_SECTION = {
    version: round_up(HEADER.itemsize + len(names) * SECTION.itemsize, ALIGNMENT) for version, names in SECTIONS.items()
}
assert FIRST_SECTION == {1: 192, 2: 256} and (BUFFER.itemsize, TENSOR.itemsize, OP.itemsize) == (24, 24, 40)


class Section(NamedTuple):
    """One entry of the section table: `size` bytes from `offset`, holding `records` of them."""

    records: int
    offset: int
    size: int
