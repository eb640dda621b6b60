"""The fixed records of `model.lil`, byte for byte as docs/format.md, section 2, gives them."""

from typing import NamedTuple

import numpy as np

MAGIC = b"\x89LIL\r\n\x1a\n"
VERSION = 1
SECTIONS = ("buffers", "tensors", "ops", "constants", "metadata", "golden")  # kinds 1 to 6

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
        ("zero", "<u4"),
    ]
)
SECTION = np.dtype([("kind", "<u4"), ("count", "<u4"), ("offset", "<u8"), ("bytes", "<u8")])
BUFFER = np.dtype([("dtype", "<u4"), ("rows", "<u4"), ("cols", "<u4"), ("zero", "<u4"), ("offset", "<u8")])
TENSOR = np.dtype(
    [("format", "<u2"), ("layout", "<u2"), ("rows", "<u4"), ("cols", "<u4"), ("zero", "<u4"), ("offset", "<u8")]
)
OP = np.dtype(
    [("kind", "<u2"), ("in", "<u2", 3), ("out", "<u2", 2), ("tensor", "<u2", 3), ("zero", "<u2"), ("a", "<u4", 5)]
)
CRC_START = 16
FIRST_SECTION = HEADER.itemsize + len(SECTIONS) * SECTION.itemsize
assert FIRST_SECTION == 192 and (BUFFER.itemsize, TENSOR.itemsize, OP.itemsize) == (24, 24, 40)


class Section(NamedTuple):
    """One entry of the section table: `size` bytes from `offset`, holding `records` of them."""

    records: int
    offset: int
    size: int
